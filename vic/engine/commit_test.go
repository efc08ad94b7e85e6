package engine_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/internal/testregistry"
	"github.com/vicsdk/vic-go/internal/treecmp"
	"github.com/vicsdk/vic-go/internal/vmdk"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/tether"
)

// A container that changed files in its VM becomes an image; pushed and pulled
// into another store it is the same tree, and it runs.
func TestCommitPushPull(t *testing.T) {
	t.Parallel()
	e := testlab.Start(t, testlab.Options{Images: &imagestore.Options{Bytes: 256 << 20}})
	layout, err := testimage.Demo(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	image := e.Push(t, layout, "demo:latest")
	base, err := e.Engine.Pull(t.Context(), image, nil)
	if err != nil {
		t.Fatal(err)
	}
	const change = `set -e
mkdir -p /new/deep; echo hello > /new/deep/file; ln /new/deep/file /new/link; ln -s deep /new/sym
echo changed >> /etc/passwd; chmod 600 /etc/group; rm -r /usr/share; mkfifo /new/fifo
dd if=/dev/urandom of=/new/big bs=64k count=40 2>/dev/null; touch -d '2001-02-03 04:05:06' /new
chown 12:34 /new/big; sync`
	started := make(chan *containervm.VM, 1)
	var out bytes.Buffer
	vm, exit, err := e.Engine.Run(t.Context(), engine.RunSpec{
		Image: image, Container: containervm.Spec{Entrypoint: []string{}, Args: []string{"sh", "-c", change}},
		Streams: tether.Streams{Stdout: &out, Stderr: &out},
		Started: func(vm *containervm.VM, _ *containervm.Attachment) { started <- vm },
	})
	if err != nil || exit.Code != 0 {
		t.Fatalf("%+v, %v: %s", exit, err, &out)
	}
	name := e.Registry.Addr() + "/committed:v1"
	img, err := e.Engine.Commit(t.Context(), vm, name, &imagestore.CommitOptions{ConfigOptions: imagestore.ConfigOptions{
		Author: "somebody", Comment: "changed in a VM",
		Changes:      imagestore.Changes{Env: []string{"COMMITTED=yes"}},
		Instructions: []string{"ENTRYPOINT []", `CMD ["cat", "/new/sym/file"]`, "LABEL what=commit", "WORKDIR /new", "ENV PATH=$PATH:/new"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(base.Layers()); len(img.Layers()) != n+1 || !slices.EqualFunc(img.Layers()[:n], base.Layers(), func(a, b ocispec.Descriptor) bool { return a.Digest == b.Digest }) {
		t.Errorf("layers %v; of the base %v", img.Layers(), base.Layers())
	}
	var diff bytes.Buffer
	if err := e.Engine.Images().WriteLayer(t.Context(), img, len(img.Layers())-1, &diff); err != nil {
		t.Fatal(err)
	}
	t.Logf("the layer: %q", tarNames(t, &diff))

	d, err := e.Engine.Push(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if d.Digest != img.Digest() {
		t.Errorf("pushed as %s, is %s", d.Digest, img.Digest())
	}
	// A store on another lab knows nothing of the base image either.
	fresh := testlab.Start(t, testlab.Options{NoBoot: true, Images: &imagestore.Options{Bytes: 256 << 20}})
	back, err := fresh.Engine.Pull(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if back.Digest() != img.Digest() {
		t.Errorf("pulled %s, not %s", back.Digest(), img.Digest())
	}
	mine, theirs := e.Local(t, img.Root().Path), fresh.Local(t, back.Root().Path)
	extent := func(p string) []byte {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(p), "layer-delta.vmdk"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if !bytes.Equal(extent(mine), extent(theirs)) {
		t.Error("the committed layer's disk is not what the pulled one's is")
	}
	if os.Geteuid() == 0 {
		disk, err := vm.RestingDisk(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sums := map[string][]treecmp.Entry{}
		for what, p := range map[string]string{"container": e.Local(t, disk.Path), "pulled": theirs, "umoci": ""} {
			if p != "" {
				sums[what] = mounted(t, p)
				continue
			}
			dir := t.TempDir()
			command(t, "skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", "docker://"+name, "oci:"+dir+"/layout:latest")
			if err := treecmp.Reference(t.Context(), dir+"/layout", dir+"/bundle"); err != nil {
				t.Fatal(err)
			}
			if sums[what], err = treecmp.List(dir + "/bundle/rootfs"); err != nil {
				t.Fatal(err)
			}
		}
		for _, what := range []string{"pulled", "umoci"} {
			for _, d := range treecmp.Diff(sums["container"], sums[what]) {
				// Empty files that only the guest needs are left out.
				if !slices.Contains([]string{`"etc/hostname": missing, want a file`, `"etc/hosts": missing, want a file`, `"etc/resolv.conf": missing, want a file`}, d) {
					t.Errorf("%s: %s", what, d)
				}
			}
		}
	}
	r := do(t, e, name, nil, containervm.Spec{})
	if r.out != "hello\n" || r.exit.Code != 0 {
		t.Errorf("run: %+v", r)
	}

	t.Run("while it runs", func(t *testing.T) {
		running, _, err := e.Engine.Run(t.Context(), engine.RunSpec{Image: image, Detach: true, Container: containervm.Spec{Entrypoint: []string{}, Args: []string{"sleep", "60"}}})
		if err != nil {
			t.Fatal(err)
		}
		defer running.Delete(t.Context(), true)
		_, err = e.Engine.Commit(t.Context(), running, e.Registry.Addr()+"/running:v1", nil)
		if !errors.Is(err, vic.ErrInUse) || !strings.Contains(err.Error(), "stop it") {
			t.Errorf("commit: %v", err)
		}
		if err := e.Engine.Export(t.Context(), running, io.Discard, nil); !errors.Is(err, vic.ErrInUse) {
			t.Errorf("export: %v", err)
		}
	})
	t.Run("export", func(t *testing.T) {
		var flat bytes.Buffer
		if err := e.Engine.Export(t.Context(), vm, &flat, nil); err != nil {
			t.Fatal(err)
		}
		names := tarNames(t, bytes.NewReader(flat.Bytes()))
		if !slices.Contains(names, "new/deep/file") || slices.Contains(names, "bin/bash") {
			t.Errorf("%q", names)
		}
		if _, err := e.Engine.Import(t.Context(), &flat, e.Registry.Addr()+"/flat:v1", &imagestore.ImportOptions{
			ConfigOptions: imagestore.ConfigOptions{Instructions: []string{`CMD cat "/new/link"`, "ENV PATH=/bin:/usr/bin"}},
		}); err != nil {
			t.Fatal(err)
		}
		if r := do(t, e, e.Registry.Addr()+"/flat:v1", nil, containervm.Spec{}); r.out != "hello\n" {
			t.Errorf("run: %+v", r)
		}
	})
	t.Run("nothing changed", func(t *testing.T) {
		vm, err := e.Engine.Create(t.Context(), engine.RunSpec{Image: image, Detach: true})
		if err != nil {
			t.Fatal(err)
		}
		same, err := e.Engine.Commit(t.Context(), vm, e.Registry.Addr()+"/same:v1", nil)
		if err != nil {
			t.Fatal(err)
		}
		if same.Root() != base.Root() || len(same.Layers()) != len(base.Layers()) || same.Digest() == base.Digest() {
			t.Errorf("%+v", same)
		}
	})
	// A second registry gets layers that were never packed like this.
	second := testregistry.ForTest(t, nil)
	if _, err := e.Engine.Push(t.Context(), name, &imagestore.PushOptions{Name: second.Addr() + "/committed:v1"}); err != nil {
		t.Fatal(err)
	}
	again, err := fresh.Engine.Pull(t.Context(), second.Addr()+"/committed:v1", nil)
	if err != nil || again.Root() != back.Root() {
		t.Errorf("%+v, %v", again, err)
	}
}

func tarNames(t *testing.T, r io.Reader) []string {
	t.Helper()
	var out []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, h.Name)
	}
}

// mounted lists the tree of a chain as the kernel sees it.
func mounted(t *testing.T, vmdk string) []treecmp.Entry {
	t.Helper()
	dir := t.TempDir()
	raw, mnt := filepath.Join(dir, "raw"), filepath.Join(dir, "mnt")
	command(t, "qemu-img", "convert", "-O", "raw", vmdk, raw)
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	unmount, err := treecmp.Mount(t.Context(), raw, mnt)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unmount(); err != nil {
			t.Error(err)
		}
	}()
	list, err := treecmp.List(filepath.Join(mnt, "rootfs"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// child makes an empty child of a disk, as a snapshot does.
func child(t *testing.T, e *testlab.Env, parent vic.Disk) vic.Disk {
	t.Helper()
	file := e.Local(t, parent.Path)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^CID=([0-9a-f]{8})`).FindSubmatch(b)
	if m == nil {
		t.Fatal("the disk has no CID")
	}
	cid, err := strconv.ParseUint(string(m[1]), 16, 32)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(filepath.Dir(file), "snapshot-delta.vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := vmdk.NewLayerWriter(f, parent.Bytes)
	if err == nil {
		_, err = w.Finish()
	}
	if err != nil {
		t.Fatal(err)
	}
	d, err := vmdk.LayerDescriptor(parent.Bytes, 77, uint32(cid), filepath.Base(file), "snapshot-delta.vmdk").Encode()
	if err == nil {
		err = os.WriteFile(filepath.Join(filepath.Dir(file), "snapshot.vmdk"), d, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return vic.Disk{Path: strings.TrimSuffix(parent.Path, filepath.Base(file)) + "snapshot.vmdk", Bytes: parent.Bytes}
}

// What cannot become an image is refused, and an image is found whatever its
// name stands for by now.
func TestCommitFindsItsImage(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true, Images: &imagestore.Options{Bytes: 128 << 20}})
	image := e.Busybox(t)
	to := e.Registry.Addr() + "/commit:v1"
	create := func() *containervm.VM {
		t.Helper()
		vm, err := e.Engine.Create(t.Context(), engine.RunSpec{Image: image, Detach: true})
		if err != nil {
			t.Fatal(err)
		}
		return vm
	}
	vm := create()
	base, err := e.Engine.Image(t.Context(), image)
	if err != nil {
		t.Fatal(err)
	}
	images := e.Engine.Images()

	t.Run("started while it was read", func(t *testing.T) {
		vm := create()
		_, err := e.Engine.Commit(t.Context(), vm, to, &imagestore.CommitOptions{Progress: func(vic.Event) {
			if err := vm.Start(t.Context()); err != nil {
				t.Error(err)
			}
		}})
		if !errors.Is(err, vic.ErrInUse) || !strings.Contains(err.Error(), "started while") {
			t.Error(err)
		}
		if err := vm.Delete(t.Context(), true); err != nil {
			t.Error(err)
		}
	})
	t.Run("an image's own disk", func(t *testing.T) {
		if _, err := images.Commit(t.Context(), base.Root(), to, nil); !errors.Is(err, vic.ErrInvalid) {
			t.Error(err)
		}
	})
	t.Run("a disk elsewhere", func(t *testing.T) {
		if _, err := images.Commit(t.Context(), vic.Disk{Path: "[other] a/b.vmdk"}, to, nil); !errors.Is(err, vic.ErrNotFound) {
			t.Error(err)
		}
	})
	t.Run("wrong name and options", func(t *testing.T) {
		for _, name := range []string{"UPPER//x", e.Registry.Addr() + "/x@sha256:" + strings.Repeat("0", 64)} {
			if _, err := e.Engine.Commit(t.Context(), vm, name, nil); !errors.Is(err, vic.ErrInvalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := e.Engine.Commit(t.Context(), vm, to, &imagestore.CommitOptions{ConfigOptions: imagestore.ConfigOptions{Instructions: []string{"RUN x"}}}); !errors.Is(err, vic.ErrUnsupported) {
			t.Error(err)
		}
	})
	t.Run("a snapshot lies between", func(t *testing.T) {
		disk, err := create().RestingDisk(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		img, err := images.Commit(t.Context(), child(t, e, disk), to, &imagestore.CommitOptions{Base: image})
		if err != nil {
			t.Fatal(err)
		}
		if img.Root() != base.Root() {
			t.Errorf("%+v", img)
		}
	})
	t.Run("the name stands for another image", func(t *testing.T) {
		layout, err := testimage.Demo(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		e.Push(t, layout, "busybox:latest")
		if other, err := e.Engine.Pull(t.Context(), image, nil); err != nil || other.Digest() == base.Digest() {
			t.Fatal(other, err)
		}
		img, err := e.Engine.Commit(t.Context(), vm, to, nil)
		if err == nil && img.Root() != base.Root() {
			t.Errorf("%+v", img)
		}
		// The commit before has the same layers, so one of the two is to be named.
		if err != nil && (!errors.Is(err, vic.ErrConflict) || !strings.Contains(err.Error(), "Base")) {
			t.Error(err)
		}
		if img, err = e.Engine.Commit(t.Context(), vm, to, &imagestore.CommitOptions{Base: to}); err != nil || img.Root() != base.Root() {
			t.Errorf("%+v, %v", img, err)
		}
	})
}
