package rpci_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/internal/rpci"
)

func frame(t testing.TB, seq uint32, p string) []byte {
	t.Helper()
	b, err := rpci.AppendFrame(nil, seq, []byte(p))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReaderResynchronises(t *testing.T) {
	whole := frame(t, 7, "info-get guestinfo.a")
	broken := append([]byte(nil), whole...)
	broken[12] ^= 1
	for _, c := range []struct {
		name  string
		noise []byte
	}{
		{"nothing", nil},
		{"noise", []byte("kernel: oops \xF5\x1C\xF5")},
		{"cut in the header", whole[:5]},
		{"cut in the payload", whole[:18]},
		{"wrong checksum", broken},
		{"length above the limit", []byte("\xF5\x1C\x00\x00\x00\x00\xFF\xFF\xFF\xFF")},
		{"length that never comes", []byte("\xF5\x1C\x00\x00\x00\x00\xFF\xFF\x0F\x00")},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := net.Pipe()
			defer a.Close()
			defer b.Close()
			go func() {
				_, _ = a.Write(c.noise)
				_, _ = a.Write(whole)
			}()
			_ = b.SetReadDeadline(time.Now().Add(10 * time.Second))
			seq, p, err := rpci.NewReader(b).Next()
			if err != nil || seq != 7 || string(p) != "info-get guestinfo.a" {
				t.Fatalf("got %d %q %v", seq, p, err)
			}
		})
	}
}

func TestClientRepeatsWhatIsLost(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	values := map[string]string{}
	go func() {
		r := rpci.NewReader(b)
		if _, _, err := r.Next(); err != nil { // the first request gets no answer
			return
		}
		_ = rpci.Serve(b, func(q string) string {
			verb, rest, _ := strings.Cut(q, " ")
			k, v, _ := strings.Cut(rest, " ")
			if verb == "info-set" {
				values[k] = v
				return "1 "
			}
			if v, ok := values[k]; ok {
				return "1 " + v
			}
			return "0 No value found"
		})
	}()
	c := rpci.NewClient(a, 20*time.Millisecond)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.Set(ctx, "guestinfo.x", "a b  c"); err != nil {
		t.Fatal(err)
	}
	if v, err := c.Get(ctx, "guestinfo.x"); err != nil || v != "a b  c" {
		t.Fatalf("got %q %v", v, err)
	}
	if _, err := c.Get(ctx, "guestinfo.y"); !errors.Is(err, rpci.ErrNotFound) {
		t.Fatalf("missing key: %v", err)
	}
	short, cancel2 := context.WithTimeout(ctx, 30*time.Millisecond)
	defer cancel2()
	x, y := net.Pipe()
	defer x.Close()
	defer y.Close()
	go func() { _, _ = io.Copy(io.Discard, y) }()
	if _, err := rpci.NewClient(x, time.Hour).Get(short, "k"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("silent host: %v", err)
	}
}

func FuzzReader(f *testing.F) {
	f.Add(frame(f, 1, "info-get guestinfo.vic.config"), uint64(1))
	f.Add(append(frame(f, 2, "info-set a b")[:9], frame(f, 3, "info-get c")...), uint64(2))
	f.Fuzz(func(t *testing.T, noise []byte, seed uint64) {
		// Whatever came before, a frame of more than the noise's size that
		// follows enough of its repeats is found.
		want := []byte("the frame")
		good, _ := rpci.AppendFrame(nil, 0xfffffff0, want)
		var s bytes.Buffer
		s.Write(noise)
		for i := 0; i < 3; i++ {
			s.Write(good)
		}
		r := rpci.NewReader(chunked{&s, rand.New(rand.NewPCG(seed, 1))})
		for {
			seq, p, err := r.Next()
			if err != nil {
				t.Fatalf("the frame was lost: %v", err)
			}
			if seq == 0xfffffff0 && bytes.Equal(p, want) {
				return
			}
		}
	})
}

type chunked struct {
	r io.Reader
	n *rand.Rand
}

func (c chunked) Read(p []byte) (int, error) {
	return c.r.Read(p[:min(len(p), 1+c.n.IntN(40))])
}
