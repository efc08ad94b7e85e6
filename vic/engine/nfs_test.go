package engine_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	nfs "github.com/willscott/go-nfs"
	nfshelper "github.com/willscott/go-nfs/helpers"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/registry"
	"github.com/vicsdk/vic-go/vic/vch"
	"github.com/vicsdk/vic-go/vic/volumestore"
)

// nfsHost is where guests of the lab find this machine's loopback.
const nfsHost = "192.168.127.254"

// listenNFS serves a directory by version 3 until the listener is closed.
func listenNFS(t *testing.T, dir string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		_ = nfs.Serve(l, nfshelper.NewCachingHandler(nfshelper.NewNullAuthHandler(osfs.New(dir)), 1024))
	}()
	return l
}

// A container mounts a directory of an NFS server of version 3, which a program
// other than ours serves on this machine's loopback, and its kernel is the client.
func TestNFS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "there"), []byte("from the server\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	l := listenNFS(t, dir)
	port := l.Addr().(*net.TCPAddr).Port

	e := testlab.Start(t, testlab.Options{})
	spec := engine.RunSpec{Image: e.Busybox(t)}
	flag := func(target, more string) string {
		return fmt.Sprintf("type=nfs,src=%s:/,dst=%s,nfs-port=%d,nfs-mount-port=%d%s", nfsHost, target, port, port, more)
	}
	// The version is found; another target shows it read-only.
	s := parse(t, spec, nil, []string{flag("/data", ""), flag("/ro", ",readonly"), flag("/sub", ",nfs-version=3,volume-subpath=sub")}, nil)
	run(t, e, s, `
cat /data/there /ro/there
touch /ro/x 2>/dev/null && echo wrote to ro
echo from the container > /data/made && mv /data/made /data/kept
head -c 5m /dev/zero > /data/big
echo below > /sub/file
grep -c ' nfs .*vers=3' /proc/mounts
`).want(t, "NFS", "from the server\nfrom the server\n3\n")
	for name, want := range map[string]string{"kept": "from the container\n", "sub/file": "below\n", "big": strings.Repeat("\x00", 5<<20)} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s on the server: %d bytes, %v", name, len(got), err)
		}
	}
	testNFSStore(t, e, spec, dir, fmt.Sprintf("nfs://%s:%d/?version=3&mountport=%d", nfsHost, port, port))
	_ = l.Close()
	s = parse(t, spec, nil, []string{flag("/data", ",nfs-version=3")}, nil)
	if r := run(t, e, s, "true"); r.exit.Code != 125 || !strings.Contains(r.exit.Error, "NFS server") {
		t.Errorf("no server: %+v", r)
	}
}

// withStore makes a VCH with a volume store on an NFS server.
func withStore(t *testing.T, e *testlab.Env, at string) *engine.Engine {
	t.Helper()
	_, err := engine.CreateVCH(t.Context(), e.Client, engine.VCHSpec{
		Spec:    vch.Spec{Name: "second", ImageStore: "datastore1", MemoryMB: 256, VolumeStores: map[string]string{"default": "datastore1", "shared": at}},
		Network: "VM Network",
	}, vch.Options{BootISO: e.ISO})
	if err != nil {
		t.Fatal(err)
	}
	eng, err := engine.Open(t.Context(), e.Client, "second", &engine.Options{
		Registry: func(registry.Name) *registry.Options { return &registry.Options{PlainHTTP: true} },
	})
	if err != nil {
		t.Fatal(err)
	}
	return eng
}

