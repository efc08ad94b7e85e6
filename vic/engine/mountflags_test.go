package engine_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
	"github.com/vicsdk/vic-go/vic/volumestore"
)

func TestMountFlags(t *testing.T) {
	s := parse(t, engine.RunSpec{},
		[]string{"/anonymous/", "name:/a/../data:ro,nocopy", "n2:/b"},
		[]string{
			`type=volume,source=v,target=/v,readonly,volume-nocopy=true,volume-subpath=in/it,volume-opt=size=1g,volume-opt=VolumeStore=fast,volume-label=k=a=b,volume-label=e`,
			`dst=/v2,"src=v3",volume-driver=local`,
			"type=tmpfs,destination=/t,tmpfs-size=1m,tmpfs-mode=1770,ro=false",
			"type=nfs,src=[fe80::1]:/export/x/,dst=/n,nfs-version=4.1,nfs-port=20490,ro",
		},
		[]string{"/run:size=64k,mode=700,uid=1,gid=2,exec,suid,dev,nr_inodes=9,ro,rw,noexec", "/tmp"})
	want := engine.RunSpec{
		Volumes: []engine.VolumeMount{
			{Target: "/anonymous"},
			{Volume: "name", Target: "/data", ReadOnly: true, NoCopy: true},
			{Volume: "n2", Target: "/b"},
			{
				Volume: "v", Target: "/v", ReadOnly: true, NoCopy: true, Subpath: "in/it",
				Options: map[string]string{"size": "1g", "VolumeStore": "fast"}, Labels: map[string]string{"k": "a=b", "e": ""},
			},
			{Volume: "v3", Target: "/v2"},
		},
		Container: containervm.Spec{Mounts: []containervm.Mount{
			{Target: "/t", Tmpfs: &tether.Tmpfs{Bytes: 1 << 20, Mode: 0o1770}},
			{Target: "/n", ReadOnly: true, NFS: &tether.NFS{Server: "fe80::1", Path: "/export/x", Version: "4.1", Port: 20490}, Volume: "[fe80::1]:/export/x/"},
			{Target: "/run", Tmpfs: &tether.Tmpfs{Bytes: 64 << 10, Mode: 0o700, UID: 1, GID: 2, Inodes: 9, SUID: true, Dev: true}},
			{Target: "/tmp", Tmpfs: &tether.Tmpfs{}},
		}},
	}
	if d := cmp.Diff(want.Volumes, s.Volumes); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(want.Container.Mounts, s.Container.Mounts); d != "" {
		t.Error(d)
	}
}

func TestMountFlagsRefused(t *testing.T) {
	volume := func(s string) error { _, err := engine.ParseVolume(s); return err }
	tmpfs := func(s string) error { _, err := engine.ParseTmpfs(s); return err }
	mount := func(s string) error { return engine.ParseMount(s, &engine.RunSpec{}) }
	for _, c := range []struct {
		parse func(string) error
		flag  string
		kind  error
		text  string
	}{
		{volume, "", vic.ErrInvalid, "absolute"},
		{volume, "name", vic.ErrInvalid, "absolute"},
		{volume, ":/x", vic.ErrInvalid, "name"},
		{volume, "a:b", vic.ErrInvalid, "absolute"},
		{volume, "/home:/x", vic.ErrUnsupported, "no host"},
		{volume, "./x:/x", vic.ErrUnsupported, "no host"},
		{volume, "v:/x:shared", vic.ErrInvalid, "shared"},
		{volume, "v:/x:z", vic.ErrUnsupported, `"z"`},
		{volume, "v:/x:ro:rw", vic.ErrInvalid, "OPTIONS"},
		{volume, "v:/", vic.ErrInvalid, "root"},
		{volume, "v:/a/..", vic.ErrInvalid, "root"},
		{volume, "v:/proc/self", vic.ErrInvalid, "kernel"},
		{volume, "v:/dev", vic.ErrInvalid, "kernel"},
		{volume, "v:/sys/fs", vic.ErrInvalid, "kernel"},
		{volume, "v:/a\x00b", vic.ErrInvalid, "NUL"},
		{tmpfs, "/x:size=-1", vic.ErrInvalid, "size"},
		{tmpfs, "/x:mode=99", vic.ErrInvalid, "mode"},
		{tmpfs, "/x:mode=77777", vic.ErrInvalid, "mode"},
		{tmpfs, "/x:uid=root", vic.ErrInvalid, "uid"},
		{tmpfs, "/x:size=1m,mpol=bind", vic.ErrInvalid, "mpol"},
		{tmpfs, "/x:exec,size=1m\x00,mode=7", vic.ErrInvalid, "size"},
		{mount, "type=bind,src=/x,dst=/y", vic.ErrUnsupported, "bind"},
		{mount, "type=npipe,dst=/y", vic.ErrUnsupported, "npipe"},
		{mount, "dst=/y,bind-propagation=shared", vic.ErrInvalid, "bind-propagation"},
		{mount, "dst=/y,tmpfs-size=1", vic.ErrInvalid, "tmpfs-size"},
		{mount, "type=tmpfs,dst=/y,volume-nocopy", vic.ErrInvalid, "volume-nocopy"},
		{mount, "dst=/y,readonly=maybe", vic.ErrInvalid, "readonly"},
		{mount, "src=/x,dst=/y", vic.ErrUnsupported, "no host"},
		{mount, "src=x", vic.ErrInvalid, "absolute"},
		{mount, `dst="/y`, vic.ErrInvalid, "mount"},
		{mount, "dst=/y,volume-driver=rexray", vic.ErrInvalid, "rexray"},
		{mount, "type=nfs,src=server,dst=/y", vic.ErrInvalid, "SERVER:PATH"},
		{mount, "type=nfs,src=server:relative,dst=/y", vic.ErrInvalid, "path"},
		{mount, "type=nfs,src=a b:/x,dst=/y", vic.ErrInvalid, "server"},
		{mount, "type=nfs,src=a,vers=2:/x,dst=/y", vic.ErrInvalid, "vers"},
		{mount, "type=nfs,src=s:/x,dst=/y,nfs-version=2", vic.ErrInvalid, "version"},
		{mount, "type=nfs,src=s:/x,dst=/y,nfs-port=99999", vic.ErrInvalid, "nfs-port"},
	} {
		if err := c.parse(c.flag); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%q: got %v, want %v with %q", c.flag, err, c.kind, c.text)
		}
	}
}

