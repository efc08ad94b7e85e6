// Package testlab gives tests a lab with a VCH, a registry with images and an
// engine, and makes sure that nothing is left of them.
package testlab

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/bootiso"
	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/testregistry"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/lab"
	"github.com/vicsdk/vic-go/vic/registry"
	"github.com/vicsdk/vic-go/vic/vch"
)

// An Env is a lab in use by tests.
type Env struct {
	Lab      *lab.Lab
	Client   *vic.Client
	Engine   *engine.Engine
	Registry *testregistry.Registry
	ISO      string
}

// Options of an Env.
type Options struct {
	// NoBoot needs no QEMU and no ISO: images and records only.
	NoBoot bool
	// ISO is the file that VMs boot: VIC_BOOTSTRAP_ISO, or else the default
	// image of package bootiso, where empty.
	ISO string
	// Lab changes the lab's options, where it is not nil.
	Lab func(*lab.Options)
	// Images are the image store's options.
	Images *imagestore.Options
}

// Start gives a test a lab of its own.
func Start(tb testing.TB, o Options) *Env {
	tb.Helper()
	ctx := tb.Context()
	iso := o.ISO
	if o.NoBoot {
		iso = filepath.Join(tb.TempDir(), "no.iso")
		if err := os.WriteFile(iso, []byte("no VM of this test is started"), 0o600); err != nil {
			tb.Fatal(err)
		}
	} else if iso == "" {
		iso = bootISO(tb)
	}
	opts := lab.Options{Dir: filepath.Join(tb.TempDir(), "lab"), NoQEMU: o.NoBoot, Logger: logger(tb)}
	if o.Lab != nil {
		o.Lab(&opts)
	}
	l, err := lab.Start(ctx, opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := l.Close(); err != nil {
			tb.Errorf("close the lab: %v", err)
		}
	})
	e := &Env{Lab: l, ISO: iso, Registry: testregistry.ForTest(tb, nil)}
	e.Client = e.Connect(tb)
	_, err = engine.CreateVCH(ctx, e.Client, engine.VCHSpec{Spec: vch.Spec{Name: "test", ImageStore: "datastore1", MemoryMB: 256}, Network: "VM Network"}, vch.Options{BootISO: iso})
	if err != nil {
		tb.Fatal(err)
	}
	e.Engine = e.Open(tb, e.Client, o.Images)
	return e
}

// bootISO finds what VMs boot. Without QEMU the test is skipped, or fails in
// CI.
func bootISO(tb testing.TB) string {
	tb.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		if os.Getenv("CI") == "true" {
			tb.Fatal(err)
		}
		tb.Skipf("no VM can be booted: %v", err)
	}
	if iso := os.Getenv("VIC_BOOTSTRAP_ISO"); iso != "" {
		return iso
	}
	iso, err := bootiso.Default(tb.Context(), nil)
	if err != nil {
		tb.Fatal(err)
	}
	return iso
}

// Connect logs a further client in, as another process would.
func (e *Env) Connect(tb testing.TB) *vic.Client {
	tb.Helper()
	cfg, err := e.Lab.Config()
	if err != nil {
		tb.Fatal(err)
	}
	cfg.Logger = logger(tb)
	c, err := vic.Connect(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			tb.Errorf("log out: %v", err)
		}
	})
	return c
}

// Open opens an engine on the VCH.
func (e *Env) Open(tb testing.TB, c *vic.Client, images *imagestore.Options) *engine.Engine {
	tb.Helper()
	eng, err := engine.Open(tb.Context(), c, "test", &engine.Options{
		Registry: func(registry.Name) *registry.Options { return &registry.Options{PlainHTTP: true} },
		Images:   images,
	})
	if err != nil {
		tb.Fatal(err)
	}
	return eng
}

// Push puts an image of an OCI layout into the registry and returns its name.
func (e *Env) Push(tb testing.TB, layout, name string) string {
	tb.Helper()
	ref, _, err := e.Registry.Push(tb.Context(), layout, name)
	if err != nil {
		tb.Fatal(err)
	}
	return ref
}

// Busybox pushes the smallest image with a shell.
func (e *Env) Busybox(tb testing.TB) string {
	tb.Helper()
	layout, err := testimage.Busybox(tb.Context(), "")
	if err != nil {
		tb.Fatal(err)
	}
	return e.Push(tb, layout, "busybox:latest")
}

// Files lists the regular files of the first datastore, by their path in it.
func (e *Env) Files(tb testing.TB) []string {
	tb.Helper()
	root := e.Datastore()
	var out []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(root, p)
			out = append(out, rel)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// Datastore is the directory of the first datastore.
func (e *Env) Datastore() string { return filepath.Join(e.Lab.Dir(), "datastores", "datastore1") }

// Local is where a datastore path of the first datastore lies on this machine.
func (e *Env) Local(tb testing.TB, path string) string {
	tb.Helper()
	p, ok := strings.CutPrefix(path, "[datastore1] ")
	if !ok {
		tb.Fatalf("%q is not on datastore1", path)
	}
	return filepath.Join(e.Datastore(), p)
}

// logger writes to the test's log while the test runs.
func logger(tb testing.TB) *slog.Logger {
	w := &testWriter{tb: tb}
	tb.Cleanup(func() {
		w.mu.Lock()
		w.tb = nil
		w.mu.Unlock()
	})
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

type testWriter struct {
	mu sync.Mutex
	tb testing.TB
}

func (w *testWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tb != nil {
		w.tb.Logf("%s", strings.TrimSuffix(string(p), "\n"))
	}
	return len(p), nil
}
