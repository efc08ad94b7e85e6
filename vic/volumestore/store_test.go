package volumestore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vmware/govmomi/find"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/lab"
	"github.com/vicsdk/vic-go/vic/volumestore"
)

// open gives a lab with two datastores and stores on both.
func open(t *testing.T) (*testlab.Env, *volumestore.Store, map[string]vic.Place) {
	t.Helper()
	e := testlab.Start(t, testlab.Options{NoBoot: true, Lab: func(o *lab.Options) {
		o.Datastores, o.NativeDatastores = []string{"datastore1", "native"}, []string{"native"}
	}})
	places := map[string]vic.Place{
		"default": {Datastore: datastore(t, e, "datastore1"), Dir: "vic/volumes/test"},
		"other":   {Datastore: datastore(t, e, "native"), Dir: "some/where"},
	}
	s, err := volumestore.Open(e.Client, places)
	if err != nil {
		t.Fatal(err)
	}
	return e, s, places
}

func datastore(t *testing.T, e *testlab.Env, name string) vic.Ref {
	t.Helper()
	ds, err := find.NewFinder(e.Client.Vim()).Datastore(t.Context(), e.Client.Datacenter().Name+"/datastore/"+name)
	if err != nil {
		t.Fatal(err)
	}
	return vic.Ref{Kind: "datastore", ID: ds.Reference().Value, Name: name}
}

func names(vs []*volumestore.Volume) []string {
	out := []string{}
	for _, v := range vs {
		out = append(out, v.Info().Store+"/"+v.Name())
	}
	return out
}

