package lab

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// DefaultUser is the login name where Options names none.
const DefaultUser = "administrator@vsphere.local"

// Options says what a lab has. Only Dir is required.
type Options struct {
	// Dir keeps all state: datastores/NAME, run, lab.json. It is made with
	// mode 0700. One lab at a time uses a directory.
	Dir string
	// Listen is the address of the API, on loopback: "127.0.0.1:0".
	Listen string
	// User and Password of the only login. The user is DefaultUser where
	// empty; the password the one that Dir knows from before, else random.
	User, Password string
	// Datastores are the names of the datastores: {"datastore1"}.
	Datastores []string
	// NativeDatastores are those of Datastores that behave as VMFS 6 and vSAN do:
	// their capability vmfsSparseSupported is not set, an upload of a vmfsSparse
	// extent is refused, and so is any use of a child disk that the API has not
	// made. A real one has children of another format (seSparse), which QEMU
	// cannot write: here they are vmfsSparse inside, in files named
	// NAME-sesparse.vmdk, and their descriptors have a mark (ddb.lab.native). A
	// parent in another directory is named by its whole path, as ESXi does
	// (/vmfs/volumes/DATASTORE/…), so a directory of disks that have children
	// cannot be renamed.
	NativeDatastores []string
	// Hosts is the number of hosts in the cluster: 1, at most 64.
	Hosts int
	// Networks are the port groups: {"VM Network"}.
	Networks []Network
	// QEMU is the path of qemu-system-x86_64, or empty to look it up in PATH.
	QEMU string
	// NoQEMU makes a control plane only: power operations change the
	// inventory and boot nothing. Disks are as real as ever.
	NoQEMU bool
	// Accel is QEMU's accelerator: "tcg" works everywhere, "kvm" is taken
	// unproved, and "auto", the default, is KVM where a kernel has been seen to
	// boot with it and TCG elsewhere. Where there is a /dev/kvm, the first
	// power-on after a boot of this machine takes up to three seconds for that.
	Accel string
	// BootCD boots a VM's CD-ROM by BIOS, as vSphere does. Otherwise the
	// kernel, RAM disk and command line that the image's loader would load are taken
	// out of the image and booted directly, which is faster; the BIOS boots
	// images that package bootiso cannot take apart, and vmware.log says why.
	BootCD bool
	// Logger hears what the lab does; nil is silence.
	Logger *slog.Logger
}

// A Network is a port group: one layer-2 segment with a gateway at the first
// address of its subnet. The upper half of the subnet is given out by DHCP, the
// lower half is for fixed addresses.
type Network struct {
	// Name as port groups are named in vSphere.
	Name string
	// Subnet is an IPv4 prefix of 20 to 28 bits. Where it is not valid the
	// network takes the next free one of 192.168.127.0/24, 192.168.128.0/24, …
	Subnet netip.Prefix
	// Isolated networks have DHCP and nothing beyond. Others reach what this
	// machine reaches, and its loopback by the subnet's last address but one.
	Isolated bool
}