// Two containers have a volume on an NFS server at once; the first one's guest has
// made its directory.
func testNFSStore(t *testing.T, e *testlab.Env, s engine.RunSpec, dir, at string) {
	eng := withStore(t, e, at)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s = parse(t, s, nil, []string{"type=volume,src=both,dst=/data,volume-opt=VolumeStore=shared"}, nil)
	s.Detach = true
	s.Container.Args = []string{"sh", "-c", "echo one > /data/one; echo ready; until [ -e /data/two ]; do sleep 0.1; done; cat /data/two"}
	first, err := eng.Create(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	s.Container.Args = []string{"sh", "-c", "echo ready; until [ -e /data/one ]; do sleep 0.1; done; cat /data/one; echo two > /data/new; mv /data/new /data/two"}
	second, err := eng.Create(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	for _, vm := range []*containervm.VM{first, second} {
		if err := vm.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	v, err := eng.Volumes().Open(ctx, "both")
	if err != nil {
		t.Fatal(err)
	}
	if users, err := v.Users(ctx); err != nil || len(users) != 2 || !users[0].On || !users[1].On {
		t.Errorf("users: %+v, %v", users, err)
	}
	for vm, want := range map[*containervm.VM]string{first: "ready\ntwo\n", second: "ready\none\n"} {
		waitLog(t, vm, want)
		if info, err := vm.Wait(ctx); err != nil || info.ExitCode != 0 {
			t.Errorf("%+v, %v", info, err)
		}
	}
	n, _ := v.NFS()
	if b, err := os.ReadFile(filepath.Join(dir, n.Dir, "two")); err != nil || string(b) != "two\n" || !strings.HasPrefix(n.Dir, "both-") {
		t.Errorf("on the server, %s: %q, %v", n.Dir, b, err)
	}
}

// What is known of volumes on an NFS server is in vSphere: nobody asks the server.
func TestNFSStoreRecords(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	image := e.Busybox(t)
	eng := withStore(t, e, "nfs://files.example/srv/vic?uid=1000&gid=100")
	ctx := t.Context()
	s := eng.Volumes()
	v, err := s.Create(ctx, volumestore.Spec{Name: "docs", Store: "shared", Labels: map[string]string{"use": "web"}})
	if err != nil {
		t.Fatal(err)
	}
	want := "nfs://files.example/srv/vic/docs-" + v.ID()
	if i := v.Info(); i.Directory != want || i.Bytes != 0 || i.Store != "shared" || v.Disk() != (vic.Disk{}) {
		t.Errorf("%+v, %+v", i, v.Disk())
	}
	if n, ok := v.NFS(); !ok || n.UID != 1000 || n.GID != 100 || n.Path != "/srv/vic" || n.Dir != "docs-"+v.ID() {
		t.Errorf("%+v", n)
	}
	for _, c := range []struct {
		spec volumestore.Spec
		kind error
		text string
	}{
		{volumestore.Spec{Name: "new", Options: map[string]string{"size": "1g", "VolumeStore": "shared"}}, vic.ErrInvalid, "Options: size: store \"shared\" is on an NFS server"},
		{volumestore.Spec{Name: "docs", Bytes: 1 << 30}, vic.ErrInvalid, "Bytes: store"},
		{volumestore.Spec{Name: "docs", Store: "default"}, vic.ErrConflict, "store is shared"},
	} {
		if _, err := s.Create(ctx, c.spec); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%+v: %v", c.spec, err)
		}
	}
	if _, err := s.Grow(ctx, "docs", 1<<30); !errors.Is(err, vic.ErrUnsupported) {
		t.Errorf("grow: %v", err)
	}

	spec := engine.RunSpec{Image: image, Volumes: []engine.VolumeMount{{Volume: "docs", Target: "/a"}, {Volume: "docs", Target: "/b", ReadOnly: true}, {Volume: "disk", Target: "/c"}}}
	var vms []*containervm.VM
	for range 2 {
		vm, err := eng.Create(ctx, spec)
		if err != nil {
			t.Fatal(err)
		}
		vms = append(vms, vm)
	}
	if info, err := vms[0].Inspect(ctx); err != nil || info.Mounts[0].Volume.NFS == nil || info.Mounts[0].Volume.NFS.UID != 1000 || info.Mounts[0].Volume.Unit != 0 {
		t.Errorf("%+v, %v", info.Mounts, err)
	}
	// Another process finds the same.
	other, err := engine.Open(ctx, e.Connect(t), "second", nil)
	if err != nil {
		t.Fatal(err)
	}
	o := other.Volumes()
	yes, no := true, false
	if err := o.Delete(ctx, "docs"); !errors.Is(err, vic.ErrInUse) || !strings.Contains(err.Error(), vms[0].Name()) || !strings.Contains(err.Error(), vms[1].Name()) {
		t.Errorf("in use: %v", err)
	}
	list := func(o *volumestore.ListOptions) (names []string) {
		t.Helper()
		all, err := other.Volumes().List(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range all {
			names = append(names, v.Name())
		}
		return names
	}
	if got := list(&volumestore.ListOptions{Dangling: &no}); !slices.Equal(got, []string{"disk", "docs"}) {
		t.Errorf("with a user: %q", got)
	}
	// One that is attached later counts, until its last mount goes.
	in := func(want bool) {
		t.Helper()
		err := o.Delete(ctx, "docs")
		if got := errors.Is(err, vic.ErrInUse) && strings.Contains(err.Error(), vms[0].Name()); got != want {
			t.Fatalf("in use by the first container: %v, want %v", err, want)
		}
	}
	for _, target := range []string{"/a", "/b"} {
		in(true)
		if err := eng.DetachVolume(ctx, vms[0], target); err != nil {
			t.Fatal(err)
		}
	}
	in(false)
	if err := eng.AttachVolume(ctx, vms[0], engine.VolumeMount{Volume: "docs", Target: "/later"}); err != nil {
		t.Fatal(err)
	}
	in(true)
	for _, vm := range vms {
		if err := vm.Delete(ctx, false); err != nil {
			t.Fatal(err)
		}
	}
	if got := list(&volumestore.ListOptions{Dangling: &yes}); !slices.Equal(got, []string{"disk", "docs"}) {
		t.Errorf("without a user: %q", got)
	}
	if gone, err := o.Prune(ctx, &volumestore.PruneOptions{All: true, Labels: []string{"use=web"}}); err != nil || !slices.Equal(gone, []string{"docs"}) {
		t.Errorf("pruned %q, %v", gone, err)
	}
	// One of the same name is another volume.
	again, err := o.Create(ctx, volumestore.Spec{Name: "docs", Store: "shared"})
	if err != nil || again.ID() == v.ID() || again.Info().Directory == want {
		t.Errorf("%+v, %v", again.Info(), err)
	}
	if err := engine.DeleteVCH(ctx, e.Client, "second", engine.DeleteOptions{Volumes: true}); err != nil {
		t.Fatal(err)
	}
	for _, f := range e.Files(t) {
		if strings.HasPrefix(f, "vic/nfs/") {
			t.Errorf("left: %s", f)
		}
	}
}
