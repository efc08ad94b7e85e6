//go:build linux && amd64

package bootiso_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/bootiso"
)

// needQEMU skips, or fails in CI, where no VM can be booted.
func needQEMU(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots VMs (-short)")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("no qemu-system-x86_64")
	}
}

// testInit is the program testdata/init.
var testInit = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "vic-bootiso-test-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "init"), "./testdata/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the guest: %w\n%s", err, out)
	}
	return os.ReadFile(filepath.Join(dir, "init"))
})

// bootTime is for one VM; emulation is slow on a busy machine.
const bootTime = 90 * time.Second

// run runs QEMU until it ends and returns what came out of COM1, and when the
// guest's PID 1 said its first word, counted from QEMU's start.
func run(t testing.TB, args ...string) (console string, pid1 time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append([]string{
		"-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-no-reboot",
		"-chardev", "stdio,id=com1,signal=off", "-device", "isa-serial,chardev=com1",
	}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	buf := make([]byte, 4096)
	for err == nil {
		var n int
		n, err = out.Read(buf)
		all.Write(buf[:n])
		if pid1 == 0 && bytes.Contains(all.Bytes(), []byte("@PID1")) {
			pid1 = time.Since(start)
		}
		if bytes.Count(all.Bytes(), []byte("Stopped")) == 2 { // by the loader, which does not power off
			_ = cmd.Process.Kill()
		}
	}
	if err != io.EOF {
		t.Error(err)
	}
	_ = cmd.Wait()
	return all.String(), pid1
}

// Machines with a CD, as QEMU has them.
var machines = map[string]func(iso string) []string{
	"q35": func(iso string) []string { // SATA, as container VMs have it
		return []string{"-M", "q35", "-boot", "d", "-drive", "if=none,id=cd0,media=cdrom,readonly=on,file=" + iso, "-device", "ide-cd,drive=cd0,bus=ide.0"}
	},
	"pc": func(iso string) []string { // parallel ATA
		return []string{"-M", "pc", "-boot", "d", "-cdrom", iso}
	},
}

// kernels are what the tests boot.
func kernels(t testing.TB) map[string]bootiso.Options {
	t.Helper()
	init, err := testInit()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bootiso.Options{"ours": {Tether: init}}
	if tree := os.Getenv("VIC_TEST_KERNEL_TREE"); tree != "" {
		kernel, modules, err := bootiso.KernelTree(tree)
		if err != nil {
			t.Fatal(err)
		}
		all["package"] = bootiso.Options{Kernel: kernel, Modules: modules, Tether: init}
	} else if os.Getenv("CI") == "true" {
		t.Fatal("VIC_TEST_KERNEL_TREE is not set")
	}
	return all
}

// A BIOS boots the image, from either kind of CD and with any amount of memory,
// and the guest gets all of the RAM disk and the command line.
func TestBIOS(t *testing.T) {
	needQEMU(t)
	for name, o := range kernels(t) {
		o.Out = filepath.Join(t.TempDir(), name+".iso")
		o.Cmdline = "vic.test=" + strings.Repeat("x", 1500)
		build(t, o)
		for _, tt := range []struct {
			machine string
			mb      int
		}{{"q35", 64}, {"q35", 128}, {"q35", 256}, {"q35", 1024}, {"q35", 5000}, {"pc", 128}, {"pc", 5000}} {
			if o.Modules != nil && tt.mb != 256 && tt.machine != "pc" {
				continue // a distribution's kernel is slow, and where it lies makes no difference to it
			}
			if os.Getenv("VIC_SOAK") == "" && (tt.machine == "q35" && (tt.mb == 128 || tt.mb == 1024) || tt.machine == "pc" && tt.mb != 128) {
				continue // between those that are left, and half a minute
			}
			t.Run(fmt.Sprintf("%s/%s/%d", name, tt.machine, tt.mb), func(t *testing.T) {
				console, at := run(t, append(machines[tt.machine](o.Out), "-m", fmt.Sprint(tt.mb))...)
				for _, want := range []string{
					fmt.Sprintf("@init %x <nil>", sha256.Sum256(o.Tether)),
					" " + bootiso.Cmdline + " " + o.Cmdline + " <nil>", // behind what is built into the kernel,
					"@end",
				} {
					if !strings.Contains(console, want) {
						t.Errorf("no %.60q on the console:\n%s", want, console)
					}
				}
				t.Logf("PID 1 after %v", at.Round(time.Millisecond))
			})
		}
	}
}

// The loader tells what is wrong, on the screen and on COM1.
func TestLoaderErrors(t *testing.T) {
	needQEMU(t)
	o := fakeOptions(t, filepath.Join(t.TempDir(), "good.iso"))
	o.Kernel = fakeKernel(20000)
	put := func(at int, v uint32) { binary.LittleEndian.PutUint32(o.Kernel[at:], v) }
	put(0x22c, 0x7fffffff) // initrd_addr_max
	put(0x258, 16<<20)     // pref_address
	put(0x260, 64<<20)     // init_size
	good := build(t, o)
	p, err := bootiso.Extract(bytes.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	kernel := bytes.Index(good, p.Kernel)
	bad := kernel/2048 + 32 // a sector that a read begins with
	for _, tt := range []struct {
		name  string
		image []byte
		mb    int
		want  string
	}{
		{"kernel", bytes.Replace(good, []byte("HdrS"), []byte("HdrX"), 1), 128, "the kernel is no bzImage of boot protocol 2.10 or later"},
		{"setup", append(append(bytes.Clone(good[:kernel+0x1f1]), 200), good[kernel+0x1f2:]...), 128, "the kernel is no bzImage"},
		{"memory", good, 64, "not enough memory for kernel and initrd below 4 GiB"},
		{"cut off", good[:(bad+3)*2048], 128, fmt.Sprintf("cannot read sector 0x%08x of the CD, BIOS status 0x", bad)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			iso := filepath.Join(t.TempDir(), "bad.iso")
			if err := os.WriteFile(iso, tt.image, 0o600); err != nil {
				t.Fatal(err)
			}
			args := append(machines["q35"](iso), "-m", fmt.Sprint(tt.mb))
			// SeaBIOS writes what is for the screen to COM1, too.
			args[1] += ",graphics=off"
			console, _ := run(t, args...)
			// SeaBIOS may put a line's end, and a dot of its own, into what it
			// shows.
			flat := strings.NewReplacer("\r", "", "\n", "", ".", "")
			if n := strings.Count(flat.Replace(console), flat.Replace("vic boot: "+tt.want)); n != 2 {
				t.Errorf("%d times %q, want it on the screen and on COM1:\n%q", n, tt.want, console)
			}
		})
	}
}
