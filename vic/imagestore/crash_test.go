package imagestore_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

// mortal is a client's way to vSphere that ends before some change of files: as
// far as the datastore can tell, its process was killed there.
type mortal struct {
	next soap.RoundTripper
	left atomic.Int64
	dead atomic.Bool
}

var errDead = errors.New("this process is dead")

func (m *mortal) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	switch req.(type) {
	case *methods.MoveDatastoreFile_TaskBody, *methods.DeleteDatastoreFile_TaskBody, *methods.MakeDirectoryBody, *methods.CreateVirtualDisk_TaskBody:
		if m.left.Add(-1) < 0 {
			m.dead.Store(true)
		}
	}
	if m.dead.Load() {
		return errDead
	}
	return m.next.RoundTrip(ctx, req, res)
}

// Every operation is cut off before each change of files that it makes (without
// VIC_SOAK, before a few of them). What is
// published is whole then, and another process ends the work as if nothing had
// happened.
func TestCutOffAtEveryChange(t *testing.T) {
	const stands = 400 * time.Millisecond
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	s, m := openStore(t, e, stands), newMemory()
	m.tagImage("a", nil, "one", "two", "three")
	m.tagImage("b", nil, "one", "other")
	m.tagImage("old", nil, "one", "two", "old")
	m.tagImage("new", nil, "one", "two", "new", "newer")
	pull(t, s, m, "a")
	b := pull(t, s, m, "b")
	pull(t, s, m, "old")
	vm := container(t, e, "box", b)
	d, err := vm.RestingDisk(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tarball := tarOf(t, entry{name: "in/", typ: tar.TypeDir}, entry{name: "in/file", body: strings.Repeat("in", 9000)})

	store := filepath.Join(e.Datastore(), "vic/images")
	box := filepath.Join(e.Datastore(), "box")
	saved := t.TempDir()
	save := func(dir string) {
		copyDir(t, store, filepath.Join(saved, dir, "store"))
		copyDir(t, box, filepath.Join(saved, dir, "box"))
	}
	restore := func(dir string) {
		copyDir(t, filepath.Join(saved, dir, "store"), store)
		copyDir(t, filepath.Join(saved, dir, "box"), box)
	}
	save("whole")
	// With a layer that nobody needs, and an image without a name.
	if _, err := s.Delete(t.Context(), repo+"old", nil); err != nil {
		t.Fatal(err)
	}
	old := m.tags["old"]
	m.tags["a2"] = old
	pull(t, s, m, "a2")
	m.tags["a2"] = m.tags["a"]
	pull(t, s, m, "a2")
	if err := os.Remove(filepath.Join(store, "images", old.Digest.Encoded()+".json")); err != nil {
		t.Fatal(err)
	}
	save("garbage")

	step := int64(4)
	if os.Getenv("VIC_SOAK") != "" {
		step = 1
	}
	first := rand.Int64N(step)
	t.Logf("cut off before change %d and every %d after it", first, step)
	for _, c := range []struct {
		name, from string
		op         func(s *imagestore.Store) error
	}{
		{"pull", "whole", func(s *imagestore.Store) error { _, err := s.Pull(t.Context(), m, repo+"new", nil); return err }},
		{"pull of all", "empty", func(s *imagestore.Store) error { _, err := s.Pull(t.Context(), m, repo+"a", nil); return err }},
		{"delete", "whole", func(s *imagestore.Store) error { _, err := s.Delete(t.Context(), repo+"a", nil); return err }},
		{"delete all", "whole", func(s *imagestore.Store) error {
			_, err := s.Prune(t.Context(), &imagestore.PruneOptions{All: true})
			return err
		}},
		{"gc", "garbage", func(s *imagestore.Store) error { _, err := s.GC(t.Context()); return err }},
		{"copy in", "whole", func(s *imagestore.Store) error { return s.TarIn(t.Context(), d, "/", bytes.NewReader(tarball), nil) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			begin := func() {
				if c.from == "empty" {
					if err := os.RemoveAll(store); err != nil {
						t.Fatal(err)
					}
					return
				}
				restore(c.from)
			}
			begin()
			end := func() {
				t.Helper()
				// A deletion that was cut off has taken names, and may leave the
				// rest to these.
				if _, err := s.Prune(t.Context(), nil); err != nil {
					t.Fatal(err)
				}
				if _, err := s.GC(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.op(s); err != nil {
				t.Fatal(err)
			}
			end()
			want := state(t, e)
			for n := first; ; n += step {
				begin()
				cl := e.Connect(t)
				soon := &mortal{next: cl.Vim().RoundTripper}
				soon.left.Store(n)
				dying, err := imagestore.Open(t.Context(), cl, e.Engine.VCH().Images(), imagestore.WithLeaseTime(imagestore.Options{Bytes: small}, stands))
				if err != nil {
					t.Fatal(err)
				}
				cl.Vim().RoundTripper = soon
				err = c.op(dying)
				cut := soon.dead.Load()
				cl.Vim().RoundTripper = soon.next
				if !cut {
					if err != nil {
						t.Fatal(err)
					}
					t.Logf("%d changes", n)
					return
				}
				if c.from != "empty" || n > 0 {
					checkStore(t, e, false)
				}
				if c.name == "copy in" && err != nil {
					f, err := s.OpenFS(t.Context(), d)
					if err != nil {
						t.Fatalf("cut off before change %d: %v", n, err)
					}
					// All of it or nothing.
					if i, err := f.Stat("in/file"); err == nil && i.Size != 18000 || err != nil && !errors.Is(err, vic.ErrNotFound) {
						t.Errorf("cut off before change %d: %+v, %v", n, i, err)
					}
					f.Close()
				}
				if err := c.op(s); err != nil {
					t.Fatalf("after it was cut off before change %d: %v", n, err)
				}
				time.Sleep(stands + 20*time.Millisecond)
				if err := s.Sweep(t.Context()); err != nil {
					t.Fatal(err)
				}
				for _, dir := range []string{"layers", "images", "names", "leases"} {
					for _, f := range storeFiles(t, e, dir) {
						if dir == "leases" || strings.HasPrefix(f, ".") {
							t.Errorf("cut off before change %d: %s/%s was not swept", n, dir, f)
						}
					}
				}
				end()
				if d := cmp.Diff(want, state(t, e)); d != "" {
					t.Fatalf("after it was cut off before change %d (-want +got):\n%s", n, d)
				}
				checkStore(t, e, false)
			}
		})
	}
}

// state lists what a store and the container have.
func state(t *testing.T, e *testlab.Env) []string {
	t.Helper()
	var out []string
	for _, dir := range []string{"layers", "images", "names", "leases"} {
		for _, n := range storeFiles(t, e, dir) {
			out = append(out, dir+"/"+n)
		}
	}
	box, err := os.ReadDir(filepath.Join(e.Datastore(), "box"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range box {
		out = append(out, n.Name())
	}
	return out
}
