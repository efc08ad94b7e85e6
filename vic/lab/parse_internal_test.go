package lab

import (
	"bytes"
	"errors"
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

func FuzzDescriptor(f *testing.F) {
	base := &descriptor{cid: 1, parentCID: noParent, createType: "vmfs", extents: []extent{{2048, "VMFS", "a-flat.vmdk"}}, uuid: "60 00 C2 90 00 00 00 00-00 00 00 00 00 00 00 00"}
	child := &descriptor{cid: 2, parentCID: 1, createType: "vmfsSparse", parentHint: "../a/a.vmdk", extents: []extent{{2048, "VMFSSPARSE", "b-delta.vmdk"}}}
	f.Add(base.format())
	f.Add(child.format())
	f.Add([]byte("# Disk DescriptorFile\nRW 1 VMFS \"\"\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parseDescriptor(b)
		if err != nil {
			return
		}
		for _, e := range d.extents {
			if e.file == ".." || strings.Contains(e.file, "/") || path.Base(e.file) != e.file || e.sectors <= 0 {
				t.Fatalf("extent %+v leaves its directory", e)
			}
		}
		if d.bytes() <= 0 {
			t.Fatalf("a disk of %d bytes", d.bytes())
		}
		// What is accepted is understood: written and read again it is the same.
		if strings.ContainsAny(d.parentHint+d.uuid, "\"\n\r\x00") {
			return
		}
		d2, err := parseDescriptor(d.format())
		if err != nil {
			return // blanks at a name's end
		}
		if d.cid != d2.cid || d.bytes() != d2.bytes() || len(d.extents) != len(d2.extents) {
			t.Fatalf("%+v became %+v", d, d2)
		}
	})
}

func FuzzISO(f *testing.F) {
	img := make([]byte, 20*isoSector)
	pvd := img[16*isoSector:]
	pvd[0], pvd[6] = 1, 1
	copy(pvd[1:], "CD001")
	dir := func(b []byte, at, size byte, isDir bool, name string, rr string) int {
		n := 33 + len(name)
		if n%2 == 1 {
			n++
		}
		if rr != "" {
			copy(b[n:], "NM")
			b[n+2], b[n+3] = byte(5+len(rr)), 1
			copy(b[n+5:], rr)
			n += 5 + len(rr)
		}
		b[0], b[2], b[10] = byte(n), at, size
		b[11] = 0
		if isDir {
			b[10], b[11], b[25] = 0, 8, 2
		}
		b[32] = byte(len(name))
		copy(b[33:], name)
		return n
	}
	dir(pvd[156:], 18, 0, true, "\x00", "")
	root := img[18*isoSector:]
	n := dir(root, 18, 0, true, "\x00", "")
	n += dir(root[n:], 19, 5, false, "A.TXT;1", "")
	dir(root[n:], 19, 3, false, "LONG_N~1.;1", "Long name.cfg")
	copy(img[19*isoSector:], "hello")
	f.Add(img)
	f.Add(img[:17*isoSector])
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := openISO(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, p := range []string{"a.txt", "long name.cfg", "isolinux/isolinux.cfg", "a.txt/b"} {
			r, err := c.open(p)
			if err == nil && r.Size() > int64(len(b)) {
				t.Fatalf("%s has %d bytes of an image of %d", p, r.Size(), len(b))
			}
			if bytes.Equal(b, img) && (p == "a.txt" || p == "long name.cfg") && err != nil {
				t.Fatalf("%s: %v", p, err)
			}
		}
		isolinux(c)
	})
}

func FuzzIsolinux(f *testing.F) {
	f.Add("DEFAULT a\nLABEL a\n KERNEL /k\n APPEND initrd=/i quiet\n")
	f.Add("label b\nlinux x\ninitrd y,z\n")
	f.Fuzz(func(t *testing.T, s string) {
		if e, ok := parseIsolinux(s); ok && e.kernel == "" {
			t.Fatal("an entry without a kernel")
		}
	})
}

func TestIsolinux(t *testing.T) {
	got, ok := parseIsolinux("DEFAULT vic\nLABEL other\n KERNEL /x\nLABEL vic\n  LINUX /boot/vmlinuz\n  APPEND initrd=/boot/initrd console=ttyS0  quiet\n")
	want := isolinuxEntry{"/boot/vmlinuz", "/boot/initrd", "console=ttyS0 quiet"}
	if !ok || got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, s := range []string{"", "LABEL a\nKERNEL menu.c32\n", "LABEL a\nKERNEL k\nAPPEND initrd=a,b\n"} {
		if e, ok := parseIsolinux(s); ok {
			t.Errorf("%q gave %+v", s, e)
		}
	}
}

func FuzzPath(f *testing.F) {
	for _, s := range []string{"a/b", "../x", "/etc", ".lab/x", "a//b/./c", "x\x00y", "..."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := cleanPath(s)
		if err != nil {
			return
		}
		if p != path.Clean(p) || path.IsAbs(p) || p == ".." || strings.HasPrefix(p, "../") || p == hidden || strings.HasPrefix(p, hidden+"/") {
			t.Fatalf("%q became %q", s, p)
		}
	})
}

