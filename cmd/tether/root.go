//go:build linux && amd64

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/sys/unix"
)

// A namespace is the container's world. Its functions run on one thread that
// has the container's root and mount namespace, so that every path they use is
// looked up inside the container and no link in it leads out.
type namespace struct {
	calls    chan func()
	pid1     int
	thread   int // that runs the functions
	files    etcFiles
	settings tether.Settings
	launcher *os.File // sets limits; nil where there are none to set
	with     surroundings
	placed   map[string]uint64 // the kernel's numbers of the configuration's mounts, by target
}

// surroundings are what a container finds beside its root.
type surroundings struct {
	config *tether.Config
	mounts []tether.Mount
	nfs    map[string]string // where volumes of NFS servers are mounted, by target
	first  bool              // nothing of the container has run yet
}

// do runs f inside the container.
func (n *namespace) do(f func() error) error {
	result := make(chan error, 1)
	n.calls <- func() { result <- f() }
	return <-result
}

// close ends the thread, and with it the mounts, once the container's processes
// are gone.
func (n *namespace) close() {
	close(n.calls)
	if n.launcher != nil {
		_ = n.launcher.Close()
	}
}

// newNamespace makes the container's world of the root at dir. files are to
// appear in its /etc; its processes are bound by the configuration's settings.
func newNamespace(dir string, files etcFiles, with surroundings) (*namespace, error) {
	s := with.config.Settings
	n := &namespace{calls: make(chan func()), files: files, settings: s, with: with}
	go func() {
		// Never unlocked: the thread is not fit for anything else.
		runtime.LockOSThread()
		for f := range n.calls {
			f()
		}
	}()
	if err := n.do(func() error { return n.build(dir) }); err != nil {
		return nil, err
	}
	// Everything in the container would end with its PID 1, which holds no memory.
	if err := setOOMScore(strconv.Itoa(n.pid1), -1000); err != nil {
		return nil, err
	}
	// The kernel never kills the tether itself, the VM's first process; what it
	// starts inherits its score.
	return n, setOOMScore("self", s.OOMScoreAdj)
}

const shmDir = "/dev/shm"

