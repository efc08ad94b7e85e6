package lab

import (
	"errors"
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/vmdk"
)

// FuzzDisk: what the lab takes for a disk stays in its directory.
func FuzzDisk(f *testing.F) {
	base := vmdk.FlatDescriptor(1<<20, 1, "a-flat.vmdk")
	base.DDB = append(base.DDB, vmdk.Entry{Key: uuidKey, Value: "60 00 C2 90 00 00 00 00-00 00 00 00 00 00 00 00"})
	child := vmdk.LayerDescriptor(1<<20, 2, 1, "../a/a.vmdk", "b-delta.vmdk")
	for _, d := range []*vmdk.Descriptor{base, child} {
		b, err := d.Encode()
		if err != nil {
			f.Fatal(err)
		}
		if _, err := parseDisk(b); err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("# Disk DescriptorFile\nCID=1\ncreateType=vmfs\nRW\t1\vVMFS \"/a=\"\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parseDisk(b)
		if err != nil {
			return
		}
		for _, e := range d.Extents {
			if e.File == ".." || strings.Contains(e.File, "/") || path.Base(e.File) != e.File || e.Offset != 0 {
				t.Fatalf("extent %+v leaves its directory", e)
			}
		}
		if d.Bytes() <= 0 {
			t.Fatalf("a disk of %d bytes", d.Bytes())
		}
	})
}

// TestParseDisk: what is refused is refused for its own reason.
func TestParseDisk(t *testing.T) {
	const flat = "# Disk DescriptorFile\nCID=1\ncreateType=\"vmfs\"\nRW 8 VMFS \"a-flat.vmdk\"\n"
	if d, err := parseDisk([]byte(flat)); err != nil || d.Bytes() != 4096 {
		t.Fatal(d, err)
	}
	for _, tc := range []struct{ old, with, want string }{
		{"\"vmfs\"", "\"streamOptimized\"", "createType \"streamOptimized\""},
		{"\"vmfs\"", "\"vmfsSparse\"", "extent of type VMFS in a disk"},
		{"VMFS", "VMFSSPARSE", "extent of type VMFSSPARSE in a disk"},
		{"VMFS", "VMFSRAW", "extent type \"VMFSRAW\""},
		{"CID=1", "CID=1\nparentCID=2\nparentFileNameHint=\"x\"", "has a parent"},
		{"RW 8", "RDONLY 8", "access RDONLY"},
		{"a-flat.vmdk\"", "a-flat.vmdk\" 8", "offset 0"},
		{"a-flat.vmdk", "../a-flat.vmdk", "not a plain name"},
		{"a-flat.vmdk", "..", "not a plain name"},
		{"a-flat.vmdk", "nbd:x", "not a plain name"},
		{"RW 8", "RW\t8 VMFS \"/etc/passwd=\"\nRW 8", "not a plain name"},
		{"RW 8", "RW\v8 VMFS \"/etc/passwd=\"\nRW 8", "not a plain name"},
	} {
		_, err := parseDisk([]byte(strings.Replace(flat, tc.old, tc.with, 1)))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q for %q: %v, want %q", tc.with, tc.old, err, tc.want)
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
		p, fault := l.parentOf(link{c.child, &vmdk.Descriptor{ParentHint: h}})
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
	if marked(os.Getpid(), "/nowhere/run") != "" {
		t.Error("this process was taken for a QEMU")
	}
	if _, err := startOf(1 << 30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a process that does not exist: %v", err)
	}
}
