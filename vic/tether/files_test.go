package tether_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vicsdk/vic-go/vic/tether"
)

// oneFile is a container with a single file, which is as long as its path says.
type oneFile struct{ got chan string }

func (oneFile) Lstat(path string) (tether.FileInfo, error) {
	if path == "/none" {
		return tether.FileInfo{}, fmt.Errorf("%w: %s", tether.ErrNotFound, path)
	}
	return tether.FileInfo{Name: path, Mode: fs.ModeSymlink | 0o777, Link: "x"}, nil
}

func (o oneFile) TarOut(w io.Writer, path string, started func(tether.FileInfo) error) error {
	i, err := o.Lstat(path)
	if err != nil {
		return err
	}
	if err := started(i); err != nil {
		return err
	}
	if _, err := io.WriteString(w, strings.Repeat("x", len(path))); err != nil {
		return err
	}
	if path == "/half" {
		return errors.New("the rest is lost")
	}
	return nil
}

func (o oneFile) TarIn(r io.Reader, dir string, to tether.TarInOptions) error {
	if dir == "/refused" {
		return fmt.Errorf("%w: %t", tether.ErrConflict, to.KeepTypes)
	}
	b, err := io.ReadAll(r)
	o.got <- fmt.Sprint(len(b), err)
	return err
}

func (oneFile) Tree(each func(tether.TreeEntry) error) error {
	for i := range 3 {
		e := tether.TreeEntry{Path: fmt.Sprint("f", i), Mode: fs.ModeDir | 0o755, UID: 1, GID: 2, Inode: 1 << 40, Changed: time.Unix(-5, int64(i)).UTC(), Mount: i == 1}
		if err := each(e); err != nil {
			return err
		}
	}
	return nil
}

func TestFilesOverTheProtocol(t *testing.T) {
	f := oneFile{make(chan string, 1)}
	g := newGuestWith(t, nil, func(c *tether.ServerConfig) { c.Files = f })
	g.run("sleep 1000")
	ctx := testContext(t)
	c := g.dial(ctx)
	for n := range 300 {
		path := strings.Repeat("p", 1+n*7)
		var b bytes.Buffer
		var told tether.FileInfo
		if err := c.TarOut(ctx, path, &b, func(i tether.FileInfo) error { told = i; return nil }); err != nil || b.Len() != len(path) || told.Name != path {
			t.Fatalf("out %d: %d bytes of %q, %v", n, b.Len(), told.Name, err)
		}
	}
	if err := c.TarOut(ctx, "/none", io.Discard, nil); !errors.Is(err, tether.ErrNotFound) {
		t.Errorf("out of nothing: %v", err)
	}
	if err := c.TarOut(ctx, "/half", io.Discard, nil); err == nil || !strings.Contains(err.Error(), "the rest is lost") {
		t.Errorf("an error at the end: %v", err)
	}
	stop := errors.New("stop")
	if err := c.TarOut(ctx, "/x", io.Discard, func(tether.FileInfo) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("not wanted: %v", err)
	}
	if err := c.TarIn(ctx, "/", strings.NewReader(fill(3<<20)), tether.TarInOptions{}); err != nil || <-f.got != "3145728 <nil>" {
		t.Errorf("in: %v", err)
	}
	// What ends too early is not taken for an end.
	broken := errors.New("broken")
	if err := c.TarIn(ctx, "/", io.MultiReader(strings.NewReader("half"), failing{broken}), tether.TarInOptions{}); !errors.Is(err, broken) {
		t.Errorf("in, cut off: %v", err)
	}
	if got := <-f.got; got != "4 the tar was cut off" {
		t.Errorf("the guest saw %s", got)
	}
	if err := c.TarIn(ctx, "/refused", strings.NewReader(fill(8<<20)), tether.TarInOptions{KeepTypes: true}); !errors.Is(err, tether.ErrConflict) || !strings.HasSuffix(err.Error(), "true") {
		t.Errorf("in, refused: %v", err)
	}
	var got, want []tether.TreeEntry
	if err := c.Tree(ctx, func(e tether.TreeEntry) error { got = append(got, e); return nil }); err != nil {
		t.Fatal(err)
	}
	_ = f.Tree(func(e tether.TreeEntry) error { want = append(want, e); return nil })
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if err := c.Tree(ctx, func(tether.TreeEntry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a tree that is not wanted: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
