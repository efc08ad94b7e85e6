package tether_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/crypto/ssh"
)

// FuzzServerBytes feeds a server with a stranger's bytes: it must end the
// connection by itself and stay fit for others.
func FuzzServerBytes(f *testing.F) {
	f.Add([]byte("SSH-2.0-x\r\n\x00\x00\x00\x0c\x0a\x14aaaaaaaaaaaa"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	g := newGuest(f, nil)
	f.Fuzz(func(t *testing.T, b []byte) {
		here, there := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			g.server.ServeConn(context.Background(), there)
		}()
		go func() { _, _ = io.Copy(io.Discard, here) }()
		_, _ = here.Write(b)
		_ = here.Close()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("the server keeps a closed connection")
		}
	})
}

// FuzzServerChannels sends a greeted controller's odd requests.
func FuzzServerChannels(f *testing.F) {
	f.Add("attach@vicsdk.github.com", []byte(`{"replay":true,"stdin":true}`), "signal", []byte("\x00\x00\x00\x04TERM"))
	f.Add("call@vicsdk.github.com", []byte(`{"method":"signal","params":{"signal":"WINCH"}}`), "exit", []byte{})
	f.Add("logs@vicsdk.github.com", []byte(`{"tail":3}`), "window-change", []byte("\x00\x00\x00\x50\x00\x00\x00\x18\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add("session", []byte{}, "exec", []byte("\x00\x00\x00\x02id"))
	f.Add("exec@vicsdk.github.com", []byte(`{"args":["true"],"stdin":true}`), "window-change", []byte("\x00\x00\x00\x50\x00\x00\x00\x18\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add("exec@vicsdk.github.com", []byte(`{"id":"x"}`), "signal", []byte("\x00\x00\x00\x04KILL"))
	f.Add("call@vicsdk.github.com", []byte(`{"method":"exec-create","params":{"args":["x"],"env":["a=b"]}}`), "", []byte{})
	f.Add("call@vicsdk.github.com", []byte(`{"method":"top","params":{"after":-1}}`), "", []byte{})
	f.Add("tar-out@vicsdk.github.com", []byte(`{"path":"/"}`), "", []byte{})
	f.Add("tar-in@vicsdk.github.com", []byte(`{"dir":"/"}`), "eof@vicsdk.github.com", []byte("x"))
	g := newGuest(f, openStdin)
	signer, err := tether.NewControllerSigner(g.authority, testID, time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	config := &ssh.ClientConfig{
		Config: ssh.Config{KeyExchanges: []string{ssh.KeyExchangeCurve25519}},
		User:   testID, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.FixedHostKey(g.hostKey.PublicKey()),
	}
	c, err := ssh.Dial("tcp", g.addr, config)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = c.Close() })
	f.Fuzz(func(t *testing.T, kind string, extra []byte, request string, payload []byte) {
		ch, requests, err := c.OpenChannel(kind, extra)
		if err == nil {
			go ssh.DiscardRequests(requests)
			_, _ = ch.SendRequest(request, false, payload)
			_, _ = ch.Write(payload)
			_ = ch.Close()
		}
		if _, _, err := c.SendRequest("ping@vicsdk.github.com", true, payload); err != nil {
			t.Fatalf("after %q %q: %v", kind, extra, err)
		}
	})
}

// FuzzClientBytes lets a hostile guest answer: the client must give an error
// or an end, and hold no more than its bounds.
func FuzzClientBytes(f *testing.F) {
	f.Add([]byte(`{"exit":{"code":255}}`), []byte(`{"result":{"code":254}}`))
	for _, code := range []string{"3", "25", "99", "100", "199", "249"} {
		f.Add([]byte(`{"exit":{"code":`+code+`}}`), []byte(`{"result":{"code":`+code+`}}`))
	}
	f.Add([]byte(`{"exit":{"code":3}}`), []byte(`{"result":{"processes":[{"pid":1}],"more":true}}`))
	f.Add([]byte(`{"error":{"code":"invalid","message":"x"}}`), []byte(`{"error":{"code":"x"}}`))
	f.Add([]byte(`{"exit":{"code":-1,"signal":"x"}}`), []byte(`[]`))
	key := sshKey(f, newKey(f))
	server := &ssh.ServerConfig{NoClientAuth: true}
	server.AddHostKey(key)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = l.Close() })
	f.Fuzz(func(t *testing.T, exit, answer []byte) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			sc, channels, requests, err := ssh.NewServerConn(conn, server)
			if err != nil {
				return
			}
			go ssh.DiscardRequests(requests)
			for n := range channels {
				ch, reqs, err := n.Accept()
				if err != nil {
					break
				}
				go ssh.DiscardRequests(reqs)
				switch n.ChannelType() {
				case "attach@vicsdk.github.com", "exec@vicsdk.github.com":
					_, _ = ch.SendRequest("exit@vicsdk.github.com", false, exit)
				case "tar-out@vicsdk.github.com":
					_, _ = ch.SendRequest("file@vicsdk.github.com", false, answer)
					_, _ = ch.Write(answer)
					_, _ = ch.SendRequest("result@vicsdk.github.com", false, exit)
				default:
					_, _ = ch.Write(answer)
				}
				_ = ch.Close()
			}
			_ = sc.Wait()
		}()
		ctx := testContext(t)
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c, err := tether.NewClient(ctx, conn, tether.ClientConfig{Signer: key, HostKey: string(ssh.MarshalAuthorizedKey(key.PublicKey()))})
		if err != nil {
			t.Fatal(err)
		}
		if a, err := c.Attach(ctx, tether.AttachOptions{}); err == nil {
			e, err := a.Wait()
			sane(t, e, err)
		}
		if a, err := c.Exec(ctx, tether.ExecSpec{Args: []string{"x"}}, tether.Streams{}); err == nil {
			e, err := a.Wait()
			sane(t, e, err)
		}
		_, _ = c.InspectExec(ctx, "x")
		_, _ = c.Top(ctx)
		_, _ = c.Stats(ctx)
		_ = c.TarOut(ctx, "/", io.Discard, nil)
		_ = c.Tree(ctx, func(tether.TreeEntry) error { return nil })
		_ = c.TarIn(ctx, "/", bytes.NewReader(answer), tether.TarInOptions{})
		e, err := c.Wait(ctx)
		sane(t, e, err)
		if l, err := c.Logs(ctx, tether.LogOptions{}); err == nil {
			_, _ = l.Next()
			_ = l.Close()
		}
		_ = c.Close()
		<-done
		if ctx.Err() != nil {
			t.Fatal("it took for ever")
		}
	})
}

// sane fails where a guest's word got through that nobody should act on.
func sane(t *testing.T, e tether.Exit, err error) {
	t.Helper()
	if e.Code < 0 || e.Code > 255 {
		t.Errorf("a process ended with code %d", e.Code)
	}
	text := e.Error + e.Signal
	if err != nil {
		text += err.Error()
	}
	if strings.ContainsAny(text, "\x1b\x07\x00") || len(text) > 16<<10 {
		t.Errorf("%.200q", text)
	}
}
