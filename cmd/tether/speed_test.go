//go:build linux && amd64

package main_test

import (
	"io"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
)

// byteCount counts what is written to it.
type byteCount int64

func (c *byteCount) Write(p []byte) (int, error) {
	*c += byteCount(len(p))
	return len(p), nil
}

// TestBootThroughput has a process write faster than anyone can read, and an
// attacher that must get every byte of it, from the log where it falls behind.
func TestBootThroughput(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		bytes        byteCount
	}{
		{"lines", "read x; yes 'a line of output as programs write them, of some length' | head -c 1048576", 1 << 20},
		{"zeroes", "read x; dd if=/dev/zero bs=64k count=16 2>/dev/null", 1 << 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// A zero takes six bytes in the log: the disk has room for all.
			g := boot(t, bootOptions{config: stdin, diskMB: 128}, "sh", "-c", tt.script)
			ctx := testContext(t)
			c := g.dial(ctx)
			var n byteCount
			in := newGate()
			a, err := c.Attach(ctx, tether.AttachOptions{Streams: tether.Streams{Stdin: in, Stdout: &n}})
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			in.open()
			exit, err := a.Wait()
			if err != nil || exit.Code != 0 || n != tt.bytes {
				t.Fatalf("%+v, %v, %d bytes", exit, err, n)
			}
			t.Logf("%.1f MB/s", float64(n)/1e6/time.Since(start).Seconds())
			g.off()
		})
	}
}

// gate is an input of one line that comes when it is opened.
type gate struct {
	ready chan struct{}
	sent  bool
}

func newGate() *gate { return &gate{ready: make(chan struct{})} }

func (g *gate) open() { close(g.ready) }

func (g *gate) Read(p []byte) (int, error) {
	<-g.ready
	if g.sent {
		return 0, io.EOF
	}
	g.sent = true
	return copy(p, "\n"), nil
}
