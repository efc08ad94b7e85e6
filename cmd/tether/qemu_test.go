//go:build linux && amd64

package main_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/bootiso"
	"github.com/vicsdk/vic-go/bootiso/kernel"
	"github.com/vicsdk/vic-go/internal/rpci"
	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/crypto/ssh"
)

const (
	testID   = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	testMAC  = "00:50:56:12:34:56"
	bootTime = 90 * time.Second // for anything a test waits for; emulation is slow on a busy machine
)

// image is a boot image under test, built once.
type image struct {
	dir     string
	iso     string
	kernel  string // to start directly: unpacked where that can be done
	initrd  string
	cmdline string
	err     error
}

// The images: with vic's own kernel, and with Debian's and its modules.
var (
	ownImage    = sync.OnceValue(func() image { return buildImage(bootiso.Options{}) })
	debianImage = sync.OnceValue(func() image {
		tree, modules, err := bootiso.KernelTree(os.Getenv("VIC_TEST_KERNEL_TREE"))
		if err != nil {
			return image{err: err}
		}
		return buildImage(bootiso.Options{Kernel: tree, Modules: modules})
	})

	imagesMu sync.Mutex
	imageDir []string // what TestMain removes
)

func buildImage(o bootiso.Options) image {
	dir, err := os.MkdirTemp("", "vic-tether-test-")
	if err != nil {
		return image{err: err}
	}
	imagesMu.Lock()
	imageDir = append(imageDir, dir)
	imagesMu.Unlock()
	im := image{
		dir: dir, iso: filepath.Join(dir, "bootstrap.iso"),
		kernel: filepath.Join(dir, "kernel"), initrd: filepath.Join(dir, "initrd"),
	}
	o.Cmdline, o.Out = os.Getenv("VIC_TEST_CMDLINE"), im.iso
	if im.err = bootiso.Build(context.Background(), o); im.err != nil {
		return im
	}
	f, err := os.Open(im.iso)
	if err != nil {
		return image{err: err}
	}
	defer f.Close()
	parts, err := bootiso.Extract(f)
	if err != nil {
		return image{err: err}
	}
	im.cmdline = parts.Cmdline
	if o.Kernel == nil {
		if parts.Kernel, err = kernel.ELF(parts.Kernel); err != nil {
			return image{err: err}
		}
	}
	im.err = errors.Join(os.WriteFile(im.kernel, parts.Kernel, 0o600), os.WriteFile(im.initrd, parts.Initrd, 0o600))
	return im
}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, dir := range imageDir {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// needQEMU skips, or fails in CI, where VMs cannot be booted.
func needQEMU(t *testing.T, debian bool) image {
	t.Helper()
	missing := ""
	for _, tool := range []string{"qemu-system-x86_64", "mkfs.ext4", "debugfs", "e2fsck", "busybox"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing += " " + tool
		}
	}
	if debian && os.Getenv("VIC_TEST_KERNEL_TREE") == "" {
		missing += " VIC_TEST_KERNEL_TREE (an unpacked kernel package)"
	}
	if testing.Short() {
		missing += " (-short)"
	}
	if missing != "" {
		if os.Getenv("CI") == "true" {
			t.Fatalf("cannot boot VMs without%s", missing)
		}
		t.Skipf("cannot boot VMs without%s", missing)
	}
	build := ownImage
	if debian {
		build = debianImage
	}
	im := build()
	if im.err != nil {
		t.Fatal(im.err)
	}
	return im
}

// guest is a VM under test and its guestinfo.
type guest struct {
	t    *testing.T
	disk string
	addr string // on the host, of the tether's port
	cmd  *exec.Cmd
	qmp  string
	ca   crypto.Signer
	born time.Time

	mu      sync.Mutex
	info    map[string]string
	changed chan struct{}
	console bytes.Buffer
	exited  chan struct{}
}

type bootOptions struct {
	config func(*tether.Config) // changes the default configuration
	files  map[string]string    // more files of the container's root, by path
	disk   string               // of an earlier guest
	diskMB int                  // of a new disk; 64 where zero
	cd     bool                 // boots from the ISO instead of directly
	debian bool                 // boots Debian's kernel
	ram    string
}