func TestVolumesOfTwoStores(t *testing.T) {
	e, s, places := open(t)
	ctx := t.Context()
	if got, err := s.List(ctx, nil); err != nil || len(got) > 0 {
		t.Fatalf("nothing is there: %v, %v", names(got), err)
	}
	a, err := s.Create(ctx, volumestore.Spec{Name: "alpha", Options: map[string]string{"Capacity": "200MiB"}, Labels: map[string]string{"use": "db", "x": ""}})
	if err != nil {
		t.Fatal(err)
	}
	if i := a.Info(); i.Bytes != 256<<20 || i.Store != "default" || i.Anonymous || a.Disk().Path != "[datastore1] vic/volumes/test/alpha/disk.vmdk" || a.Disk().Bytes != i.Bytes {
		t.Errorf("%+v, %+v", i, a.Disk())
	}
	b, err := s.Create(ctx, volumestore.Spec{Name: "beta", Options: map[string]string{"volumestore": "other"}})
	if err != nil || b.Info().Store != "other" || b.Info().Bytes != volumestore.DefaultBytes {
		t.Fatalf("%+v, %v", b, err)
	}
	anon, err := s.Create(ctx, volumestore.Spec{})
	if err != nil || len(anon.Name()) != 64 || !anon.Info().Anonymous {
		t.Fatalf("%+v, %v", anon, err)
	}

	// Another process finds the same; creating again opens, or tells what differs.
	s2, err := volumestore.Open(e.Connect(t), places)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s2.Create(ctx, volumestore.Spec{Name: "alpha", Bytes: 250 << 20})
	if err != nil || !again.Info().Created.Equal(a.Info().Created) || again.Info().Labels["use"] != "db" {
		t.Errorf("%+v, %v", again, err)
	}
	for what, spec := range map[string]volumestore.Spec{
		"size":  {Name: "alpha", Bytes: 1 << 30},
		"label": {Name: "alpha", Labels: map[string]string{"use": "web"}},
		"store": {Name: "alpha", Store: "other"},
	} {
		if _, err := s2.Create(ctx, spec); !errors.Is(err, vic.ErrConflict) || !strings.Contains(err.Error(), what) {
			t.Errorf("another %s: %v", what, err)
		}
	}
	yes, no := true, false
	for _, c := range []struct {
		o    *volumestore.ListOptions
		want []string
	}{
		{nil, []string{"default/" + anon.Name(), "default/alpha", "other/beta"}},
		{&volumestore.ListOptions{Names: []string{"alpha"}, Labels: []string{"use=db"}}, []string{"default/alpha"}},
		{&volumestore.ListOptions{Labels: []string{"use", "x"}}, []string{"default/alpha"}},
		{&volumestore.ListOptions{Labels: []string{"use=web"}}, []string{}},
		{&volumestore.ListOptions{Unlabelled: []string{"use"}, Names: []string{"beta", "gamma"}}, []string{"other/beta"}},
		{&volumestore.ListOptions{Anonymous: true, Dangling: &yes}, []string{"default/" + anon.Name()}},
		{&volumestore.ListOptions{Dangling: &no}, []string{}},
	} {
		got, err := s2.List(ctx, c.o)
		want := slices.Sorted(slices.Values(c.want))
		have := slices.Sorted(slices.Values(names(got)))
		if err != nil || !slices.Equal(have, want) {
			t.Errorf("%+v: got %v, %v, want %v", c.o, have, err, want)
		}
	}
	if g, err := s2.Grow(ctx, "beta", volumestore.DefaultBytes+1); err != nil || g.Info().Bytes != volumestore.DefaultBytes+volumestore.Granule {
		t.Errorf("%+v, %v", g, err)
	}
	if _, err := s2.Grow(ctx, "beta", 1); !errors.Is(err, vic.ErrInvalid) {
		t.Errorf("shrink: %v", err)
	}
	if gone, err := s2.Prune(ctx, nil); err != nil || !slices.Equal(gone, []string{anon.Name()}) {
		t.Errorf("pruned %v, %v", gone, err)
	}
	if gone, err := s2.Prune(ctx, &volumestore.PruneOptions{All: true, Unlabelled: []string{"use"}}); err != nil || !slices.Equal(gone, []string{"beta"}) {
		t.Errorf("pruned %v, %v", gone, err)
	}
	for range 2 {
		if err := s.Delete(ctx, "alpha"); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Open(ctx, "alpha"); !errors.Is(err, vic.ErrNotFound) {
		t.Errorf("after its deletion: %v", err)
	}
	left(t, e, 0)
}

// left counts the files of volumes, which all lie in directories of their own.
func left(t *testing.T, e *testlab.Env, want int) {
	t.Helper()
	var got []string
	for _, dir := range []string{"datastore1/vic/volumes", "native/some/where"} {
		_ = filepath.WalkDir(filepath.Join(e.Lab.Dir(), "datastores", dir), func(p string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				got = append(got, p)
			}
			return nil
		})
	}
	if len(got) != want {
		t.Errorf("%d files, want %d: %v", len(got), want, got)
	}
}

