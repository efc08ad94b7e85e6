package tether_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/crypto/ssh"
)

// A hostile guest, as one that a container's process has taken over: it may say
// what it likes at any time. raw plays it below SSH, on after the handshake.
type attack struct {
	name string
	raw  func(conn net.Conn)
	ssh  func(g *hostile)
	// do is what a controller does meanwhile; ctx ends after limit (2 s where zero).
	do    func(ctx context.Context, c *tether.Client) error
	limit time.Duration
	// most is the time that do may take; limit and a second where zero.
	most time.Duration
	want string // what the error says; "" for none
}

// hostile is a guest's side of a connection after the handshake.
type hostile struct {
	conn     *ssh.ServerConn
	deafen   func() // nothing more is read of what the controller sends
	channels <-chan ssh.NewChannel
	requests <-chan *ssh.Request
}

// answer takes channels for good and calls f for each.
func (h *hostile) answer(f func(ch ssh.Channel, requests <-chan *ssh.Request)) {
	go ssh.DiscardRequests(h.requests)
	for n := range h.channels {
		ch, requests, err := n.Accept()
		if err != nil {
			return
		}
		go f(ch, requests)
	}
}

// forever puts b on w again and again until that fails.
func forever(w io.Writer, b []byte) {
	for {
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}

// saying tells an end.
func saying(exit string) func(*hostile) {
	return func(h *hostile) {
		h.answer(func(ch ssh.Channel, requests <-chan *ssh.Request) {
			go ssh.DiscardRequests(requests)
			_, _ = ch.SendRequest("exit@vicsdk.github.com", false, []byte(exit))
			_ = ch.Close()
		})
	}
}

// answering gives every call the same answer.
func answering(answer string) func(*hostile) {
	return func(h *hostile) {
		h.answer(func(ch ssh.Channel, requests <-chan *ssh.Request) {
			go ssh.DiscardRequests(requests)
			_, _ = io.WriteString(ch, answer)
			_ = ch.Close()
		})
	}
}

// silent takes channels and does nothing with them.
func silent(h *hostile) { h.answer(func(ssh.Channel, <-chan *ssh.Request) {}) }

// deaf takes a channel and then nothing more, so that it confirms no close.
func deaf(f func(ch ssh.Channel)) func(*hostile) {
	return func(h *hostile) {
		h.answer(func(ch ssh.Channel, _ <-chan *ssh.Request) {
			h.deafen()
			f(ch)
		})
	}
}

// A deafConn drops what comes once off is closed.
type deafConn struct {
	net.Conn
	off chan struct{}
}

func (d *deafConn) Read(p []byte) (int, error) {
	for {
		n, err := d.Conn.Read(p)
		select {
		case <-d.off:
			if err == nil {
				continue
			}
		default:
		}
		return n, err
	}
}

func attach(ctx context.Context, c *tether.Client, s tether.Streams) error {
	a, err := c.Attach(ctx, tether.AttachOptions{Streams: s, Replay: true})
	if err != nil {
		return err
	}
	select {
	case <-a.Done():
		e, err := a.Wait()
		if err == nil && strings.ContainsAny(e.Error+e.Signal, "\x1b\u202e") {
			return fmt.Errorf("orders to a terminal came through: %q", e.Error)
		}
		return err
	case <-ctx.Done():
		_ = a.Detach()
		return ctx.Err()
	}
}

func attachNothing(ctx context.Context, c *tether.Client) error {
	return attach(ctx, c, tether.Streams{})
}

func wait(ctx context.Context, c *tether.Client) error {
	_, err := c.Wait(ctx)
	return err
}

func logs(ctx context.Context, c *tether.Client) error {
	l, err := c.Logs(ctx, tether.LogOptions{Follow: true})
	if err != nil {
		return err
	}
	defer l.Close()
	for {
		if _, err := l.Next(); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
}

// endless reads without end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// slow takes a little now and then.
type slow struct{}

func (slow) Write(p []byte) (int, error) {
	time.Sleep(50 * time.Millisecond)
	return len(p), nil
}

var deadline = context.DeadlineExceeded.Error()

func attacks() []attack {
	deep := strings.Repeat("[", 20000)
	return []attack{
		{name: "raw bytes in place of SSH", raw: func(c net.Conn) { forever(c, bytes.Repeat([]byte{0xff, 0, '\n'}, 1000)) }, want: "handshake"},
		{name: "silence", raw: func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, want: deadline},
		{name: "silence without a context's end", raw: func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, limit: 30 * time.Second, most: 12 * time.Second, want: "timeout"},
		{name: "a handshake byte by byte", raw: func(c net.Conn) {
			for _, err := c.Write([]byte("S")); err == nil; _, err = c.Write([]byte("S")) {
				time.Sleep(20 * time.Millisecond)
			}
		}, want: deadline},
		{name: "an endless greeting", raw: func(c net.Conn) { forever(c, []byte("welcome to this guest\r\n")) }, want: "handshake"},
		{name: "an endless key exchange", raw: func(c net.Conn) {
			_, _ = io.WriteString(c, "SSH-2.0-x\r\n")
			// SSH_MSG_IGNORE, for ever (RFC 4253, sections 6 and 11.2).
			forever(c, append([]byte{0, 0, 0, 12, 10, 2, 0, 0, 0, 0}, make([]byte, 6)...))
		}, want: deadline},
		{name: "a packet of 4 GiB", raw: func(c net.Conn) {
			_, _ = io.WriteString(c, "SSH-2.0-x\r\n\xff\xff\xff\xff\x04")
			forever(c, make([]byte, 64<<10))
		}, want: "handshake"},
		{name: "channels that nobody asked for", ssh: func(h *hostile) {
			go h.answer(func(ch ssh.Channel, r <-chan *ssh.Request) { go ssh.DiscardRequests(r); _ = ch.Close() })
			for {
				if _, _, err := h.conn.OpenChannel("session", make([]byte, 1000)); err != nil && !errors.As(err, new(*ssh.OpenChannelError)) {
					return
				}
			}
		}, do: attachNothing, want: "without telling"},
		{name: "a flood of global requests", ssh: func(h *hostile) {
			go func() {
				for {
					if _, _, err := h.conn.SendRequest("tcpip-forward", false, make([]byte, 30000)); err != nil {
						return
					}
				}
			}()
			silent(h)
		}, do: wait, want: deadline},
		{name: "a flood of channel requests", ssh: func(h *hostile) {
			h.answer(func(ch ssh.Channel, r <-chan *ssh.Request) {
				go ssh.DiscardRequests(r)
				for {
					if _, err := ch.SendRequest("exit-status", false, make([]byte, 30000)); err != nil {
						return
					}
				}
			})
		}, do: attachNothing, most: 9 * time.Second, want: deadline},
		{name: "endless output to a slow attacher", ssh: func(h *hostile) {
			h.answer(func(ch ssh.Channel, r <-chan *ssh.Request) {
				go ssh.DiscardRequests(r)
				go forever(ch.Stderr(), make([]byte, 32<<10))
				forever(ch, make([]byte, 32<<10))
			})
		}, do: func(ctx context.Context, c *tether.Client) error {
			return attach(ctx, c, tether.Streams{Stdout: slow{}, Stderr: slow{}})
		}, most: 9 * time.Second, want: deadline},
		{name: "input that is never taken", ssh: silent, do: func(ctx context.Context, c *tether.Client) error {
			return attach(ctx, c, tether.Streams{Stdin: endless{}})
		}, most: 9 * time.Second, want: deadline},
		{name: "a close that is never confirmed", ssh: deaf(func(ssh.Channel) {}), do: attachNothing, most: 9 * time.Second, want: deadline},
		{name: "streams closed by half, and no end", ssh: func(h *hostile) {
			h.answer(func(ch ssh.Channel, _ <-chan *ssh.Request) { _ = ch.CloseWrite() })
		}, do: attachNothing, most: 9 * time.Second, want: deadline},
		{name: "channels that are neither opened nor refused", ssh: func(h *hostile) {
			go ssh.DiscardRequests(h.requests)
			_ = h.conn.Wait()
		}, do: wait, want: deadline},
		{name: "an end before the start", ssh: saying(`{"exit":{"code":0}}`), do: attachNothing},
		{name: "an end of a code that no process has", ssh: saying(`{"exit":{"code":1099511627776}}`), do: attachNothing, want: "code 1099511627776"},
		{name: "an end with orders to the terminal", ssh: saying(`{"exit":{"code":125,"signal":"\u001b[2J","error":"\u001b]0;x\u0007\u202etxt"}}`), do: attachNothing},
		{name: "an end that is no UTF-8", ssh: saying("{\"exit\":{\"code\":125,\"error\":\"\xff\xfe\"}}"), do: attachNothing},
		{name: "an end of 200 KiB", ssh: saying(`{"exit":{"code":1,"error":"` + fill(200<<10) + `"}}`), do: attachNothing, want: "more than 65536"},
		{name: "an end nested deeply", ssh: saying(`{"exit":` + deep), do: attachNothing, want: "exit"},
		{name: "an answer nested deeply", ssh: answering(`{"result":` + deep), do: wait, want: "answer"},
		{name: "an answer of another kind", ssh: answering(`{"result":"yes"}`), do: wait, want: "cannot unmarshal"},
		{name: "an error with orders to the terminal", ssh: answering(`{"error":{"code":"failed","message":"\u001b[31mgone"}}`), do: wait, want: "\ufffd[31mgone"},
		{name: "an answer without end", ssh: func(h *hostile) {
			h.answer(func(ch ssh.Channel, r <-chan *ssh.Request) {
				go ssh.DiscardRequests(r)
				forever(ch, bytes.Repeat([]byte(" "), 1<<10))
			})
		}, do: wait, want: "more than 65536"},
		{name: "a status of 64 KiB of addresses", ssh: answering(`{"result":{"version":1,"boot":"b","addresses":["` + strings.Repeat(`10.0.0.1:22","`, 4000) + `"]}}`),
			do: func(ctx context.Context, c *tether.Client) error {
				_, err := c.Status(ctx)
				return err
			}, want: "addresses"},
		{name: "an end of the log without its being said", ssh: func(h *hostile) {
			h.answer(func(ch ssh.Channel, _ <-chan *ssh.Request) { _ = ch.CloseWrite() })
		}, do: logs, limit: 20 * time.Second, most: 8 * time.Second, want: "unexpected EOF"},
		{name: "a log line without end", ssh: func(h *hostile) {
			h.answer(func(ch ssh.Channel, _ <-chan *ssh.Request) { forever(ch, bytes.Repeat([]byte("x"), 32<<10)) })
		}, do: logs, most: 9 * time.Second, want: deadline},
		{name: "a log without end to one who hears nothing", ssh: deaf(func(ch ssh.Channel) {
			forever(ch, []byte(strings.Repeat(line(1, "again\n"), 100)))
		}), do: logs, most: 9 * time.Second, want: deadline},
		{name: "a log without end", ssh: func(h *hostile) {
			h.answer(func(ch ssh.Channel, _ <-chan *ssh.Request) {
				forever(ch, []byte(strings.Repeat(line(1, "again\n"), 100)))
			})
		}, do: logs, most: 9 * time.Second, want: deadline},
		{name: "pings without a reply", ssh: func(h *hostile) {
			go func() {
				for range h.requests { //nolint:revive // never replied
				}
			}()
			_ = h.conn.Wait()
		}, do: func(ctx context.Context, c *tether.Client) error {
			_, err := c.Ping(ctx)
			return err
		}, want: deadline},
		{name: "calls that are never answered, by the hundred", ssh: deaf(func(ssh.Channel) {}), do: func(ctx context.Context, c *tether.Client) (err error) {
			for range 500 {
				wctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
				err = errors.Join(err, wait(wctx, c))
				cancel()
			}
			return err
		}, limit: 20 * time.Second, want: "closed by the guest"},
	}
}

// A hostile guest costs a controller no more than an error: not its memory, not
// its time, and nothing of what it does with other guests.
func TestHostileGuest(t *testing.T) {
	neighbour := newGuest(t, nil)
	key := sshKey(t, newKey(t))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, a := range attacks() {
		t.Run(a.name, func(t *testing.T) {
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				if a.raw != nil {
					a.raw(conn)
					return
				}
				server := &ssh.ServerConfig{NoClientAuth: true, BannerCallback: func(ssh.ConnMetadata) string { return fill(100 << 10) }}
				server.AddHostKey(key)
				d := &deafConn{conn, make(chan struct{})}
				sc, channels, requests, err := ssh.NewServerConn(d, server)
				if err != nil {
					return
				}
				a.ssh(&hostile{sc, sync.OnceFunc(func() { close(d.off) }), channels, requests})
			})
			peak := watchHeap()
			defer peak()
			limit := a.limit
			if limit == 0 {
				limit = 2 * time.Second
			}
			most := a.most
			if most == 0 {
				most = limit + time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			c, err := tether.NewClient(ctx, conn, tether.ClientConfig{Signer: key, HostKey: string(ssh.MarshalAuthorizedKey(key.PublicKey()))})
			if err == nil {
				if a.do == nil {
					t.Fatal("the handshake succeeded")
				}
				err = a.do(ctx, c)
				// Others are served meanwhile.
				nctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				if _, err := neighbour.dial(nctx).Ping(nctx); err != nil {
					t.Errorf("the neighbour: %v", err)
				}
				cancel()
				_ = c.Close()
			}
			took := time.Since(start)
			if used := peak(); used > 48<<20 {
				t.Errorf("it took %d MiB of memory", used>>20)
			}
			if took > most {
				t.Errorf("it took %v, more than %v", took, most)
			}
			switch {
			case a.want == "" && err != nil:
				t.Errorf("%v", err)
			case a.want != "" && (err == nil || !strings.Contains(err.Error(), a.want)):
				t.Errorf("%.300v, want %q", err, a.want)
			}
			if err != nil && strings.ContainsAny(err.Error(), "\x1b\u202e") {
				t.Errorf("the error has orders to a terminal: %q", err)
			}
		})
	}
}

// watchHeap samples the heap until the returned function is called, and then
// tells by how much it grew.
func watchHeap() func() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before, most := m.HeapAlloc, m.HeapAlloc
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(20 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-quit:
				return
			case <-t.C:
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc)
			}
		}
	}()
	return sync.OnceValue(func() uint64 {
		close(quit)
		<-done
		return most - before
	})
}