// What an image wants as volumes is made with a container and goes with it where
// that is asked for; nothing is left of a container that cannot be made.
func TestVolumesOfImages(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	ctx := t.Context()
	l := testimage.NewLayer()
	l.AddFile("data/file", []byte("x"), nil)
	im := testimage.Image{
		Config: ocispec.ImageConfig{Cmd: []string{"/x"}, Volumes: map[string]struct{}{"/data": {}, "/var/lib/db/": {}, "/named": {}}},
		Steps:  []testimage.Step{{Layer: l}},
	}
	dir := t.TempDir()
	if _, err := im.Write(ctx, dir, nil); err != nil {
		t.Fatal(err)
	}
	image := e.Push(t, dir, "volumes:v1")
	spec := parse(t, engine.RunSpec{Image: image}, []string{"mine:/named"}, nil, []string{"/data"})
	spec.Container.ID = containervm.NewID()
	vm, err := e.Engine.Create(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := e.Engine.Create(ctx, spec); err != nil || again.ID() != vm.ID() {
		t.Errorf("again: %v", err)
	}
	info, err := vm.Inspect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, m := range info.Mounts {
		what := "tmpfs"
		if m.Volume != nil {
			what = "named"
			if m.Volume.Anonymous {
				what = "anonymous"
			}
		}
		targets = append(targets, m.Target+" "+what)
	}
	slices.Sort(targets)
	if d := cmp.Diff([]string{"/data tmpfs", "/named named", "/var/lib/db anonymous"}, targets); d != "" {
		t.Error(d)
	}
	if err := e.Engine.CopyIn(ctx, vm.Name(), "/named/sub", strings.NewReader(""), nil); !errors.Is(err, vic.ErrUnsupported) {
		t.Errorf("a copy below a mount: %v", err)
	}

	// Names that are taken, too many disks: what was made is taken back.
	second := spec
	second.Container.ID, second.Container.Name = "", vm.Name()
	if _, err := e.Engine.Create(ctx, second); !errors.Is(err, vic.ErrConflict) {
		t.Errorf("a name that is taken: %v", err)
	}
	many := engine.RunSpec{Image: image}
	for _, c := range "abcdefghijklmno" {
		many.Volumes = append(many.Volumes, engine.VolumeMount{Target: "/" + string(c)})
	}
	if _, err := e.Engine.Create(ctx, many); !errors.Is(err, vic.ErrUnsupported) || !strings.Contains(err.Error(), "14") {
		t.Errorf("too many volumes: %v", err)
	}
	if _, err := e.Engine.Create(ctx, parse(t, engine.RunSpec{Image: image}, []string{"a:/x", "b:/x"}, nil, nil)); !errors.Is(err, vic.ErrInvalid) || !strings.Contains(err.Error(), "target") {
		t.Errorf("one target twice: %v", err)
	}
	volumes := func() (anonymous, named int) {
		all, err := e.Engine.Volumes().List(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range all {
			if v.Info().Anonymous {
				anonymous++
			} else {
				named++
			}
		}
		return anonymous, named
	}
	if a, n := volumes(); a != 1 || n != 3 {
		t.Errorf("%d anonymous and %d named volumes", a, n)
	}
	if gone, err := e.Engine.Volumes().Prune(ctx, &volumestore.PruneOptions{All: true}); err != nil || len(gone) != 2 {
		t.Errorf("pruned %v, %v", gone, err)
	}
	v, err := e.Engine.Volumes().Open(ctx, "mine")
	if err != nil {
		t.Fatal(err)
	}
	if users, err := v.Users(ctx); err != nil || len(users) != 1 || users[0].VM.Name != vm.Name() || users[0].On {
		t.Errorf("users %+v, %v", users, err)
	}
	if err := e.Engine.Remove(ctx, vm, &engine.RemoveOptions{Volumes: true}); err != nil {
		t.Fatal(err)
	}
	if a, n := volumes(); a != 0 || n != 1 {
		t.Errorf("after the container: %d anonymous and %d named volumes", a, n)
	}
	if _, err := os.Stat(e.Local(t, v.Disk().Path)); err != nil {
		t.Errorf("the named volume's disk: %v", err)
	}
}
