package containervm_test

import (
	"bytes"
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
)

// A network that breaks again and again costs an attachment time, but no byte
// of output, and brings none twice.
func TestOutputSurvivesLostConnections(t *testing.T) {
	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	cfg, err := e.Lab.Config()
	if err != nil {
		t.Fatal(err)
	}
	dial := cfg.DialGuest
	var dials atomic.Int32
	cfg.DialGuest = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil || dials.Add(1) > 3 {
			return c, err
		}
		return &breaking{Conn: c, left: 60 << 10}, nil
	}
	c, err := vic.Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.WithoutCancel(t.Context()))

	const lines = 8000
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	_, exit, err := e.Open(t, c, nil).Run(ctx, engine.RunSpec{
		Image: image, Remove: true,
		Container: containervm.Spec{Args: []string{"sh", "-c", `i=0; while [ $i -lt 8000 ]; do echo "line $i of the output"; i=$((i+1)); done; exit 4`}},
		Streams:   tether.Streams{Stdout: &out},
	})
	if err != nil || exit.Code != 4 {
		t.Fatalf("exit %+v, %v", exit, err)
	}
	got := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(got) != lines || got[0] != "line 0 of the output" || got[lines-1] != "line 7999 of the output" {
		t.Errorf("%d lines came, first %q, last %q", len(got), got[0], got[len(got)-1])
	}
	if n := dials.Load(); n < 4 {
		t.Errorf("the guest was dialled %d times: the connection did not break", n)
	}
}

// breaking is a connection that ends after so many bytes were read.
type breaking struct {
	net.Conn
	left int
}

func (b *breaking) Read(p []byte) (int, error) {
	if b.left <= 0 {
		b.Conn.Close()
		return 0, net.ErrClosed
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
