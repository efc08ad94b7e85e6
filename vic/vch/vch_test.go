package vch_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/vch"
)

func spec(e *testlab.Env, name string) vch.Spec {
	return vch.Spec{Name: name, ImageStore: "datastore1", NIC: e.Engine.VCH().Owner().NIC}
}

func TestLife(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	ctx := t.Context()
	before := e.Files(t)
	o := vch.Options{BootISO: e.ISO}
	s := spec(e, "one")
	s.ID = strings.Repeat("ab", 16)
	h, err := vch.Create(ctx, e.Client, s, o)
	if err != nil {
		t.Fatal(err)
	}
	again, err := vch.Create(ctx, e.Client, s, o)
	if err != nil || again.Owner().Pool != h.Owner().Pool {
		t.Errorf("the same ID again: %v", err)
	}
	if _, err := vch.Create(ctx, e.Client, spec(e, "one"), o); !errors.Is(err, vic.ErrConflict) {
		t.Errorf("the name with another ID: %v", err)
	}
	opened, err := vch.Open(ctx, e.Connect(t), "one")
	if err != nil || opened.Owner().ID != s.ID || opened.Owner().Authority == "" {
		t.Errorf("opened %+v, %v", opened, err)
	}
	all, err := vch.List(ctx, e.Client)
	if err != nil || len(all) != 2 || all[0].Name != "one" || all[1].Name != "test" || all[0].State != "ready" {
		t.Errorf("listed %+v, %v", all, err)
	}
	for range 2 {
		if err := vch.Delete(ctx, e.Client, "one"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := vch.Open(ctx, e.Client, "one"); !errors.Is(err, vic.ErrNotFound) {
		t.Errorf("after its deletion: %v", err)
	}
	if after := e.Files(t); len(after) != len(before) {
		t.Errorf("left: %v", after)
	}
}

func TestSpecRefused(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	for _, c := range []struct {
		field  string
		kind   error
		change func(*vch.Spec, *vch.Options)
	}{
		{"Name", vic.ErrInvalid, func(s *vch.Spec, _ *vch.Options) { s.Name = "a/b" }},
		{"Name", vic.ErrInvalid, func(s *vch.Spec, _ *vch.Options) { s.Name = strings.Repeat("n", 32) }},
		{"ID", vic.ErrInvalid, func(s *vch.Spec, _ *vch.Options) { s.ID = "../x" }},
		{"ImageStore", vic.ErrInvalid, func(s *vch.Spec, _ *vch.Options) { s.ImageStore = "datastore1/../.." }},
		{"ImageStore", vic.ErrNotFound, func(s *vch.Spec, _ *vch.Options) { s.ImageStore = "nowhere" }},
		{"Compute", vic.ErrNotFound, func(s *vch.Spec, _ *vch.Options) { s.Compute = "nowhere" }},
		{"cluster1", vic.ErrNotFound, func(s *vch.Spec, _ *vch.Options) { s.Compute = "nowhere" }},
		{"NIC", vic.ErrInvalid, func(s *vch.Spec, _ *vch.Options) { s.NIC = vic.NIC{} }},
		{"CPUs", vic.ErrInvalid, func(s *vch.Spec, _ *vch.Options) { s.CPUs = 1000 }},
		{"MemoryMB", vic.ErrInvalid, func(s *vch.Spec, _ *vch.Options) { s.MemoryMB = 3 }},
		{"BootISO", vic.ErrInvalid, func(_ *vch.Spec, o *vch.Options) { o.BootISO = "/does/not/exist" }},
		{"BootISO", vic.ErrInvalid, func(_ *vch.Spec, o *vch.Options) { o.BootISO = t.TempDir() }},
	} {
		s, o := spec(e, "bad"), vch.Options{BootISO: e.ISO}
		c.change(&s, &o)
		_, err := vch.Create(t.Context(), e.Client, s, o)
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%s: got %v, want %v", c.field, err, c.kind)
		}
	}
	if all, err := vch.List(t.Context(), e.Client); err != nil || len(all) != 1 {
		t.Errorf("after refusals: %+v, %v", all, err)
	}
}

// Of several creators of one name one wins, and the others leave nothing.
func TestConcurrentCreators(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	const n = 6
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			_, errs[i] = vch.Create(t.Context(), e.Client, spec(e, "same"), vch.Options{BootISO: e.ISO})
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, vic.ErrConflict) {
			t.Errorf("a loser's error: %v", err)
		}
	}
	if won != 1 {
		t.Errorf("%d creators won", won)
	}
	for _, f := range e.Files(t) {
		if strings.Contains(f, ".new-") {
			t.Errorf("left: %s", f)
		}
	}
	if err := vch.Delete(t.Context(), e.Client, "same"); err != nil {
		t.Fatal(err)
	}
}

// A creation that fails late undoes what it made; one that a crash cut off is
// seen as such and can be deleted.
func TestUndoAndCrash(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	ctx := t.Context()
	root := objects(t, e)
	// Somebody else's folder of the name: found only after the pool was made.
	if _, err := root.folder.CreateFolder(ctx, "late"); err != nil {
		t.Fatal(err)
	}
	_, err := vch.Create(ctx, e.Client, spec(e, "late"), vch.Options{BootISO: e.ISO})
	var ve *vic.Error
	if !errors.Is(err, vic.ErrConflict) || !errors.As(err, &ve) || len(ve.Left) > 0 {
		t.Errorf("got %v", err)
	}
	if got := objects(t, e).pools; len(got) != len(root.pools) {
		t.Errorf("pools left: %v", got)
	}
	if _, err := vch.Open(ctx, e.Client, "late"); !errors.Is(err, vic.ErrNotFound) {
		t.Errorf("after the undo: %v", err)
	}

	// As a crash leaves it: the record says "creating" and names no pool yet.
	if _, err := vch.Create(ctx, e.Client, spec(e, "crash"), vch.Options{BootISO: e.ISO}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(e.Datastore(), "vic/vch/crash/vch.json")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), `"state": "ready"`, `"state": "creating"`, 1)
	i := strings.Index(text, `"pool": {`)
	j := strings.Index(text, `"datastore": {`)
	text = text[:i] + `"pool": {"kind":"","id":""}, "folder": {"kind":"","id":""}, ` + text[j:]
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := vch.Open(ctx, e.Client, "crash"); !errors.Is(err, vic.ErrState) {
		t.Errorf("open of what is half made: %v", err)
	}
	if err := vch.Delete(ctx, e.Client, "crash"); err != nil {
		t.Fatal(err)
	}
	if got := objects(t, e).pools; len(got) != len(root.pools) {
		t.Errorf("pools left: %v", got)
	}
	// A record that is none is an error, not a missing VCH.
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("<html>"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := vch.Open(ctx, e.Client, "crash"); !errors.Is(err, vic.ErrInvalid) {
		t.Errorf("open of a damaged record: %v", err)
	}
}

type inventory struct {
	folder *object.Folder
	pools  []*object.ResourcePool
}

func objects(t *testing.T, e *testlab.Env) inventory {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	f := find.NewFinder(e.Client.Vim())
	dc, err := f.Datacenter(ctx, e.Client.Datacenter().Name)
	if err != nil {
		t.Fatal(err)
	}
	folders, err := dc.Folders(ctx)
	if err != nil {
		t.Fatal(err)
	}
	pools, err := f.SetDatacenter(dc).ResourcePoolList(ctx, "*/Resources/*")
	if err != nil {
		t.Fatal(err)
	}
	return inventory{folders.VmFolder, pools}
}
