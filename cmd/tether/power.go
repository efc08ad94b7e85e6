//go:build linux && amd64

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"os/signal"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// powerOff ends the VM. It does not return.
func powerOff(log *slog.Logger) {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		log.Error("power off", "error", err)
	}
	select {}
}

// onPowerButton calls f whenever the power button is pressed, or
// control-alt-delete, until ctx ends. The button is an event of the kernel's
// ACPI driver ("acpi_event" of generic netlink, drivers/acpi/event.c), which
// the module "button" reports.
func onPowerButton(ctx context.Context, f func()) error {
	keys := make(chan os.Signal, 1)
	signal.Notify(keys, unix.SIGINT)
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF); err != nil {
		return fmt.Errorf("control-alt-delete: %w", err)
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-keys:
				f()
			}
		}
	}()
	family, err := netlink.GenlFamilyGet("acpi_event")
	if err != nil {
		return fmt.Errorf("power button: this kernel tells no ACPI events: %w", err)
	}
	if len(family.Groups) == 0 {
		return fmt.Errorf("power button: the kernel's ACPI events have no group")
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_GENERIC)
	if err != nil {
		return fmt.Errorf("power button: %w", err)
	}
	file := os.NewFile(uintptr(fd), "acpi_event")
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		_ = file.Close()
		return fmt.Errorf("power button: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(family.Groups[0].ID)); err != nil {
		_ = file.Close()
		return fmt.Errorf("power button: %w", err)
	}
	context.AfterFunc(ctx, func() { _ = file.Close() })
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := file.Read(b)
			if err != nil {
				return
			}
			if isPowerButton(b[:n]) {
				f()
			}
		}
	}()
	return nil
}

// isPowerButton reads one message: netlink header, generic header, and the
// attribute ACPI_GENL_ATTR_EVENT with a struct acpi_genl_event, whose first 20
// bytes are the device's class.
func isPowerButton(msg []byte) bool {
	const headers, attribute = 16 + 4, 4
	if len(msg) < headers+attribute+20 || binary.LittleEndian.Uint16(msg[headers+2:]) != 1 {
		return false
	}
	class := msg[headers+attribute:][:20]
	return bytes.HasPrefix(class, []byte("button/power\x00"))
}
