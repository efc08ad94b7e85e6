// Command guest is PID 1 of the VMs that the lab's tests boot. It obeys orders
// that arrive as guestinfo.cmd.N and answers by guestinfo.out.N.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vicsdk/vic-go/internal/rpci"
)

func main() {
	for _, d := range []string{"/proc", "/sys", "/dev"} {
		_ = os.MkdirAll(d, 0o755)
	}
	_ = unix.Mount("proc", "/proc", "proc", 0, "")
	_ = unix.Mount("sys", "/sys", "sysfs", 0, "")
	_ = unix.Mount("dev", "/dev", "devtmpfs", 0, "")
	fmt.Println("guest: up")
	if err := scan(); err != nil {
		fmt.Println("guest:", err)
		off()
	}
	f, err := serial("/dev/ttyS3")
	if err != nil {
		fmt.Println("guest: ttyS3:", err)
		off()
	}
	c := rpci.NewClient(f, time.Second)
	ctx := context.Background()
	if err := c.Set(ctx, "guestinfo.ready", "yes"); err != nil {
		fmt.Println("guest:", err)
		off()
	}
	for n := 1; ; n++ {
		var cmd string
		for {
			if cmd, err = c.Get(ctx, fmt.Sprintf("guestinfo.cmd.%d", n)); err == nil {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		out, err := obey(ctx, c, strings.Fields(cmd))
		if err != nil {
			out = "error: " + err.Error()
		}
		fmt.Printf("guest: %s: %s\n", cmd, out)
		_ = c.Set(ctx, fmt.Sprintf("guestinfo.out.%d", n), out)
	}
}

func off() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func obey(ctx context.Context, c *rpci.Client, a []string) (string, error) {
	switch a[0] {
	case "poweroff":
		off()
	case "rebootlater":
		go func() {
			for {
				if _, err := c.Get(ctx, "guestinfo.cmd.1"); err == rpci.ErrNotFound {
					_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
				}
				time.Sleep(20 * time.Millisecond)
			}
		}()
		return "", nil
	case "set":
		return "", c.Set(ctx, a[1], a[2])
	case "flood":
		return "", c.Set(ctx, "guestinfo.big", strings.Repeat("x", 65<<10))
	case "get":
		return c.Get(ctx, a[1])
	case "call":
		return c.Call(ctx, strings.Join(a[1:], " "))
	case "scan":
		return "", scan()
	case "disks":
		var out []string
		for _, d := range glob("/sys/block/sd*") {
			b, _ := os.ReadFile(d + "/size")
			out = append(out, filepath.Base(d)+"="+strings.TrimSpace(string(b)))
		}
		return strings.Join(out, " "), nil
	case "write":
		f, err := os.OpenFile("/dev/"+a[1], os.O_WRONLY|unix.O_SYNC, 0)
		if err != nil {
			return "", err
		}
		defer f.Close()
		_, err = f.Write([]byte(a[2] + strings.Repeat("\x00", 512-len(a[2]))))
		return "", err
	case "rescan":
		return "", os.WriteFile("/sys/block/"+a[1]+"/device/rescan", []byte("1"), 0)
	case "writelast":
		f, err := os.OpenFile("/dev/"+a[1], os.O_WRONLY|unix.O_SYNC, 0)
		if err != nil {
			return "", err
		}
		defer f.Close()
		if _, err := f.Seek(-512, io.SeekEnd); err != nil {
			return "", err
		}
		_, err = f.Write([]byte(a[2] + strings.Repeat("\x00", 512-len(a[2]))))
		return "", err
	case "read":
		f, err := os.Open("/dev/" + a[1])
		if err != nil {
			return "", err
		}
		defer f.Close()
		b := make([]byte, 512)
		_, err = io.ReadFull(f, b)
		return strings.TrimRight(string(b), "\x00"), err
	case "nics":
		var out []string
		for _, n := range glob("/sys/class/net/*") {
			if b, _ := os.ReadFile(n + "/address"); filepath.Base(n) != "lo" {
				out = append(out, strings.TrimSpace(string(b)))
			}
		}
		return strings.Join(out, " "), nil
	case "addr":
		return "", addr(a[1], a[2], a[3])
	case "listen":
		ln, err := net.Listen("tcp", a[1])
		if err != nil {
			return "", err
		}
		go func() {
			for {
				k, err := ln.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(k, k); k.Close() }()
			}
		}()
		return "", nil
	case "dial":
		k, err := net.DialTimeout("tcp", a[1], 5*time.Second)
		if err != nil {
			return "", err
		}
		defer k.Close()
		_ = k.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := fmt.Fprintln(k, a[2]); err != nil {
			return "", err
		}
		b := make([]byte, 100)
		n, err := k.Read(b)
		return strings.TrimSpace(string(b[:n])), err
	}
	return "", fmt.Errorf("unknown order %q", a)
}

func glob(p string) []string {
	m, _ := filepath.Glob(p)
	sort.Strings(m)
	return m
}

// addr gives the NIC with a MAC address an address and the default route.
func addr(mac, cidr, gw string) error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Attrs().HardwareAddr.String() != mac {
			continue
		}
		a, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return err
		}
		if gw == "-" {
			return nil
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gw)})
	}
	return fmt.Errorf("no NIC %s", mac)
}

// scan looks for disks, which the kernel is told not to do by itself, and waits
// until those that it found can be used.
func scan() error {
	for _, h := range glob("/sys/class/scsi_host/host*/scan") {
		if err := os.WriteFile(h, []byte("- - -"), 0); err != nil {
			return err
		}
	}
	for _, d := range glob("/sys/class/scsi_device/*/device") {
		kind, _ := os.ReadFile(d + "/type")
		for deadline := time.Now().Add(10 * time.Second); strings.TrimSpace(string(kind)) == "0" && len(glob(d+"/block/*")) == 0; {
			if time.Now().After(deadline) {
				return fmt.Errorf("%s is no block device", d)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return nil
}

func serial(name string) (*os.File, error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
