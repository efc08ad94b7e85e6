package engine_test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
)

// The controllers' authority is replaced while a container runs, and for one that
// does not, by controllers of the old and of the new one.
func TestRotateAuthority(t *testing.T) {
	t.Parallel()
	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	create := func(eng *engine.Engine, name string) *containervm.VM {
		t.Helper()
		spec := sh(`trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done`)
		spec.Name = name
		vm, err := eng.Create(ctx, engine.RunSpec{Image: image, Detach: true, Container: spec})
		if err != nil {
			t.Fatal(err)
		}
		return vm
	}
	running := create(e.Engine, "running")
	create(e.Engine, "stopped")
	if err := running.Start(ctx); err != nil {
		t.Fatal(err)
	}
	waitLog(t, running, "ready\n")

	cfg, err := e.Lab.Config()
	if err != nil {
		t.Fatal(err)
	}
	oldKey := cfg.Authority.Public()
	_, fresh, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Authority = fresh
	c, err := vic.Connect(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.WithoutCancel(ctx))
	newEngine := e.Open(t, c, nil)
	// reach tells whether a controller gets at a container.
	reach := func(eng *engine.Engine, name string) error {
		t.Helper()
		vm, _, err := eng.Find(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		d, err := vm.Dial(ctx)
		if err == nil {
			d.Close()
		}
		return err
	}
	rotate := func(eng *engine.Engine, want []string, keys ...crypto.PublicKey) {
		t.Helper()
		got, err := eng.RotateAuthority(ctx, keys, nil)
		slices.Sort(got)
		if err != nil || !cmp.Equal(got, want) {
			t.Fatalf("rotated %q, %v", got, err)
		}
	}

	if err := reach(newEngine, "running"); !errors.Is(err, vic.ErrDenied) {
		t.Fatalf("the new authority, of which nobody knows yet: %v", err)
	}
	own := []crypto.PublicKey{fresh.Public()}
	if got, err := newEngine.RotateAuthority(ctx, own, nil); !errors.Is(err, vic.ErrDenied) || len(got) != 0 {
		t.Fatalf("by a client that is not trusted: %q, %v", got, err)
	}
	if got, err := newEngine.RotateAuthority(ctx, own, &engine.RotateOptions{Lost: true}); !errors.Is(err, vic.ErrDenied) || !cmp.Equal(got, []string{"stopped"}) {
		t.Fatalf("the key is lost: %q, %v", got, err)
	}
	if got, err := e.Engine.RotateAuthority(ctx, []crypto.PublicKey{oldKey}, nil); !errors.Is(err, vic.ErrDenied) || len(got) != 0 {
		t.Fatalf("and found again: %q, %v", got, err)
	}
	if got, err := e.Engine.RotateAuthority(ctx, []crypto.PublicKey{oldKey}, &engine.RotateOptions{Lost: true}); err != nil {
		t.Fatalf("and taken into use again: %q, %v", got, err)
	}
	if _, err := e.Engine.RotateAuthority(ctx, own, nil); !errors.Is(err, vic.ErrInvalid) {
		t.Fatalf("a client that locks itself out: %v", err)
	}
	both := []string{"running", "stopped"}
	rotate(e.Engine, both, oldKey, fresh.Public())
	rotate(e.Engine, both, oldKey, fresh.Public())
	for _, eng := range []*engine.Engine{e.Engine, newEngine} {
		if err := reach(eng, "running"); err != nil {
			t.Fatalf("while both are trusted: %v", err)
		}
	}
	held, err := running.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()

	rotate(newEngine, both, fresh.Public())
	select {
	case <-held.Done():
	case <-ctx.Done():
		t.Fatal("the connection of an old controller goes on")
	}
	if err := reach(e.Engine, "running"); !errors.Is(err, vic.ErrDenied) {
		t.Errorf("the old authority: %v", err)
	}
	if err := reach(newEngine, "running"); err != nil {
		t.Errorf("the new authority: %v", err)
	}
	if got := newEngine.Authorities(); len(got) != 1 || !cmp.Equal(got, e.Open(t, e.Client, nil).Authorities()) {
		t.Errorf("the VCH's: %q", got)
	}
	// Who was stopped meanwhile, and who starts again, reads it in its configuration.
	vm, info, err := newEngine.Find(ctx, "running")
	if err != nil || info.Restarts != 0 || info.State != containervm.Running {
		t.Fatalf("%+v, %v", info, err)
	}
	if err := vm.Restart(ctx, nil); err != nil {
		t.Fatal(err)
	}
	stopped, _, err := newEngine.Find(ctx, "stopped")
	if err != nil {
		t.Fatal(err)
	}
	if err := stopped.Start(ctx); err != nil {
		t.Fatal(err)
	}
	for _, vm := range []*containervm.VM{vm, stopped} {
		waitLog(t, vm, "ready\n")
		if err := reach(newEngine, vm.Name()); err != nil {
			t.Errorf("%s: %v", vm.Name(), err)
		}
		if err := reach(e.Engine, vm.Name()); !errors.Is(err, vic.ErrDenied) {
			t.Errorf("%s, the old authority: %v", vm.Name(), err)
		}
		if err := vm.Delete(ctx, true); err != nil {
			t.Error(err)
		}
	}
}