// boot starts a VM that runs args.
func boot(t *testing.T, o bootOptions, args ...string) *guest {
	t.Helper()
	im := needQEMU(t, o.debian)
	_, ca, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	capub, err := ssh.NewPublicKey(ca.Public())
	if err != nil {
		t.Fatal(err)
	}
	config := tether.Config{
		Version: 1, ID: testID, Authority: string(ssh.MarshalAuthorizedKey(capub)),
		Process: tether.Process{Args: args}, Hostname: "test",
		NICs: []tether.NIC{{MAC: testMAC}}, AwaitAttach: 20 * time.Second,
	}
	if o.config != nil {
		o.config(&config)
	}
	doc, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	g := &guest{
		t: t, disk: o.disk, ca: ca, qmp: filepath.Join(dir, "qmp"), exited: make(chan struct{}),
		info: map[string]string{tether.ConfigKey: string(doc)}, changed: make(chan struct{}),
	}
	if g.disk == "" {
		g.disk = makeDisk(t, o.files, max(o.diskMB, 64))
	}
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr = port.Addr().String()
	_ = port.Close() // QEMU takes it.
	serial, err := net.Listen("unix", filepath.Join(dir, "com4"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = serial.Close() })
	go g.serveSerial(serial)

	ram := o.ram
	if ram == "" {
		ram = "256M"
	}
	argv := []string{
		"-nodefaults", "-display", "none", "-no-user-config", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", "1", "-m", ram, "-rtc", "base=utc", "-qmp", "unix:" + g.qmp + ",server=on,wait=off", "-no-reboot",
		"-chardev", "stdio,id=com1,signal=off", "-device", "isa-serial,chardev=com1",
		"-chardev", "socket,id=com4,path=" + filepath.Join(dir, "com4"), "-device", "isa-serial,index=3,chardev=com4",
		"-device", "pvscsi,id=scsi0", "-drive", "if=none,id=d0,format=raw,cache=unsafe,file=" + g.disk,
		"-device", "scsi-hd,drive=d0,bus=scsi0.0,scsi-id=0",
		"-netdev", "user,id=n0,hostfwd=tcp:" + g.addr + "-:2377", "-device", "vmxnet3,netdev=n0,mac=" + testMAC,
	}
	if o.cd {
		argv = append(argv, "-drive", "if=none,id=cd0,media=cdrom,readonly=on,file="+im.iso,
			"-device", "ide-cd,drive=cd0,bus=ide.0,bootindex=0")
	} else {
		argv = append(argv, "-kernel", im.kernel, "-initrd", im.initrd, "-append", im.cmdline)
	}
	g.cmd = exec.Command("qemu-system-x86_64", argv...)
	g.cmd.Stdout, g.cmd.Stderr = lockedWriter{g}, lockedWriter{g}
	g.born = time.Now()
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = g.cmd.Wait()
		close(g.exited)
	}()
	t.Cleanup(func() {
		_ = g.cmd.Process.Kill()
		<-g.exited
		if t.Failed() || os.Getenv("VIC_TEST_CONSOLE") != "" {
			t.Logf("console:\n%s", g.consoleText())
		}
	})
	return g
}

type lockedWriter struct{ g *guest }

func (w lockedWriter) Write(p []byte) (int, error) {
	w.g.mu.Lock()
	defer w.g.mu.Unlock()
	return w.g.console.Write(p)
}

func (g *guest) consoleText() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.console.String()
}

// serveSerial answers guestinfo requests as the lab does.
func (g *guest) serveSerial(l net.Listener) {
	c, err := l.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	_ = rpci.Serve(c, func(request string) string {
		g.mu.Lock()
		defer g.mu.Unlock()
		verb, rest, _ := strings.Cut(request, " ")
		switch verb {
		case "info-get":
			if v, ok := g.info[rest]; ok {
				return "1 " + v
			}
			return "0 No value found"
		case "info-set":
			k, v, _ := strings.Cut(rest, " ")
			g.info[k] = v
			close(g.changed)
			g.changed = make(chan struct{})
			return "1 "
		}
		return "0 Unknown command"
	})
}