var datastoreName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,41}$`)

// withDefaults checks o and fills in what it leaves open.
func (o Options) withDefaults() (Options, error) {
	if o.Dir == "" {
		return o, errors.New("lab: Options.Dir is empty: name a directory for the lab's state")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return o, fmt.Errorf("lab: Options.Dir: %w", err)
	}
	o.Dir = dir
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if err := loopback(o.Listen); err != nil {
		return o, fmt.Errorf("lab: Options.Listen: %w", err)
	}
	if o.User == "" {
		o.User = DefaultUser
	}
	if o.Hosts == 0 {
		o.Hosts = 1
	}
	if o.Hosts < 1 || o.Hosts > 64 {
		return o, fmt.Errorf("lab: Options.Hosts is %d, not 1 to 64", o.Hosts)
	}
	switch o.Accel {
	case "":
		o.Accel = accelAuto
	case accelAuto, accelTCG, accelKVM:
	default:
		return o, fmt.Errorf("lab: Options.Accel is %q, not auto, tcg or kvm", o.Accel)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o, err = o.withDatastores(); err != nil {
		return o, err
	}
	if o, err = o.withNetworks(); err != nil {
		return o, err
	}
	return o.withQEMU()
}

func (o Options) withDatastores() (Options, error) {
	if len(o.Datastores) == 0 {
		o.Datastores = []string{"datastore1"}
	}
	seen := map[string]bool{}
	for i, n := range o.Datastores {
		if !datastoreName.MatchString(n) {
			return o, fmt.Errorf("lab: Options.Datastores[%d]: %q is not 1 to 42 of A-Z a-z 0-9 . _ -", i, n)
		}
		if seen[n] {
			return o, fmt.Errorf("lab: Options.Datastores[%d]: %q is there twice", i, n)
		}
		seen[n] = true
	}
	for i, n := range o.NativeDatastores {
		if !seen[n] {
			return o, fmt.Errorf("lab: Options.NativeDatastores[%d]: %q is not among Datastores", i, n)
		}
	}
	return o, nil
}

func (o Options) withNetworks() (Options, error) {
	nets := append([]Network(nil), o.Networks...)
	if len(nets) == 0 {
		nets = []Network{{Name: "VM Network"}}
	}
	if len(nets) > 64 {
		return o, fmt.Errorf("lab: Options.Networks has %d networks, more than 64", len(nets))
	}
	seen := map[string]bool{}
	for i := range nets {
		n := &nets[i]
		if n.Name == "" || len(n.Name) > 80 || strings.ContainsAny(n.Name, "/\\%\x00\n") {
			return o, fmt.Errorf("lab: Options.Networks[%d].Name: %q is not 1 to 80 characters without / \\ %%", i, n.Name)
		}
		if seen[n.Name] {
			return o, fmt.Errorf("lab: Options.Networks[%d].Name: %q is there twice", i, n.Name)
		}
		seen[n.Name] = true
		if !n.Subnet.IsValid() {
			continue
		}
		n.Subnet = n.Subnet.Masked()
		if !n.Subnet.Addr().Is4() || n.Subnet.Bits() < 20 || n.Subnet.Bits() > 28 {
			return o, fmt.Errorf("lab: Options.Networks[%d].Subnet: %s is not an IPv4 prefix of 20 to 28 bits", i, n.Subnet)
		}
		for j := range nets[:i] {
			if nets[j].Subnet.IsValid() && nets[j].Subnet.Overlaps(n.Subnet) {
				return o, fmt.Errorf("lab: Options.Networks[%d].Subnet: %s overlaps %s of %q", i, n.Subnet, nets[j].Subnet, nets[j].Name)
			}
		}
	}
	third := 127
	for i := range nets {
		for !nets[i].Subnet.IsValid() {
			if third > 255 {
				return o, fmt.Errorf("lab: Options.Networks[%d].Subnet: no free subnet below 192.168.255.0/24: name one", i)
			}
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(third), 0}), 24)
			third++
			free := true
			for _, m := range nets {
				free = free && (!m.Subnet.IsValid() || !m.Subnet.Overlaps(p))
			}
			if free {
				nets[i].Subnet = p
			}
		}
	}
	o.Networks = nets
	return o, nil
}

func (o Options) withQEMU() (Options, error) {
	if o.NoQEMU {
		return o, nil
	}
	name := o.QEMU
	if name == "" {
		name = "qemu-system-x86_64"
	}
	p, err := exec.LookPath(name)
	if err != nil {
		return o, fmt.Errorf("lab: Options.QEMU: %w: install QEMU for x86-64 or set NoQEMU", err)
	}
	if o.QEMU, err = filepath.Abs(p); err != nil {
		return o, fmt.Errorf("lab: Options.QEMU: %w", err)
	}
	return o, nil
}

// loopback refuses an address that others than this machine can reach.
func loopback(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if host == "localhost" {
		return nil
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !ip.IsLoopback() {
		return fmt.Errorf("%q is not a loopback address: the lab serves this machine only", addr)
	}
	return nil
}

// randomText returns 26 characters of 130 random bits.
func randomText() string { return rand.Text() }
