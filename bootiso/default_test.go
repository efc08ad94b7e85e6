package bootiso_test

import (
	"archive/zip"
	"bytes"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/bootiso"
)

const module = "github.com/vicsdk/vic-go"

// TestDefault: the first call makes an image with what belongs into it, the
// next ones, in any number at once, find it.
func TestDefault(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles (-short)")
	}
	dir := filepath.Join(t.TempDir(), "new", "cache")
	o := &bootiso.DefaultOptions{Dir: dir}
	var wait sync.WaitGroup
	names := make([]string, 3)
	for i := range names {
		wait.Go(func() {
			name, err := bootiso.Default(t.Context(), o)
			if err != nil {
				t.Error(err)
			}
			names[i] = name
		})
	}
	wait.Wait()
	if names[0] != names[1] || names[0] != names[2] || filepath.Dir(names[0]) != dir {
		t.Fatalf("%q", names)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("%v in the cache, %v", left, err)
	}
	b, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	bin, err := bootiso.Tether(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, build(t, bootiso.Options{Tether: bin, Out: filepath.Join(t.TempDir(), "a.iso")})) {
		t.Error("not the image that Build makes")
	}

	st, err := os.Stat(names[0])
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	again, err := bootiso.Default(t.Context(), o)
	t.Logf("found after %v", time.Since(start))
	if st2, err2 := os.Stat(again); err != nil || err2 != nil || !os.SameFile(st, st2) {
		t.Errorf("%q was made again: %v, %v", again, err, err2)
	}

	// An old image goes when a new one is made, a young one stays.
	old, young := filepath.Join(dir, "old.iso"), filepath.Join(dir, "young.iso")
	for name, age := range map[string]time.Duration{old: 15 * 24 * time.Hour, young: 13 * 24 * time.Hour} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(again); err != nil {
		t.Fatal(err)
	}
	if _, err := bootiso.Default(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("an image that nobody wanted for two weeks stayed")
	}
	if _, err := os.Stat(young); err != nil {
		t.Error(err)
	}
}