func TestHints(t *testing.T) {
	a, b := &store{name: "a"}, &store{name: "b"}
	l := &Lab{stores: map[string]*store{"a": a, "b": b}}
	for _, c := range []struct {
		child, parent location
		want          string
	}{
		{location{a, "x/c.vmdk"}, location{a, "x/p.vmdk"}, "p.vmdk"},
		{location{a, "x/c.vmdk"}, location{a, "y/p.vmdk"}, "../y/p.vmdk"},
		{location{a, "c.vmdk"}, location{a, "y/z/p.vmdk"}, "y/z/p.vmdk"},
		{location{a, "x/y/c.vmdk"}, location{a, "x/z/p.vmdk"}, "../z/p.vmdk"},
		{location{a, "x/y/c.vmdk"}, location{a, "p.vmdk"}, "../../p.vmdk"},
		{location{a, "x/c.vmdk"}, location{b, "y/p.vmdk"}, "/vmfs/volumes/b/y/p.vmdk"},
	} {
		h := hintTo(c.child, c.parent)
		if h != c.want {
			t.Errorf("from %s to %s: %q, want %q", c.child, c.parent, h, c.want)
		}
		p, fault := l.parentOf(link{c.child, &descriptor{parentHint: h}})
		if fault != nil || p != c.parent {
			t.Errorf("%q from %s leads to %s, %v", h, c.child, p, fault)
		}
	}
}

func TestAddresses(t *testing.T) {
	for s, want := range map[string][3]string{
		"192.168.127.0/24": {"192.168.127.1", "192.168.127.254", "192.168.127.255"},
		"10.0.0.16/28":     {"10.0.0.17", "10.0.0.30", "10.0.0.31"},
		"10.1.240.0/20":    {"10.1.240.1", "10.1.255.254", "10.1.255.255"},
	} {
		o, err := Options{Dir: "x", NoQEMU: true, Networks: []Network{{Name: "n", Subnet: mustPrefix(s)}}}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		p := o.Networks[0].Subnet
		got := [3]string{gatewayOf(p).String(), hostOf(p).String(), lastOf(p).String()}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(s, d)
		}
	}
}

// newTestLab is a lab whose inside a test looks at.
func newTestLab(t *testing.T) *Lab {
	t.Helper()
	l, err := Start(t.Context(), Options{Dir: t.TempDir(), NoQEMU: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func FuzzGuestRPC(f *testing.F) {
	for _, s := range []string{"info-get guestinfo.a", "info-set guestinfo.a b c", "info-set guestinfo.ip 10.0.0.1", "tools.set.version 1", "info-set guestinfo.x \xff", "info-set config.name x", "", "info-set guestinfo.a]\" x"} {
		f.Add(s)
	}
	l := &Lab{nets: map[string]*network{}}
	sctx := simulator.NewContext()
	l.reg, l.session = sctx.Map, sctx.Session
	simulator.New(simulator.NewServiceInstance(sctx, vpxContent(), simulatorRoot()))
	vm := new(simulator.VirtualMachine)
	vm.Self = types.ManagedObjectReference{Type: "VirtualMachine", Value: "vm-1"}
	vm.Config = &types.VirtualMachineConfigInfo{ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: "secret", Value: "x"}}}
	vm.Guest, vm.Summary.Guest = new(types.GuestInfo), new(types.VirtualMachineGuestSummary)
	l.reg.Put(vm)
	f.Fuzz(func(t *testing.T, s string) {
		a := l.guestRPC(vm, s)
		if !strings.HasPrefix(a, "0 ") && !strings.HasPrefix(a, "1 ") {
			t.Fatalf("%q: answer %q", s, a)
		}
		total := 0
		for k, v := range options(vm.Config.ExtraConfig) {
			if k == "secret" {
				continue
			}
			if !strings.HasPrefix(k, "guestinfo.") || len(k) > maxGuestKey || len(v) > maxGuestValue || !xmlText(v) {
				t.Fatalf("%q set %q to %q", s, k, v)
			}
			total += len(k) + len(v)
		}
		if total > maxGuestTotal {
			t.Fatalf("%d bytes of guestinfo", total)
		}
	})
}

func TestGuestTotal(t *testing.T) {
	l := newTestLab(t)
	vm := new(simulator.VirtualMachine)
	vm.Self = types.ManagedObjectReference{Type: "VirtualMachine", Value: "vm-x"}
	vm.Config = new(types.VirtualMachineConfigInfo)
	big := strings.Repeat("x", maxGuestValue)
	n := 0
	for ; n < 100; n++ {
		if a := l.guestSet(vm, "guestinfo.k"+strings.Repeat("a", n), big); a != "1 " {
			break
		}
	}
	if n != 15 {
		t.Errorf("%d values of 64 KiB were taken, want 15", n)
	}
	if a := l.guestSet(vm, "guestinfo.k", "small"); a != "1 " {
		t.Errorf("making room: %q", a)
	}
}

// TestIdleSessions: what a client that went away left is freed.
func TestIdleSessions(t *testing.T) {
	l := newTestLab(t)
	s := &simulator.Session{UserSession: types.UserSession{Key: "k", UserName: "u"}, Registry: simulator.NewRegistry(), Map: l.reg}
	l.sessions.touch(s)
	l.endSessions(time.Now().Add(-time.Hour))
	if !l.sessions.has("k") {
		t.Fatal("a session in use was ended")
	}
	l.endSessions(time.Now().Add(time.Hour))
	if l.sessions.has("k") {
		t.Fatal("an idle session is still open")
	}
}

// TestMarker: only a process with the marker of this run directory is ended.
func TestMarker(t *testing.T) {
	if marked(os.Getpid(), "/nowhere/run") {
		t.Error("this process was taken for a QEMU")
	}
	if _, err := startOf(1 << 30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a process that does not exist: %v", err)
	}
}
