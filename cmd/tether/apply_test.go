//go:build linux && amd64

package main_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
)

// A helper VM runs nothing, writes to its disk what it is sent, and ends when
// it is told to.
func TestBootHelper(t *testing.T) {
	const size = 64 << 20
	g := boot(t, bootOptions{diskMB: size >> 20, config: func(c *tether.Config) {
		c.Process, c.Hostname, c.Apply = tether.Process{}, "", &tether.Apply{Idle: time.Minute}
	}})
	ctx := testContext(t)
	c := g.dial(ctx)
	want, err := os.ReadFile(g.disk)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = rand.Read(want[512 : 5<<20]) // not a whole page at its start
	_, _ = rand.Read(want[size-4096:])
	start := time.Now()
	n, err := c.Apply(ctx, 0, size, func(w io.WriterAt) error {
		if _, err := w.WriteAt(want[512:5<<20], 512); err != nil {
			return err
		}
		_, err := w.WriteAt(want[size-4096:], size-4096)
		return err
	})
	if err != nil || n != 5<<20-512+4096 {
		t.Fatalf("Apply: %d, %v", n, err)
	}
	t.Logf("%d bytes in %v", n, time.Since(start))
	got, err := os.ReadFile(g.disk)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the disk is not what was sent")
	}
	// The kernel has let go of the disk, and finds it again.
	for range 2 {
		_, err = c.Apply(ctx, 0, size, func(w io.WriterAt) error { _, err := w.WriteAt(make([]byte, 512), size); return err })
		if !errors.Is(err, tether.ErrInvalid) || !strings.Contains(err.Error(), "the disk has") {
			t.Errorf("behind the end: %v", err)
		}
	}
	if err := c.PowerOff(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-g.exited:
	case <-time.After(bootTime):
		t.Fatal("the VM did not power off")
	}
}

func TestBootHelperEndsAlone(t *testing.T) {
	g := boot(t, bootOptions{config: func(c *tether.Config) {
		c.Process, c.Hostname, c.Apply = tether.Process{}, "", &tether.Apply{Idle: time.Second}
	}})
	select {
	case <-g.exited:
	case <-time.After(bootTime):
		t.Fatal("the VM did not power off")
	}
	if !strings.Contains(g.consoleText(), "no controller has spoken") {
		t.Error("it does not say why it ended")
	}
}