// status waits for a status that ok likes.
func (g *guest) status(ok func(tether.Status) bool) tether.Status {
	g.t.Helper()
	deadline := time.After(bootTime)
	for {
		g.mu.Lock()
		doc, changed := g.info[tether.StatusKey], g.changed
		g.mu.Unlock()
		var s tether.Status
		if doc != "" {
			if err := json.Unmarshal([]byte(doc), &s); err != nil {
				g.t.Fatalf("status %q: %v", doc, err)
			}
			if ok(s) {
				return s
			}
		}
		select {
		case <-changed:
		case <-g.exited:
			g.t.Fatalf("the VM ended with status %q", doc)
		case <-deadline:
			g.t.Fatalf("no such status within %v; it is %q", bootTime, doc)
		}
	}
}

func ended(s tether.Status) bool { return s.State == tether.Exited || s.State == tether.Failed }

// dial connects once the guest can be reached.
func (g *guest) dial(ctx context.Context) *tether.Client {
	g.t.Helper()
	s := g.status(func(s tether.Status) bool { return s.HostKey != "" && len(s.Addresses) > 0 })
	return g.dialKey(ctx, s.HostKey)
}

func (g *guest) dialKey(ctx context.Context, hostKey string) *tether.Client {
	g.t.Helper()
	signer, err := tether.NewControllerSigner(g.ca, testID, time.Minute)
	if err != nil {
		g.t.Fatal(err)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", g.addr)
	if err != nil {
		g.t.Fatal(err)
	}
	c, err := tether.NewClient(ctx, conn, tether.ClientConfig{Signer: signer, HostKey: hostKey, ID: testID})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = c.Close() })
	return c
}

// off waits for the power-off and checks the disk.
func (g *guest) off() {
	g.t.Helper()
	select {
	case <-g.exited:
	case <-time.After(bootTime):
		g.t.Fatal("the VM did not power off")
	}
	if out, err := exec.Command("e2fsck", "-fn", g.disk).CombinedOutput(); err != nil {
		g.t.Errorf("e2fsck: %v\n%s", err, out)
	}
	out, err := exec.Command("dumpe2fs", "-h", g.disk).CombinedOutput()
	if err != nil {
		g.t.Fatalf("dumpe2fs: %v\n%s", err, out)
	}
	if strings.Contains(string(out), "needs_recovery") || !strings.Contains(string(out), "Filesystem state:         clean") {
		g.t.Errorf("the filesystem was not left clean:\n%s", out)
	}
}

// read reads a file of the disk, from outside.
func (g *guest) read(name string) string {
	g.t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command("debugfs", "-R", "cat "+name, g.disk)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		g.t.Fatalf("debugfs cat %s: %v\n%s", name, err, &errs)
	}
	return out.String()
}

// monitor sends one QMP command.
func (g *guest) monitor(command string) {
	g.t.Helper()
	c, err := net.Dial("unix", g.qmp)
	if err != nil {
		g.t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	for _, send := range []string{"", `{"execute":"qmp_capabilities"}`, `{"execute":"` + command + `"}`} {
		if send != "" {
			if _, err := fmt.Fprintln(c, send); err != nil {
				g.t.Fatal(err)
			}
		}
		if line, err := r.ReadString('\n'); err != nil || strings.Contains(line, `"error"`) {
			g.t.Fatalf("QMP %s: %v %s", send, err, line)
		}
	}
}

// makeDisk makes an ext4 disk with a container's root of busybox.
func makeDisk(t *testing.T, files map[string]string, mb int) string {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "tree", "rootfs")
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{
		"/bin/busybox": string(program),
		"/etc/passwd":  "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n",
		"/etc/group":   "root:x:0:\napp:x:1001:\nextra:x:1002:app\n",
		"/etc/data":    "not a program\n",
	}
	for name, text := range files {
		all[name] = text
	}
	for name, text := range all {
		mode := os.FileMode(0o644)
		if strings.HasPrefix(name, "/bin/") {
			mode = 0o755
		}
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.FieldsSeq(string(out)) {
		if name != "busybox" {
			if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	disk := filepath.Join(dir, "disk.img")
	cmd := exec.Command("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,root_owner=0:0", "-d", filepath.Join(dir, "tree"), disk, fmt.Sprintf("%dM", mb))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	return disk
}
