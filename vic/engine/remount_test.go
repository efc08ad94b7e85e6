package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
	"github.com/vicsdk/vic-go/vic/volumestore"
)

// inside runs a shell script in a running container.
func inside(t *testing.T, vm *containervm.VM, script string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	x, err := vm.Exec(ctx, tether.ExecSpec{Args: []string{"sh", "-c", script}}, tether.Streams{Stdout: &out, Stderr: &errOut})
	if err != nil {
		t.Fatal(err)
	}
	exit, err := x.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return result{out.String(), errOut.String(), exit}
}

// wantErr sees that an error is of a kind and says something.
func wantErr(t *testing.T, what string, err, kind error, says string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), says) {
		t.Errorf("%s: %v, want %v with %q", what, err, kind, says)
	}
}

// targets are those of a container's mounts.
func targets(t *testing.T, vm *containervm.VM) string {
	t.Helper()
	info, err := vm.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range info.Mounts {
		out = append(out, m.Target)
	}
	return strings.Join(out, " ")
}

// TestVolumesOfRunningContainers grows, attaches and detaches volumes while
// processes use them.
func TestVolumesOfRunningContainers(t *testing.T) {
	t.Parallel()
	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	ctx := t.Context()
	small := map[string]string{"size": "128m"}
	mk := func(name, script string, v ...engine.VolumeMount) *containervm.VM {
		t.Helper()
		s := engine.RunSpec{Image: image, Detach: true, Volumes: v}
		s.Container.Name, s.Container.Args = name, []string{"sh", "-c", script}
		s.Container.Restart.Policy = tether.RestartAlways
		vm, err := e.Engine.Create(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		return vm
	}
	started := func(vm *containervm.VM) {
		t.Helper()
		if err := vm.Start(ctx); err != nil {
			t.Fatal(err)
		}
		await(t, vm, func(i containervm.Info) bool { return i.State == containervm.Running && !i.Started.IsZero() })
	}
	free := func(name string) {
		t.Helper()
		v, err := e.Engine.Volumes().Open(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		if users, err := v.Users(ctx); err != nil || len(users) > 0 {
			t.Errorf("%s is used by %v, %v", name, users, err)
		}
	}

	a := mk("writer", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done >> /data/log", engine.VolumeMount{Volume: "data", Target: "/data", Options: small})
	started(a)
	const df = "df -k /data | awk 'NR==2{print int($2/1024)}'"
	t.Run("grown", func(t *testing.T) {
		t.Logf("before: %s MiB", inside(t, a, df).out)
		start := time.Now()
		// Beyond 8 GiB the descriptors of groups no longer fit where they are.
		v, err := e.Engine.GrowVolume(ctx, "data", 9<<30-5)
		if err != nil || v.Disk().Bytes != 9<<30 {
			t.Fatalf("%+v, %v", v, err)
		}
		t.Logf("grown in %v", time.Since(start).Round(time.Millisecond))
		inside(t, a, df+`; dd if=/dev/zero of=/data/big bs=1M count=130 2>/dev/null
n=$(wc -l < /data/log); while [ $(wc -l < /data/log) -le $n ]; do :; done
head -n $n /data/log | awk '$1 != NR {print "line", NR, "is", $0; exit}'`).want(t, "after growing", "9055\n")
		wantErr(t, "shrinking", second(e.Engine.GrowVolume(ctx, "data", 1<<30)), vic.ErrInvalid, "shrink")
		// A process that was killed before it wrote the record, and after it.
		if err := a.ExtendDisk(ctx, vic.Disk{Path: v.Disk().Path, Bytes: 10 << 30}); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "less than the disk has", second(e.Engine.GrowVolume(ctx, "data", 9<<30+1)), vic.ErrInvalid, "already")
		for range 2 {
			if _, err := e.Engine.GrowVolume(ctx, "data", 10<<30); err != nil {
				t.Fatal(err)
			}
		}
		inside(t, a, df).want(t, "after growing again", "10063\n")
	})

	t.Run("attached", func(t *testing.T) {
		fresh := engine.VolumeMount{Volume: "fresh", Target: "/sbin", Options: small}
		start := time.Now()
		if err := e.Engine.AttachVolume(ctx, a, fresh); err != nil {
			t.Fatal(err)
		}
		t.Logf("attached in %v", time.Since(start).Round(time.Millisecond))
		if err := e.Engine.AttachVolume(ctx, a, fresh); err != nil {
			t.Errorf("once more: %v", err)
		}
		inside(t, a, "ls -A /sbin; echo kept > /sbin/file; cat /sbin/file").want(t, "a new volume", "kept\n")
		if err := e.Engine.AttachVolume(ctx, a, engine.VolumeMount{Volume: "fresh", Target: "/made/for it", ReadOnly: true}); err != nil {
			t.Errorf("a second target: %v", err)
		}
		inside(t, a, "cat '/made/for it/file'; touch '/made/for it/x' 2>/dev/null || echo ro").want(t, "the second target", "kept\nro\n")
		wantErr(t, "a target in use", e.Engine.AttachVolume(ctx, a, engine.VolumeMount{Volume: "other", Target: "/data", Options: small}), vic.ErrConflict, "/data")
		wantErr(t, "a target above others", e.Engine.AttachVolume(ctx, a, engine.VolumeMount{Volume: "other", Target: "/etc"}), vic.ErrConflict, "/etc/host")
		wantErr(t, "a target that is a file", e.Engine.AttachVolume(ctx, a, engine.VolumeMount{Volume: "other", Target: "/bin/busybox/x"}), vic.ErrInvalid, "busybox")
		wantErr(t, "the kernel's", e.Engine.AttachVolume(ctx, a, engine.VolumeMount{Volume: "other", Target: "/proc/x"}), vic.ErrInvalid, "kernel's")
		free("other")
		if err := a.AttachMount(ctx, containervm.Mount{Target: "/scratch", Tmpfs: &tether.Tmpfs{Bytes: 1 << 20}}); err != nil {
			t.Error(err)
		}
		inside(t, a, "df -k /scratch | awk 'NR==2{print $2}'").want(t, "a tmpfs", "1024\n")
		if got, want := targets(t, a), "/data /sbin /made/for it /scratch"; got != want {
			t.Errorf("mounts %q, want %q", got, want)
		}
	})

	t.Run("detached", func(t *testing.T) {
		for _, target := range []string{"/scratch", "/made/for it"} {
			if err := e.Engine.DetachVolume(ctx, a, target); err != nil {
				t.Error(err)
			}
		}
		user, err := a.ExecDetached(ctx, tether.ExecSpec{Args: []string{"sleep", "1000"}, Dir: "/sbin"})
		if err != nil {
			t.Fatal(err)
		}
		wantErr(t, "in use", e.Engine.DetachVolume(ctx, a, "/sbin"), vic.ErrInUse, `"sleep"`)
		inside(t, a, "cat /sbin/file").want(t, "what is in use stays", "kept\n")
		inside(t, a, fmt.Sprintf("kill -9 %d; while [ -e /proc/%[1]d/cwd/file ]; do :; done", user.PID))
		// A copy of the mount that the container has made for itself.
		if user, err = a.ExecDetached(ctx, tether.ExecSpec{Args: []string{"unshare", "-m", "sleep", "1000"}, Privileged: true}); err != nil || user.State != tether.ExecRunning {
			t.Fatal(user, err)
		}
		inside(t, a, fmt.Sprintf("while ! grep -q 1000 /proc/%d/cmdline || grep -q unshare /proc/%[1]d/cmdline; do :; done", user.PID))
		wantErr(t, "in use by another namespace", e.Engine.DetachVolume(ctx, a, "/sbin"), vic.ErrInUse, "namespace")
		inside(t, a, "cat /sbin/file").want(t, "what is in use stays", "kept\n")
		inside(t, a, fmt.Sprintf("kill -9 %d", user.PID))
		if err := e.Engine.DetachVolume(ctx, a, "/sbin"); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "twice", e.Engine.DetachVolume(ctx, a, "/sbin"), vic.ErrNotFound, "/sbin")
		inside(t, a, "readlink /sbin/init; ls /sys/block | grep -c sd").want(t, "after that", "/bin/busybox\n2\n")
		free("fresh")
	})

	t.Run("of a server", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "there"), []byte("from the server\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		port := listenNFS(t, dir).Addr().(*net.TCPAddr).Port
		server := func(port int) *tether.NFS {
			return &tether.NFS{Server: nfsHost, Path: "/", Version: "3", Port: port, MountPort: port}
		}
		if err := a.AttachMount(ctx, containervm.Mount{Target: "/nfs", NFS: server(port)}); err != nil {
			t.Fatal(err)
		}
		inside(t, a, "cat /nfs/there; echo x > /nfs/made").want(t, "a server's directory", "from the server\n")
		if err := a.DetachMount(ctx, "/nfs"); err != nil {
			t.Error(err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "made")); err != nil || string(b) != "x\n" {
			t.Errorf("on the server: %q, %v", b, err)
		}
		if err := a.AttachMount(ctx, containervm.Mount{Target: "/nfs", NFS: server(1)}); err == nil || !strings.Contains(err.Error(), nfsHost) {
			t.Errorf("where no server is: %v", err)
		}
		if r := inside(t, a, "grep nfs /proc/mounts"); r.out != "" {
			t.Errorf("mounted: %s", r.out)
		}
		if got := targets(t, a); got != "/data" {
			t.Errorf("mounts %q", got)
		}
	})

	t.Run("cut off", func(t *testing.T) {
		// From the task on nothing reaches the guest any more.
		cfg, err := e.Lab.Config()
		if err != nil {
			t.Fatal(err)
		}
		dial := cfg.DialGuest
		cfg.DialGuest = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dial(ctx, network, address)
			return cutConn{c, func() bool { return strings.Contains(targets(t, a), "/sbin") }}, err
		}
		c, err := vic.Connect(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close(context.WithoutCancel(ctx))
		cut := e.Open(t, c, nil)
		same, _, err := cut.Find(ctx, "writer")
		if err != nil {
			t.Fatal(err)
		}
		fresh := engine.VolumeMount{Volume: "fresh", Target: "/sbin"}
		if err := cut.AttachVolume(ctx, same, fresh); err == nil || !strings.Contains(err.Error(), "next start") {
			t.Errorf("cut off: %v", err)
		}
		inside(t, a, "readlink /sbin/init").want(t, "what a controller leaves that is killed", "/bin/busybox\n")
		if err := e.Engine.AttachVolume(ctx, a, fresh); err != nil {
			t.Fatal(err)
		}
		inside(t, a, "cat /sbin/file").want(t, "the same again", "kept\n")
		if err := e.Engine.DetachVolume(ctx, a, "/sbin"); err != nil {
			t.Error(err)
		}
		free("fresh")
	})

	// One that was never started gets the image's content, as at creation.
	b := mk("reader", "sleep 1000")
	if err := e.Engine.AttachVolume(ctx, b, engine.VolumeMount{Volume: "other", Target: "/sbin"}); err != nil {
		t.Fatal(err)
	}
	started(b)
	if err := e.Engine.AttachVolume(ctx, b, engine.VolumeMount{Volume: "fresh", Target: "/x"}); err != nil {
		t.Fatal(err)
	}
	const look = "cat /x/file; readlink /sbin/init; grep -c ' /sbin ' /proc/mounts"
	inside(t, b, look).want(t, "another container", "kept\n/bin/busybox\n1\n")
	wantErr(t, "of a running container", e.Engine.AttachVolume(ctx, b, engine.VolumeMount{Volume: "data", Target: "/data"}), vic.ErrInUse, "writer")
	if got := targets(t, b); got != "/sbin /x" {
		t.Errorf("mounts %q", got)
	}
	// The process's next run has it, and so has the VM's next start.
	inside(t, b, "kill -9 $(pidof sleep)")
	await(t, b, func(i containervm.Info) bool { return i.State == containervm.Running && i.Restarts > 0 })
	inside(t, b, look).want(t, "the next run", "kept\n/bin/busybox\n1\n")
	stop := func(vm *containervm.VM) {
		t.Helper()
		if err := vm.Stop(ctx, nil); err != nil {
			t.Fatal(err)
		}
	}
	stop(b)
	if err := e.Engine.DetachVolume(ctx, b, "/sbin"); err != nil {
		t.Error(err)
	}
	free("other")
	if err := e.Engine.AttachVolume(ctx, b, engine.VolumeMount{Volume: "empty", Target: "/usr/bin", Options: small}); err != nil {
		t.Error(err)
	}
	started(b)
	inside(t, b, "cat /x/file; grep -c ' /sbin ' /proc/mounts; ls -A /usr/bin").want(t, "the next start", "kept\n0\n")

	// Nothing is changed of what is suspended.
	suspend(t, e, a)
	wantErr(t, "growth", second(e.Engine.GrowVolume(ctx, "data", 11<<30)), vic.ErrState, "suspended")
	wantErr(t, "attachment", e.Engine.AttachVolume(ctx, a, engine.VolumeMount{Volume: "other", Target: "/x"}), vic.ErrState, "suspended")
	wantErr(t, "detachment", e.Engine.DetachVolume(ctx, a, "/data"), vic.ErrState, "suspended")
	started(a)
	stop(a)
	stop(b)
	for _, name := range []string{"data", "fresh", "other", "empty"} {
		fsckVolume(t, e, name)
	}
}

