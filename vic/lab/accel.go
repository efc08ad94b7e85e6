package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vicsdk/vic-go/bootiso/kernel"
)

// Accelerators that Options.Accel may name.
const (
	accelAuto = "auto"
	accelTCG  = "tcg"
	accelKVM  = "kvm"
)

// probeTime bounds the boot that proves KVM. With it, a kernel is through in a
// fraction of a second.
const probeTime = 3 * time.Second

// probeEnd is what a kernel without a RAM disk and a root says last.
const probeEnd = "Kernel panic - not syncing: VFS: Unable to mount root fs"

// accelerator settles, once for a lab, what QEMU is to run VMs with. A
// /dev/kvm that can be opened proves nothing: there are machines where it is
// an emulation that is slower than QEMU's own and then hangs the guest. So
// KVM is taken only where the kernel has been seen to boot with it.
type accelerator struct {
	once sync.Once
	kvm  bool
}

// useKVM tells whether VMs run with KVM.
func (l *Lab) useKVM(ctx context.Context) bool {
	switch l.opts.Accel {
	case accelKVM:
		return true
	case accelTCG:
		return false
	}
	l.accel.once.Do(func() {
		err := probeKVM(context.WithoutCancel(ctx), l.opts.QEMU, accelCache())
		l.accel.kvm = err == nil
		if err != nil {
			l.log.Info("VMs run without KVM", "why", err)
		}
	})
	return l.accel.kvm
}

// accelCache is the directory where the outcome of a probe is kept for other
// labs, or "".
func accelCache() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "vic-go")
}

// probeKVM returns nil where a kernel boots with KVM. What came out is kept in
// the directory cache, where it is not empty, until the machine or QEMU is
// another one.
func probeKVM(ctx context.Context, qemu, cache string) error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_ = f.Close()
	if cache == "" {
		return bootKVM(ctx, qemu)
	}
	key, err := probeKey(qemu)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return bootKVM(ctx, qemu)
	}
	// One prober at a time; the others find what it found.
	lock, err := os.OpenFile(filepath.Join(cache, "kvm.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return bootKVM(ctx, qemu)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return bootKVM(ctx, qemu)
	}
	name := filepath.Join(cache, "kvm-"+key+".json")
	var kept struct {
		Works bool   `json:"works"`
		Why   string `json:"why,omitempty"`
	}
	if b, err := os.ReadFile(name); err == nil && json.Unmarshal(b, &kept) == nil {
		if kept.Works {
			return nil
		}
		return errors.New(kept.Why)
	}
	err = bootKVM(ctx, qemu)
	kept.Works = err == nil
	if err != nil {
		kept.Why = err.Error()
	}
	if b, e := json.Marshal(kept); e == nil {
		_ = writeFile(name, b) // Otherwise the next one probes again.
	}
	return err
}

// probeKey names what a probe's outcome depends on: this boot of the machine,
// QEMU, and the kernel.
func probeKey(qemu string) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	st, err := os.Stat(qemu)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%d %d\n%s\n", boot, qemu, st.Size(), st.ModTime().UnixNano(), kernel.Version)
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// bootKVM boots the kernel with nothing to start, and waits for it to say so.
func bootKVM(ctx context.Context, qemu string) error {
	dir, err := os.MkdirTemp("", "vic-kvm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	image := filepath.Join(dir, "kernel")
	if err := os.WriteFile(image, kernel.Image(), 0o600); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-M", "q35", "-accel", "kvm", "-cpu", "host", "-m", "128", "-serial", "stdio",
		"-kernel", image, "-append", "console=ttyS0 panic=-1")
	var out tail
	var said bytes.Buffer
	cmd.Stdout = io.MultiWriter(&said, &out)
	cmd.Stderr = &out
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("/dev/kvm: a kernel did not boot within %v", probeTime)
	case err != nil:
		return fmt.Errorf("/dev/kvm: QEMU: %w: %s", err, out.String())
	case !strings.Contains(said.String(), probeEnd):
		return errors.New("/dev/kvm: a kernel did not come through its start")
	}
	return nil
}