// containerMounts are what a container finds mounted, beside /proc. Since the
// VM is the container's alone, /sys and the cgroups are writable.
var containerMounts = []mount{
	{"tmpfs", "/dev", unix.MS_NOSUID | unix.MS_STRICTATIME, "mode=755,size=64k", 0o755},
	{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5", 0o755},
	{"tmpfs", shmDir, unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=1777,size=64m", 0o1777},
	{"mqueue", "/dev/mqueue", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", 0o1777},
	{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", 0o555},
	{"cgroup2", "/sys/fs/cgroup", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", 0o555},
}

func (n *namespace) build(dir string) error {
	n.thread = unix.Gettid()
	var all []device
	if n.settings.Privileged {
		var err error
		if all, err = allDevices("/dev"); err != nil {
			return err
		}
	}
	var err error
	if n.launcher, err = newLauncher(n.settings.Ulimits); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", dir, err)
	}
	trees, err := n.files.trees()
	if err != nil {
		return err
	}
	defer func() {
		for _, t := range trees {
			_ = unix.Close(t.fd)
		}
	}()
	mounts, err := openMounts(n.with.mounts, n.with.nfs)
	if err != nil {
		return err
	}
	defer closeMounts(mounts)
	// A RAM disk cannot be pivoted away from; moving the mount over / and
	// changing to it leaves no way back, as switch_root(8) does.
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("root: move: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("root: chroot: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	for _, m := range containerMounts {
		if size := n.with.config.ShmBytes; size > 0 && m.target == shmDir {
			m.data = fmt.Sprintf("mode=1777,size=%d", size)
		}
		if err := m.do(); err != nil {
			return err
		}
	}
	if err := os.MkdirAll("/proc", 0o555); err != nil {
		return err
	}
	if err := devices(); err != nil {
		return err
	}
	for _, d := range all {
		if err := d.make(); err != nil {
			return err
		}
	}
	if err := placeMounts(mounts, n.with.first); err != nil {
		return err
	}
	n.placed = map[string]uint64{}
	for _, p := range mounts {
		n.placed[p.Target] = p.id
	}
	for _, t := range trees {
		if err := t.attach(); err != nil {
			return err
		}
	}
	if n.with.config.ReadOnlyRoot {
		if err := makeReadOnly(n.with.config.Process.Dir); err != nil {
			return err
		}
	}
	if n.pid1, err = startPID1("/dev/.vic-init"); err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(n.pid1, 0)
	if err != nil {
		return fmt.Errorf("PID namespace: %w", err)
	}
	defer unix.Close(fd)
	// What this thread starts from now on is in the namespace.
	if err := unix.Setns(fd, unix.CLONE_NEWPID); err != nil {
		return fmt.Errorf("PID namespace: enter: %w", err)
	}
	return bound(n.settings)
}

// makeReadOnly makes the root read-only, and before that the process's directory,
// which is made where it is missing.
func makeReadOnly(dir string) error {
	if dir != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("process.dir: %w", err)
		}
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("root: make read-only: %w", err)
	}
	return nil
}

// devices makes the nodes and links that the OCI runtime specification asks
// for (config-linux.md, Default Devices).
func devices() error {
	old := unix.Umask(0)
	defer unix.Umask(old)
	for _, d := range []struct {
		name         string
		major, minor uint32
	}{
		{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
	} {
		if err := unix.Mknod("/dev/"+d.name, unix.S_IFCHR|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return fmt.Errorf("/dev/%s: %w", d.name, err)
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
		"ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, "/dev/"+name); err != nil {
			return err
		}
	}
	return nil
}

// etcFiles are the files in the container's /etc that the VM decides: they are
// kept in a tmpfs and mounted over the image's, which stay as they are.
type etcFiles struct{ dir string }

// writeEtc writes the files for a start. The resolver's may be written again
// when a DHCP lease changes.
func writeEtc(dir string, c *tether.Config, resolv string) (etcFiles, error) {
	e := etcFiles{dir}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return e, err
	}
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
	name := hostname(c)
	address := "127.0.1.1"
	for _, nic := range c.NICs {
		if nic.Address.IsValid() {
			address = nic.Address.Addr().String()
			break
		}
	}
	short, _, _ := strings.Cut(name, ".")
	if d := c.Settings.Domainname; d != "" && !strings.HasSuffix(name, "."+d) {
		name += "." + d
	}
	if short != name {
		name += " " + short
	}
	hosts += address + "\t" + name + "\n"
	for _, h := range c.Settings.ExtraHosts {
		hosts += h.Address.String() + "\t" + h.Name + "\n"
	}
	return e, errors.Join(
		e.write("hosts", hosts),
		e.write("hostname", hostname(c)+"\n"),
		e.write("resolv.conf", resolv),
	)
}

func (e etcFiles) write(name, text string) error {
	// In place: a mounted file must stay the same inode.
	return os.WriteFile(filepath.Join(e.dir, name), []byte(text), 0o644)
}

// hostname is the configured name, or else the start of the ID as Docker has
// it.
func hostname(c *tether.Config) string {
	switch {
	case c.Hostname != "":
		return c.Hostname
	case len(c.ID) >= 12:
		return c.ID[:12]
	}
	return "container"
}

// tree is a mount that is not attached anywhere yet (open_tree(2)).
type tree struct {
	fd     int
	target string
}

func (e etcFiles) trees() ([]tree, error) {
	var all []tree
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		fd, err := unix.OpenTree(unix.AT_FDCWD, filepath.Join(e.dir, name), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return all, fmt.Errorf("/etc/%s: %w", name, err)
		}
		all = append(all, tree{fd, "/etc/" + name})
	}
	return all, nil
}

// attach mounts the tree over its target, which is made where it is missing.
func (t tree) attach() error {
	if err := os.MkdirAll(filepath.Dir(t.target), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(t.target, os.O_CREATE|os.O_RDONLY|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	_ = f.Close()
	if err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, t.target, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS); err != nil {
		return fmt.Errorf("%s: mount: %w", t.target, err)
	}
	return nil
}
