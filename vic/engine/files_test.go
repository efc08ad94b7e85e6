package engine_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/tether"
)

func oneFileTar(t *testing.T, name, body string) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Uid: 7, Gid: 8, Size: int64(len(body))}); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, body)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// again starts a container that is off and returns what it wrote in that run.
func again(t *testing.T, vm *containervm.VM) string {
	t.Helper()
	var out bytes.Buffer
	att, err := vm.Attach(t.Context(), tether.Streams{Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	defer att.Detach()
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := att.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// fsck looks at the disk of a container with e2fsck, which must find nothing
// to do.
func fsck(t *testing.T, e *testlab.Env, vm *containervm.VM) {
	t.Helper()
	d, err := vm.RestingDisk(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(t.TempDir(), "raw")
	for _, c := range [][]string{{"qemu-img", "convert", "-O", "raw", e.Local(t, d.Path), raw}, {"e2fsck", "-fn", raw}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", c[0], err, out)
		}
	}
	_ = os.Remove(raw)
}

// Files go into and out of a container that ran, and into one whose VM was
// powered off under it, and its own kernel finds them.
func TestFilesOfStoppedContainers(t *testing.T) {
	t.Parallel()
	e := testlab.Start(t, testlab.Options{Images: &imagestore.Options{Bytes: 128 << 20}})
	image := e.Busybox(t)
	var out bytes.Buffer
	const script = `
if [ -e /in/note ]; then cat /in/note /etc/extra; ls -ln /in/note | awk '{print $1,$3,$4}'; exit; fi
mkdir -p /in /made/deep; echo made > /made/deep/file; rm /etc/group; chmod 700 /home; echo more >> /etc/passwd; ln -s /made/deep /way; mv /var/log /var/logs; echo ran`
	vm, _, err := e.Engine.Run(t.Context(), engine.RunSpec{Image: image, Container: containervm.Spec{Name: "files", Args: []string{"sh", "-c", script}},
		Streams: tether.Streams{Stdout: &out, Stderr: &out}})
	if err != nil || out.String() != "ran\n" {
		t.Fatalf("%v: %s", err, &out)
	}
	changes, err := e.Engine.Changes(t.Context(), "files")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range changes {
		got = append(got, c.Kind+" "+c.Path)
	}
	want := []string{"C /etc", "D /etc/group", "C /etc/passwd", "C /home", "A /in", "A /made", "A /made/deep", "A /made/deep/file", "C /var", "D /var/log", "A /var/logs", "A /way"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("changes (-want +got):\n%s", d)
	}
	if i, err := e.Engine.StatPath(t.Context(), "files", "/way"); err != nil || i.Link != "/made/deep" {
		t.Errorf("%+v, %v", i, err)
	}
	var b bytes.Buffer
	if err := e.Engine.CopyOut(t.Context(), "files", "/way/file", &b, nil); err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(&b)
	h, err := r.Next()
	if err != nil || h.Name != "file" {
		t.Fatalf("%+v, %v", h, err)
	}
	if body, err := io.ReadAll(r); err != nil || string(body) != "made\n" {
		t.Errorf("%q, %v", body, err)
	}
	if err := e.Engine.CopyOut(t.Context(), "files", "/none", &b, nil); !errors.Is(err, vic.ErrNotFound) {
		t.Errorf("what is not there: %v", err)
	}
	fsck(t, e, vm)
	if err := e.Engine.CopyIn(t.Context(), "files", "/in", oneFileTar(t, "note", "a note\n"), nil); err != nil {
		t.Fatal(err)
	}
	if err := e.Engine.CopyIn(t.Context(), "files", "/etc", oneFileTar(t, "extra", "extra\n"), nil); err != nil {
		t.Fatal(err)
	}
	fsck(t, e, vm)
	if got := again(t, vm); got != "a note\nextra\n-rw------- 7 8\n" {
		t.Errorf("the container finds %q", got)
	}
	fsck(t, e, vm)
	if err := vm.Delete(t.Context(), false); err != nil {
		t.Fatal(err)
	}

	// Power fails while it writes.
	vm, _, err = e.Engine.Run(t.Context(), engine.RunSpec{Image: image, Detach: true, Container: containervm.Spec{Name: "cut-off", Args: []string{"sh", "-c",
		`if [ -e /note ]; then cat /note; ls /d | wc -l | awk '{print ($1 > 3)}'; exit; fi
mkdir /d; i=0; while :; do i=$((i+1)); seq 1 $((i*50)) > /d/$i; [ $((i%9)) = 0 ] && rm /d/$((i-5)); [ $((i%20)) = 0 ] && sync && echo synced; done`}}})
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		n := 0
		err := vm.Logs(t.Context(), tether.LogOptions{}, func(tether.LogEntry) error { n++; return nil })
		if err == nil && n >= 2 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it does not write: %d times, %v", n, err)
		}
	}
	outside := object.NewVirtualMachine(e.Client.Vim(), types.ManagedObjectReference{Type: "VirtualMachine", Value: vm.Ref().ID})
	tk, err := outside.PowerOff(t.Context())
	ended(t, tk, err)
	d, err := vm.RestingDisk(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(t.TempDir(), "raw")
	for _, c := range [][]string{{"qemu-img", "convert", "-O", "raw", e.Local(t, d.Path), raw}, {"sh", "-c", "dumpe2fs -h " + raw + " | grep needs_recovery"}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: was it not cut off? %v\n%s", c, err, out)
		}
	}
	if err := e.Engine.CopyIn(t.Context(), "cut-off", "/", oneFileTar(t, "note", "repaired\n"), nil); err != nil {
		t.Fatal(err)
	}
	fsck(t, e, vm)
	if got := again(t, vm); got != "repaired\n1\n" {
		t.Errorf("the container finds %q", got)
	}
	fsck(t, e, vm)
}

// A copy into a container that is started meanwhile changes nothing.
func TestCopyIntoContainerThatIsStarted(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true, Images: &imagestore.Options{Bytes: 128 << 20}})
	image := e.Busybox(t)
	vm, err := e.Engine.Create(t.Context(), engine.RunSpec{Image: image, Detach: true, Container: containervm.Spec{Name: "raced"}})
	if err != nil {
		t.Fatal(err)
	}
	// The archive comes slowly: after its first block the VM is powered on.
	started := make(chan error, 1)
	var once bool
	src := oneFileTar(t, "note", "x")
	err = e.Engine.CopyIn(t.Context(), "raced", "/", readerFunc(func(p []byte) (int, error) {
		if !once {
			once = true
			started <- vm.Start(t.Context())
		}
		return src.Read(p)
	}), nil)
	if e := <-started; e != nil {
		t.Fatal(e)
	}
	if !errors.Is(err, vic.ErrInUse) {
		t.Errorf("copied into a running container: %v", err)
	}
	if err := vm.Kill(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Engine.StatPath(t.Context(), "raced", "/note"); !errors.Is(err, vic.ErrNotFound) {
		t.Errorf("%v", err)
	}
	for _, f := range e.Files(t) {
		if strings.Contains(f, ".new-") {
			t.Errorf("left: %s", f)
		}
	}
	if err := e.Engine.CopyIn(t.Context(), "raced", "/", oneFileTar(t, "note", "x"), nil); err != nil {
		t.Error(fmt.Errorf("when it is off: %w", err))
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
