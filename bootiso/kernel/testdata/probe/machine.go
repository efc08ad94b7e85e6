package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// machine probes what the kernel is and which devices it drives.
func machine() []probe {
	return []probe{
		{"release", release},
		{"config.gz", func() error { return configured("IKCONFIG_PROC") }},
		{"no-modules", func() error {
			if _, err := os.Stat("/proc/modules"); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("/proc/modules: %v", err)
			}
			return nil
		}},
		{"mitigations", mitigations},
		{"aslr", func() error { return holds("/proc/sys/kernel/randomize_va_space", "2") }},
		{"pvscsi", func() error { return await("/sys/bus/pci/drivers/vmw_pvscsi/0000:*/host*/target*/*/block/sda") }},
		{"sata-cd", func() error { return await("/sys/bus/pci/drivers/ahci/0000:*/ata*/host*/target*/*/block/sr0") }},
		{"vmxnet3", func() error { return await("/sys/bus/pci/drivers/vmxnet3/0000:*/net/eth0") }},
		{"vmci", exists("/sys/bus/pci/drivers/vmw_vmci")},
		{"virtio-drivers", exists("/sys/bus/pci/drivers/virtio-pci", "/sys/bus/virtio/drivers/virtio_blk",
			"/sys/bus/virtio/drivers/virtio_net", "/sys/bus/virtio/drivers/virtio_console")},
		{"pci-hotplug", exists("/sys/bus/pci_express/drivers/pciehp", "/sys/bus/pci/slots/*/power")},
		{"memory-hotplug", func() error { return holds("/sys/devices/system/memory/auto_online_blocks", "online") }},
		{"cpu-hotplug", exists("/sys/devices/system/cpu/hotplug/states", "/sys/bus/cpu/drivers/processor")},
		{"power-button", exists("/sys/bus/acpi/drivers/button", "/dev/input/event0")},
		{"vmgenid", exists("/sys/bus/acpi/drivers/vmgenid")},
		{"vmware-only", func() error {
			// These drivers show nothing on another hypervisor.
			return configured("VMWARE_BALLOON", "VMWARE_VMCI_VSOCKETS", "PTP_1588_CLOCK_VMW", "ACPI_HOTPLUG_MEMORY", "ACPI_HOTPLUG_CPU")
		}},
		{"serial", exists("/dev/ttyS0", "/dev/ttyS1", "/dev/ttyS2", "/dev/ttyS3")},
		{"rtc", rtc},
		{"hwrng-virtio", exists("/sys/bus/virtio/drivers/virtio_rng")},
		{"sysrq", exists("/proc/sysrq-trigger")},
	}
}

func release() error {
	want, err := os.ReadFile("/release")
	if err != nil {
		return err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	if got := unix.ByteSliceToString(u.Release[:]); got != string(want) {
		return fmt.Errorf("%s in place of %s", got, want)
	}
	return nil
}

// configured looks for symbols of Kconfig that must be built in.
func configured(symbols ...string) error {
	f, err := os.Open("/proc/config.gz")
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(z)
	if err != nil {
		return err
	}
	for _, s := range symbols {
		if !bytes.Contains(b, []byte("\nCONFIG_"+s+"=y\n")) {
			err = errors.Join(err, fmt.Errorf("%s is not built in", s))
		}
	}
	return err
}

// mitigations looks whether the kernel has them; whether the emulated
// processor needs each is another matter.
func mitigations() error {
	all, err := filepath.Glob("/sys/devices/system/cpu/vulnerabilities/*")
	if err != nil || len(all) < 10 {
		return fmt.Errorf("%d vulnerabilities known: %v", len(all), err)
	}
	for _, name := range []string{"spectre_v1", "spectre_v2"} {
		b, err := os.ReadFile("/sys/devices/system/cpu/vulnerabilities/" + name)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(string(b), "Mitigation") && !strings.HasPrefix(string(b), "Not affected") {
			return fmt.Errorf("%s: %s", name, b)
		}
	}
	return nil
}

func rtc() error {
	f, err := os.Open("/dev/rtc0")
	if err != nil {
		return err
	}
	defer f.Close()
	t, err := unix.IoctlGetRTCTime(int(f.Fd()))
	if err == nil && t.Year < 120 {
		return fmt.Errorf("the year is %d", 1900+t.Year)
	}
	return err
}

// messages looks, last, whether anything so far disturbed the kernel.
func messages() []probe {
	return []probe{{"no-kernel-warnings", func() error {
		b := make([]byte, 1<<20)
		n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, b)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b[:n])) {
			for _, bad := range []string{"WARNING:", "BUG:", "Oops", "Call Trace:"} {
				if strings.Contains(line, bad) {
					return errors.New(strings.TrimSpace(line))
				}
			}
		}
		return nil
	}}}
}
