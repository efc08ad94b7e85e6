package tether_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/vicsdk/vic-go/vic/tether"
)

// BenchmarkRecord writes output into a log.
func BenchmarkRecord(b *testing.B) {
	g := newGuest(b, nil)
	p := bytes.Repeat([]byte("a line of output as programs write them, of some length\n"), 32<<10/56)
	w := g.output.Writer(tether.Stdout)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if _, err := w.Write(p); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadLog reads a log's entries.
func BenchmarkReadLog(b *testing.B) {
	log := bytes.Repeat([]byte(line(1, "a line of output as programs write them, of some length\n")), 1000)
	b.SetBytes(int64(len(log)))
	for b.Loop() {
		l := tether.NewLogReader(bytes.NewReader(log))
		for {
			if _, err := l.Next(); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkAttach has an attacher take the output of a running process.
func BenchmarkAttach(b *testing.B) {
	g := newGuest(b, nil)
	ctx := testContext(b)
	c := g.dial(ctx)
	r, w := io.Pipe()
	a, err := c.Attach(ctx, tether.AttachOptions{Streams: tether.Streams{Stdout: w}})
	if err != nil {
		b.Fatal(err)
	}
	p := bytes.Repeat([]byte("a line of output as programs write them, of some length\n"), 32<<10/56)
	out := g.output.Writer(tether.Stdout)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if _, err := out.Write(p); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(r, p); err != nil {
			b.Fatal(err)
		}
	}
	_ = w.Close()
	_ = a.Detach()
}