func TestRefused(t *testing.T) {
	e, s, _ := open(t)
	ctx := t.Context()
	long := strings.Repeat("x", 129)
	for _, c := range []struct {
		spec volumestore.Spec
		kind error
		text string
	}{
		{volumestore.Spec{Name: "../x"}, vic.ErrInvalid, "Name"},
		{volumestore.Spec{Name: ".new-x"}, vic.ErrInvalid, "Name"},
		{volumestore.Spec{Name: "a b"}, vic.ErrInvalid, "Name"},
		{volumestore.Spec{Name: "a\x00"}, vic.ErrInvalid, "Name"},
		{volumestore.Spec{Name: "[ds] x"}, vic.ErrInvalid, "Name"},
		{volumestore.Spec{Name: long}, vic.ErrInvalid, "Name"},
		{volumestore.Spec{Name: "x", Store: "nowhere"}, vic.ErrNotFound, "default, other"},
		{volumestore.Spec{Name: "x", Bytes: -1}, vic.ErrInvalid, "Bytes"},
		{volumestore.Spec{Name: "x", Bytes: 2 << 40}, vic.ErrInvalid, "1 TiB"},
		{volumestore.Spec{Name: "x", Options: map[string]string{"Capacity": "-1"}}, vic.ErrInvalid, "Capacity"},
		{volumestore.Spec{Name: "x", Options: map[string]string{"size": "1e9"}}, vic.ErrInvalid, "size"},
		{volumestore.Spec{Name: "x", Options: map[string]string{"size": "999999t"}}, vic.ErrInvalid, "1 TiB"},
		{volumestore.Spec{Name: "x", Options: map[string]string{"size": "9999999999999t"}}, vic.ErrInvalid, "no size"},
		{volumestore.Spec{Name: "x", Options: map[string]string{"size": "NaN"}}, vic.ErrInvalid, "size"},
		{volumestore.Spec{Name: "x", Options: map[string]string{"size": "1g", "capacity": "2g"}}, vic.ErrInvalid, "asked for, too"},
		{volumestore.Spec{Name: "x", Options: map[string]string{"type": "nfs"}}, vic.ErrInvalid, "not known"},
		{volumestore.Spec{Name: "x", Labels: map[string]string{"": "v"}}, vic.ErrInvalid, "Labels"},
		{volumestore.Spec{Name: "x", Labels: map[string]string{"k": strings.Repeat("v", 300<<10)}}, vic.ErrInvalid, "Labels"},
	} {
		if _, err := s.Create(ctx, c.spec); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%.60v: got %.200v, want %v with %q", c.spec, err, c.kind, c.text)
		}
	}
	none, err := volumestore.Open(e.Client, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := none.Create(ctx, volumestore.Spec{Name: "x"}); !errors.Is(err, vic.ErrUnsupported) {
		t.Errorf("without a store: %v", err)
	}
	// A directory that is somebody else's is no volume, and stays.
	home := filepath.Join(e.Datastore(), "vic/volumes/test")
	if err := os.MkdirAll(filepath.Join(home, "foreign"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, volumestore.Spec{Name: "foreign"}); !errors.Is(err, vic.ErrConflict) {
		t.Errorf("a name that is taken otherwise: %v", err)
	}
	// A record that is none is told as such, wherever it would count.
	for text, kind := range map[string]error{
		"<html>":                                    vic.ErrInvalid,
		`{"version":2,"name":"foreign"}`:            vic.ErrUnsupported,
		`{"version":1,"name":"x","bytes":1}`:        vic.ErrInvalid,
		`{"version":1,"name":"foreign","bytes":-1}`: vic.ErrInvalid,
	} {
		if err := os.WriteFile(filepath.Join(home, "foreign/volume.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.List(ctx, nil); !errors.Is(err, kind) {
			t.Errorf("%s: listed with %v", text, err)
		}
		if err := s.Delete(ctx, "foreign"); !errors.Is(err, kind) {
			t.Errorf("%s: deleted with %v", text, err)
		}
	}
	left(t, e, 1)
}

// Of several creators of one name, in one store or in two, one wins.
func TestConcurrentCreators(t *testing.T) {
	e, _, places := open(t)
	for round := range 8 {
		name := fmt.Sprintf("v%d", round)
		var wg sync.WaitGroup
		made := make([]*volumestore.Volume, 6)
		errs := make([]error, 6)
		for i := range made {
			s, err := volumestore.Open(e.Client, places)
			if err != nil {
				t.Fatal(err)
			}
			spec := volumestore.Spec{Name: name}
			if round%2 == 1 {
				spec.Store = []string{"default", "other"}[i%2]
			}
			wg.Go(func() { made[i], errs[i] = s.Create(context.WithoutCancel(t.Context()), spec) })
		}
		wg.Wait()
		s, _ := volumestore.Open(e.Client, places)
		v, err := s.Open(t.Context(), name)
		if err != nil {
			t.Fatalf("round %d: %v; %v", round, err, errs)
		}
		won := 0
		for i, err := range errs {
			switch {
			case err == nil && made[i].Disk() == v.Disk() && made[i].Info().Created.Equal(v.Info().Created):
				won++
			case round%2 == 1 && errors.Is(err, vic.ErrConflict):
			default:
				t.Errorf("round %d: creator %d: %+v, %v", round, i, made[i], err)
			}
		}
		if won == 0 || round%2 == 0 && won != len(made) {
			t.Errorf("round %d: %d have it: %v", round, won, errs)
		}
		if err := s.Delete(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	left(t, e, 0)
}