func second[T any](_ T, err error) error { return err }

// await waits until a container is as wanted.
func await(t *testing.T, vm *containervm.VM, wanted func(containervm.Info) bool) {
	t.Helper()
	var info containervm.Info
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if info, err = vm.Inspect(t.Context()); err == nil && wanted(info) {
			return
		}
	}
	t.Fatalf("%+v, %v", info, err)
}

func suspend(t *testing.T, e *testlab.Env, vm *containervm.VM) {
	t.Helper()
	ref := types.ManagedObjectReference{Type: "VirtualMachine", Value: vm.Ref().ID}
	task, err := object.NewVirtualMachine(e.Client.Vim(), ref).Suspend(t.Context())
	ended(t, task, err)
}

// cutConn is a connection that breaks once something is so.
type cutConn struct {
	net.Conn
	cut func() bool
}

func (c cutConn) Write(p []byte) (int, error) {
	if c.cut() {
		_ = c.Close()
	}
	return c.Conn.Write(p)
}

// TestMountsWithoutGuests changes mounts of containers that are off, all at once,
// and what no guest answers for.
func TestMountsWithoutGuests(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	ctx := t.Context()
	s := engine.RunSpec{Image: e.Busybox(t), Detach: true}
	s.Container.Name, s.Container.Args = "c", []string{"true"}
	vm, err := e.Engine.Create(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	attach := func(n int) error {
		return e.Engine.AttachVolume(ctx, vm, engine.VolumeMount{Volume: fmt.Sprint("v", n), Target: fmt.Sprint("/v/", n), Options: map[string]string{"size": "128m"}})
	}
	var wg sync.WaitGroup
	for n := range 6 {
		wg.Go(func() {
			// Others are faster, for longer than one is tried again.
			err := attach(n)
			for errors.Is(err, vic.ErrConflict) {
				err = attach(n)
			}
			if err != nil {
				t.Errorf("attach %d: %v", n, err)
			}
		})
	}
	wg.Wait()
	if got := strings.Fields(targets(t, vm)); len(got) != 6 {
		t.Errorf("mounts %v", got)
	}
	if err := e.Engine.AttachVolume(ctx, vm, engine.VolumeMount{Volume: "v3", Target: "/again"}); err != nil {
		t.Errorf("one disk at two targets: %v", err)
	}
	wantErr(t, "another at a target", e.Engine.AttachVolume(ctx, vm, engine.VolumeMount{Volume: "v3", Target: "/v/4"}), vic.ErrConflict, "/v/4")
	wantErr(t, "an invalid target", e.Engine.AttachVolume(ctx, vm, engine.VolumeMount{Target: "/proc", Options: map[string]string{"size": "128m"}}), vic.ErrInvalid, "kernel's")
	wantErr(t, "two kinds", vm.AttachMount(ctx, containervm.Mount{Target: "/x", NFS: &tether.NFS{}, Tmpfs: &tether.Tmpfs{}}), vic.ErrInvalid, "one of")
	for _, target := range []string{"/v/3", "/v/4/"} {
		if err := e.Engine.DetachVolume(ctx, vm, target); err != nil {
			t.Error(err)
		}
	}
	if err := e.Engine.Volumes().Delete(ctx, "v3"); !errors.Is(err, vic.ErrInUse) {
		t.Errorf("a volume that is mounted at another target still: %v", err)
	}
	if err := e.Engine.Volumes().Delete(ctx, "v4"); err != nil {
		t.Error(err)
	}
	if all, err := e.Engine.Volumes().List(ctx, &volumestore.ListOptions{Anonymous: true}); err != nil || len(all) > 0 {
		t.Errorf("anonymous volumes: %v, %v", all, err)
	}

	// On, and no guest answers: nothing is changed.
	if err := vm.Start(ctx); err != nil {
		t.Fatal(err)
	}
	before := targets(t, vm)
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if err := vm.AttachMount(short, containervm.Mount{Target: "/t", Tmpfs: &tether.Tmpfs{}}); err == nil {
		t.Error("attached without a guest")
	}
	short, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if err := vm.DetachMount(short, "/again"); err == nil {
		t.Error("detached without a guest")
	}
	if after := targets(t, vm); after != before {
		t.Errorf("mounts %q, before %q", after, before)
	}

	// A VM that is nobody's container.
	v, err := e.Engine.Volumes().Create(ctx, volumestore.Spec{Name: "foreign", Bytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	foreign(t, e, "stranger", v.Disk().Path)
	wantErr(t, "growth under a stranger", second(e.Engine.GrowVolume(ctx, "foreign", 1<<30)), vic.ErrInUse, "stranger")
	// The disk grows under a guest that cannot be asked, and the record tells so.
	short, cancel = context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := e.Engine.GrowVolume(short, "v3", 256<<20); err == nil || !strings.Contains(err.Error(), "filesystem grows when") {
		t.Errorf("growth without a guest: %v", err)
	}
	if v, err := e.Engine.Volumes().Open(ctx, "v3"); err != nil || v.Disk().Bytes != 256<<20 {
		t.Errorf("%+v, %v", v, err)
	}
	if err := vm.Kill(ctx, ""); err != nil {
		t.Fatal(err)
	}
	if v, err := e.Engine.GrowVolume(ctx, "v3", 384<<20); err != nil || v.Disk().Bytes != 384<<20 {
		t.Errorf("of a container that is off: %+v, %v", v, err)
	}
}

// foreign powers on a VM that is not ours and has a disk.
func foreign(t *testing.T, e *testlab.Env, name, disk string) {
	t.Helper()
	ctx := t.Context()
	f := find.NewFinder(e.Client.Vim())
	dc, err := f.DefaultDatacenter(ctx)
	if err != nil {
		t.Fatal(err)
	}
	folders, err := dc.Folders(ctx)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := f.SetDatacenter(dc).ResourcePool(ctx, "/dc1/host/cluster1/Resources")
	if err != nil {
		t.Fatal(err)
	}
	list := object.VirtualDeviceList{vsphere.SCSIController(-100), vsphere.ExistingDisk(-101, -100, 0, disk)}
	devices, err := list.ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd)
	if err != nil {
		t.Fatal(err)
	}
	task, err := folders.VmFolder.CreateVM(ctx, types.VirtualMachineConfigSpec{
		Name: name, NumCPUs: 1, MemoryMB: 64, GuestId: "otherLinux64Guest", DeviceChange: devices,
		Files: &types.VirtualMachineFileInfo{VmPathName: "[datastore1]"},
	}, pool, nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := task.WaitForResult(ctx)
	if err != nil {
		t.Fatal(err)
	}
	task, err = object.NewVirtualMachine(e.Client.Vim(), info.Result.(types.ManagedObjectReference)).PowerOn(ctx)
	ended(t, task, err)
}
