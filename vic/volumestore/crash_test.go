package volumestore_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/volumestore"
)

// mortal is a client's way to vSphere that ends before, or just after, some
// change of files: as far as the datastore can tell, its process was killed there.
type mortal struct {
	next soap.RoundTripper
	left atomic.Int64 // half changes: an odd number ends after one was asked for
	dead atomic.Bool
}

var errDead = errors.New("this process is dead")

func (m *mortal) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	if m.dead.Load() {
		return errDead
	}
	switch req.(type) {
	case *methods.MoveDatastoreFile_TaskBody, *methods.DeleteDatastoreFile_TaskBody, *methods.MakeDirectoryBody,
		*methods.CreateVirtualDisk_TaskBody, *methods.DeleteVirtualDisk_TaskBody, *methods.ExtendVirtualDisk_TaskBody:
		if n := m.left.Add(-2); n < 0 {
			m.dead.Store(true)
			if n == -1 {
				_ = m.next.RoundTrip(ctx, req, res)
			}
			return errDead
		}
	}
	return m.next.RoundTrip(ctx, req, res)
}

// Creation, deletion and growth are cut off before and after each change that they
// make: a volume is there whole or not at all, the next to come completes the
// work, and a sweep leaves nothing.
func TestCutOff(t *testing.T) {
	e, s, places := open(t)
	ctx := t.Context()
	for _, op := range []struct {
		name string
		do   func(*volumestore.Store) error
	}{
		{"create", func(s *volumestore.Store) error {
			_, err := s.Create(ctx, volumestore.Spec{Name: "v", Bytes: 1 << 30, Labels: map[string]string{"k": "v"}})
			return err
		}},
		{"delete", func(s *volumestore.Store) error { return s.Delete(ctx, "v") }},
		{"grow", func(s *volumestore.Store) error { _, err := s.Grow(ctx, "v", 2<<30); return err }},
	} {
		t.Run(op.name, func(t *testing.T) {
			for n := int64(0); ; n++ {
				if op.name != "create" {
					if _, err := s.Create(ctx, volumestore.Spec{Name: "v", Bytes: 1 << 30}); err != nil {
						t.Fatal(err)
					}
				}
				cl := e.Connect(t)
				dying, err := volumestore.Open(cl, places)
				if err != nil {
					t.Fatal(err)
				}
				alive := cl.Vim().RoundTripper
				soon := &mortal{next: alive}
				soon.left.Store(n)
				cl.Vim().RoundTripper = soon
				err = op.do(dying)
				cl.Vim().RoundTripper = alive
				if !soon.dead.Load() {
					if err != nil || n < 4 {
						t.Errorf("uncut, after %d half changes: %v", n, err)
					}
					clearAll(t, e, s)
					return
				}
				if err == nil && op.name != "delete" {
					t.Errorf("%d: no error of one that died", n)
				}
				v, err := s.Open(ctx, "v")
				if err != nil && !errors.Is(err, vic.ErrNotFound) {
					t.Fatalf("%d: %v", n, err)
				}
				if err == nil {
					if _, err := os.Stat(e.Local(t, v.Disk().Path)); err != nil {
						t.Errorf("%d: a volume without a disk: %v", n, err)
					}
				}
				// A sweep of this moment disturbs nobody who may be at work.
				before := files(e)
				if err := s.Sweep(ctx); err != nil {
					t.Fatalf("%d: %v", n, err)
				}
				if op.name == "create" && len(files(e)) != len(before) {
					t.Errorf("%d: a creation of this moment was swept: %v", n, before)
				}
				if err := op.do(s); err != nil {
					t.Errorf("%d: again: %v", n, err)
				}
				clearAll(t, e, s)
			}
		})
	}
}

// clearAll deletes the volume, makes what is left two hours old, and sweeps it.
func clearAll(t *testing.T, e *testlab.Env, s *volumestore.Store) {
	t.Helper()
	if err := s.Delete(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-2 * time.Hour)
	for _, f := range files(e) {
		_ = os.Chtimes(f, old, old)
	}
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := files(e); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// files are what lies in the first store, directories included.
func files(e *testlab.Env) []string {
	var out []string
	home := filepath.Join(e.Datastore(), "vic/volumes/test")
	_ = filepath.WalkDir(home, func(p string, _ fs.DirEntry, err error) error {
		if err == nil && p != home && !strings.Contains(p, ".new-sweep") {
			out = append(out, p)
		}
		return nil
	})
	return out
}