// TestDefaultRefuses: what is missing is told, and what to do about it.
func TestDefaultRefuses(t *testing.T) {
	dir := t.TempDir()
	notDir := filepath.Join(dir, "file")
	if err := os.WriteFile(notDir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		o    bootiso.DefaultOptions
		path string
		want string
	}{
		{"no Go", bootiso.DefaultOptions{Dir: dir}, dir, "not built with -tags vic_release, and it cannot be compiled: exec: \"go\": executable file not found"},
		{"another Go", bootiso.DefaultOptions{Dir: dir, Go: filepath.Join(dir, "go")}, os.Getenv("PATH"), "install Go, or name an image that \"vic iso\" made"},
		{"no directory", bootiso.DefaultOptions{Dir: filepath.Join(notDir, "x")}, os.Getenv("PATH"), "not a directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("PATH", tt.path)
			_, err := bootiso.Default(t.Context(), &tt.o)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := bootiso.Default(ctx, &bootiso.DefaultOptions{Dir: dir}); err == nil {
		t.Error("made with a context that is done")
	}
}

// TestTetherPackages: the sources by which an image is kept are all of the
// tether's.
func TestTetherPackages(t *testing.T) {
	out := goRun(t, ".", nil, "list", "-deps", module+"/cmd/tether")
	var want []string
	for p := range strings.FieldsSeq(out) {
		if dir, ok := strings.CutPrefix(p, module+"/"); ok {
			want = append(want, dir)
		}
	}
	got := bootiso.TetherPackages()
	sort.Strings(want)
	sort.Strings(got)
	if strings.Join(want, " ") != strings.Join(got, " ") {
		t.Errorf("tetherPackages has %q, the tether has %q", got, want)
	}
}

func goRun(t *testing.T, dir string, env []string, args ...string) string {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Env = dir, append(append(os.Environ(), "PWD="+dir), env...)
	if dir == "." {
		cmd.Env = os.Environ()
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// embedder is a program of somebody else's.
const embedder = `package main

import (
	"context"
	"fmt"
	"os"

	"github.com/vicsdk/vic-go/bootiso"
)

func main() {
	name, err := bootiso.Default(context.Background(), &bootiso.DefaultOptions{Dir: os.Args[1]})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(name)
}
`

// TestEmbedders: a foreign module takes this one, from a directory or from the
// read-only module cache, with its own go.sum, and gets the default image from
// a program that has been moved away from its module.
func TestEmbedders(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles several times (-short)")
	}
	const version = "v0.0.1"
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	cache, upstream, _ := strings.Cut(goRun(t, ".", nil, "env", "GOMODCACHE", "GOPROXY"), "\n")
	proxy := makeProxy(t, root, version)
	// Everything but this module comes from the cache of this machine, which
	// has all where this module's tests have been compiled.
	modcache := filepath.Join(t.TempDir(), "modcache")
	env := []string{"GOFLAGS=-mod=mod -modcacherw", "GOWORK=off", "GOSUMDB=off", "GOPRIVATE=", "GONOPROXY=none",
		"GOPROXY=file://" + proxy + ",file://" + filepath.Join(cache, "cache", "download") + "," + upstream, "GOMODCACHE=" + modcache}
	for _, tt := range []struct {
		name    string
		replace bool
		flags   []string
	}{
		{"directory", true, nil},
		{"directory, trimmed", true, []string{"-trimpath"}},
		{"module cache", false, nil},
		{"module cache, trimmed", false, []string{"-trimpath"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			mod := "module example.com/embedder\n\ngo 1.26.0\n\nrequire " + module + " " + version + "\n"
			if tt.replace {
				mod += "\nreplace " + module + " => " + root + "\n"
			}
			for name, text := range map[string]string{"go.mod": mod, "main.go": embedder} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			program := filepath.Join(t.TempDir(), "program")
			goRun(t, dir, env, append(append([]string{"build", "-o", program}, tt.flags...), ".")...)
			if !tt.replace {
				readOnly(t, filepath.Join(modcache, filepath.FromSlash(module)+"@"+version))
			}
			sum, err := os.ReadFile(filepath.Join(dir, "go.sum"))
			if err != nil || bytes.Contains(sum, []byte("vishvananda/netlink v1.3.1 h1:")) {
				t.Fatalf("the embedder's go.sum has what the tether needs: %v", err)
			}
			var names []string
			for range 2 {
				cmd := exec.Command(program, filepath.Join(dir, "images"))
				cmd.Dir, cmd.Env = t.TempDir(), append(os.Environ(), env...)
				start := time.Now()
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				t.Logf("after %v", time.Since(start).Round(time.Millisecond))
				names = append(names, strings.TrimSpace(string(out)))
			}
			f, err := os.Open(names[1])
			if err != nil || names[0] != names[1] {
				t.Fatalf("%q, %v", names, err)
			}
			defer f.Close()
			if _, err := bootiso.Extract(f); err != nil {
				t.Error(err)
			}
		})
	}
}

// readOnly takes the right to write from all of a tree until the test ends, as
// the module cache has it without -modcacherw.
func readOnly(t *testing.T, dir string) {
	t.Helper()
	mode := func(bits fs.FileMode) {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			return os.Chmod(p, bits)
		})
		if err != nil {
			t.Error(err)
		}
	}
	mode(0o555)
	t.Cleanup(func() { mode(0o755) })
}

// makeProxy makes a module proxy, as a directory, that has this module
// (go.dev/ref/mod, "GOPROXY protocol").
func makeProxy(t *testing.T, root, version string) string {
	t.Helper()
	proxy := t.TempDir()
	dir := filepath.Join(proxy, filepath.FromSlash(module), "@v")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	w := zip.NewWriter(&z)
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); p != root && (strings.HasPrefix(name, ".") || name == "bin" || name == "release") {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		f, err := w.Create(module + "@" + version + "/" + filepath.ToSlash(rel))
		if err == nil {
			_, err = f.Write(b)
		}
		return err
	})
	if err == nil {
		err = w.Close()
	}
	for name, b := range map[string][]byte{
		"list": []byte(version + "\n"), version + ".info": []byte(`{"Version":"` + version + `"}`), version + ".mod": mod, version + ".zip": z.Bytes(),
	} {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o600)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return proxy
}
