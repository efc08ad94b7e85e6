package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
	"github.com/vicsdk/vic-go/vic/volumestore"
)

// parse reads -v and --mount flags into a RunSpec.
func parse(t *testing.T, s engine.RunSpec, volumes, mounts, tmpfs []string) engine.RunSpec {
	t.Helper()
	for _, f := range volumes {
		v, err := engine.ParseVolume(f)
		if err != nil {
			t.Fatal(err)
		}
		s.Volumes = append(s.Volumes, v)
	}
	for _, f := range mounts {
		if err := engine.ParseMount(f, &s); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range tmpfs {
		m, err := engine.ParseTmpfs(f)
		if err != nil {
			t.Fatal(err)
		}
		s.Container.Mounts = append(s.Container.Mounts, m)
	}
	return s
}

// run runs a shell script to its end and deletes the container.
func run(t *testing.T, e *testlab.Env, s engine.RunSpec, script string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s.Container.Args = []string{"sh", "-c", script}
	s.Remove, s.Streams = true, tether.Streams{Stdout: &out, Stderr: &errOut}
	_, exit, err := e.Engine.Run(ctx, s)
	if err != nil {
		t.Fatalf("run: %v\nstdout: %s\nstderr: %s", err, &out, &errOut)
	}
	return result{out.String(), errOut.String(), exit}
}

func (r result) want(t *testing.T, what, out string) {
	t.Helper()
	if r.out != out || r.exit.Code != 0 || r.exit.Error != "" {
		t.Errorf("%s: got %q, %+v, stderr %q; want %q", what, r.out, r.exit, r.err, out)
	}
}

// fsckVolume looks at a volume's disk with programs that are not ours.
func fsckVolume(t *testing.T, e *testlab.Env, name string) {
	t.Helper()
	v, err := e.Engine.Volumes().Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	disk := e.Local(t, v.Disk().Path)
	if info := command(t, "qemu-img", "info", disk); !strings.Contains(info, fmt.Sprintf("(%d bytes)", v.Disk().Bytes)) {
		t.Errorf("qemu-img: %s", info)
	}
	command(t, "e2fsck", "-fn", strings.TrimSuffix(disk, ".vmdk")+"-flat.vmdk")
}

func TestVolumes(t *testing.T) {
	t.Parallel()
	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	ctx := t.Context()
	spec := engine.RunSpec{Image: image}

	// What one VM writes another reads, and the volume outlives both. The image's
	// content is there, once: what was deleted stays so.
	const opt = ",volume-opt=size=128m,volume-label=test"
	first := parse(t, spec, nil, []string{
		"src=data,dst=/data" + opt, "src=tmp,dst=/tmp" + opt, "src=sbin,dst=/sbin" + opt,
		"src=programs,dst=/usr/bin" + opt, "src=none,dst=/root,volume-nocopy" + opt,
	}, nil)
	run(t, e, first, `set -e
test -z "$(ls -A /data)"
stat -c '%n %a %u:%g' /data /tmp /root
test "$(readlink /sbin/init)" = /bin/busybox
test $(stat -c %h /usr/bin/env) -gt 10
rm /sbin/init
echo kept > /data/file
chown 12:34 /data/file; chmod 4711 /data/file
mkdir /data/sub; echo below > /data/sub/file; ln -s / /data/sub/root; ln -s /sub /data/link
`).want(t, "the first user", "/data 755 0:0\n/tmp 1777 0:0\n/root 755 0:0\n")
	for _, n := range []string{"data", "programs"} {
		fsckVolume(t, e, n)
	}
	second := parse(t, spec, []string{"sbin:/mnt/sbin", "data:/again:ro"},
		[]string{"type=volume,source=data,target=/sub,volume-subpath=link", "type=volume,src=data,dst=/data", "type=tmpfs,dst=/scratch,tmpfs-size=1m,tmpfs-mode=750"},
		[]string{"/run:size=2m,uid=5,exec", "/data/nested"})
	second.Container.ShmBytes = 3 << 20
	second.Container.ReadOnlyRoot = true
	second.Container.Dir = "/work/dir"
	run(t, e, second, `
test -e /mnt/sbin/init && echo not kept
stat -c '%a %u:%g' /data/file
cat /again/file /sub/file
ls /data | tr '\n' ' '; echo
touch /again/x 2>/dev/null && echo wrote to ro
touch /x 2>/dev/null && echo wrote to root
touch /data/nested/t /scratch/t /run/t /dev/t || echo not writable
echo 1.2.3.4 other >> /etc/hosts || echo no hosts
stat -c '%a %u' /scratch /run
for d in /scratch /run /dev/shm; do df -k $d | awk 'NR==2{print $2}'; done
pwd
grep -c lost+found /proc/mounts
grep ' /run ' /proc/mounts | grep -c noexec
true
`).want(t, "the second user", "4711 12:34\nkept\nbelow\nfile link nested sub \n750 0\n1777 5\n1024\n2048\n3072\n/work/dir\n0\n0\n")
	fsckVolume(t, e, "data")

	t.Run("subpaths stay inside", func(t *testing.T) {
		s := parse(t, spec, nil, []string{"src=data,dst=/s,volume-subpath=sub/root"}, nil)
		if r := run(t, e, s, "ls /s | tr '\\n' ' '"); !strings.Contains(r.out, "file link") || r.exit.Code != 0 {
			t.Errorf("a link to the root leads to the volume's: %+v", r)
		}
		s = parse(t, spec, nil, []string{"src=data,dst=/s,volume-subpath=missing"}, nil)
		if r := run(t, e, s, "true"); r.exit.Code != 125 || !strings.Contains(r.exit.Error, "missing") {
			t.Errorf("a subpath that is not there: %+v", r.exit)
		}
	})

	t.Run("one writer", func(t *testing.T) {
		mk := func(name string) *containervm.VM {
			s := parse(t, spec, []string{"data:/data"}, nil, nil)
			s.Detach, s.Container.Name, s.Container.Args = true, name, []string{"sleep", "1000"}
			vm, err := e.Engine.Create(ctx, s)
			if err != nil {
				t.Fatal(err)
			}
			return vm
		}
		a, b := mk("holder"), mk("other")
		if err := a.Start(ctx); err != nil {
			t.Fatal(err)
		}
		err := b.Start(ctx)
		if !errors.Is(err, vic.ErrInUse) || !strings.Contains(err.Error(), "holder") {
			t.Errorf("a second VM: %v", err)
		}
		if err := e.Engine.Volumes().Delete(ctx, "data"); !errors.Is(err, vic.ErrInUse) || !strings.Contains(err.Error(), "holder") {
			t.Errorf("deletion of a volume in use: %v", err)
		}
		if err := e.Engine.Remove(ctx, a, &engine.RemoveOptions{Force: true, Volumes: true}); err != nil {
			t.Error(err)
		}
		if err := b.Start(ctx); err != nil {
			t.Errorf("after the first is gone: %v", err)
		}
		if err := e.Engine.Remove(ctx, b, &engine.RemoveOptions{Force: true, Volumes: true}); err != nil {
			t.Error(err)
		}
	})
	// Its last VM was powered off under it.
	run(t, e, parse(t, spec, []string{"data:/data"}, nil, nil), "cat /data/file").want(t, "after a power-off", "kept\n")
	fsckVolume(t, e, "data")

	t.Run("grown", func(t *testing.T) {
		if _, err := e.Engine.Volumes().Create(ctx, volumestore.Spec{Name: "small", Bytes: 1}); err != nil {
			t.Fatal(err)
		}
		s := parse(t, spec, []string{"small:/v"}, nil, nil)
		const df = "df -k /v | awk 'NR==2{print int($2/1024)}'"
		r := run(t, e, s, "echo x > /v/x; "+df)
		before := r.out
		// Beyond 8 GiB the descriptors of groups no longer fit where they are.
		if v, err := e.Engine.Volumes().Grow(ctx, "small", 9<<30); err != nil || v.Disk().Bytes != 9<<30 {
			t.Fatalf("%+v, %v", v, err)
		}
		run(t, e, s, "cat /v/x; "+df+"; dd if=/dev/zero of=/v/big bs=1M count=150 2>/dev/null; echo end >> /v/big").want(t, "after growing from "+before, "x\n9055\n")
		fsckVolume(t, e, "small")
		run(t, e, s, "tail -c 4 /v/big").want(t, "the contents", "end\n")
	})
	if got, err := e.Engine.Volumes().List(ctx, &volumestore.ListOptions{Anonymous: true}); err != nil || len(got) > 0 {
		t.Errorf("anonymous volumes: %v, %v", got, err)
	}
}
