package lab

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/vim25/types"
)

// hardware is what a VM's QEMU is made of.
type hardware struct {
	dir     location
	disks   []*diskUnit
	nics    []*types.VirtualVmxnet3
	serials []*types.VirtualSerialPort
	cds     []location // the ISO of each drive, rel "" for an empty one
	buses   []int32    // of pvscsi controllers

	write, read []location // files to lock

	shape shape
	state *os.File // to start with, or nil
}

type diskUnit struct {
	key, bus, unit int32
	at             location
	chain          []link
	raw            bool // the extent is the disk, byte by byte
	serial         string
}

// hardware looks a VM's devices up.
func (l *Lab) hardware(s vmState) (*hardware, types.BaseMethodFault) {
	dir, fault := l.dir(s)
	if fault != nil {
		return nil, fault
	}
	hw := &hardware{dir: dir}
	devs := devicesOf(s.config.Hardware.Device)
	serials := strings.EqualFold(options(s.config.ExtraConfig)["disk.EnableUUID"], "TRUE")
	for _, d := range devs {
		switch x := d.(type) {
		case *types.ParaVirtualSCSIController:
			hw.buses = append(hw.buses, x.BusNumber)
		case *types.VirtualDisk:
			u, fault := l.diskUnit(x, devs.FindByKey(x.ControllerKey), serials)
			if fault != nil {
				return nil, fault
			}
			hw.disks = append(hw.disks, u)
		case *types.VirtualVmxnet3:
			hw.nics = append(hw.nics, x)
		case *types.VirtualSerialPort:
			hw.serials = append(hw.serials, x)
			if b, ok := x.Backing.(*types.VirtualSerialPortFileBackingInfo); ok {
				at, fault := l.resolve(b.FileName)
				if fault != nil {
					return nil, fault
				}
				hw.write = append(hw.write, at)
			}
		case *types.VirtualCdrom:
			var at location
			if b, ok := x.Backing.(*types.VirtualCdromIsoBackingInfo); ok && (x.Connectable == nil || x.Connectable.StartConnected) {
				if at, fault = l.resolve(b.FileName); fault != nil {
					return nil, fault
				}
				if !at.exists() {
					return nil, fileNotFound(at.String())
				}
				hw.read = append(hw.read, at)
			}
			hw.cds = append(hw.cds, at)
		}
	}
	return hw, nil
}

func (l *Lab) diskUnit(d *types.VirtualDisk, ctl types.BaseVirtualDevice, serial bool) (*diskUnit, types.BaseMethodFault) {
	c, ok := ctl.(*types.ParaVirtualSCSIController)
	if !ok || d.UnitNumber == nil {
		return nil, vmConfigFault("disk %d is on no ParaVirtualSCSIController", d.Key)
	}
	at, fault := l.resolve(diskFile(d))
	if fault != nil {
		return nil, fault
	}
	u := &diskUnit{key: d.Key, bus: c.BusNumber, unit: *d.UnitNumber, at: at}
	if b, ok := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok && serial {
		u.serial = strings.ToLower(strings.ReplaceAll(b.Uuid, "-", ""))
	}
	return u, nil
}

// openDisks reads the chains of all disks and notes the files to lock.
func (hw *hardware) openDisks(l *Lab) types.BaseMethodFault {
	for _, u := range hw.disks {
		w, r, fault := u.open(l)
		if fault != nil {
			return fault
		}
		hw.write, hw.read = append(hw.write, w...), append(hw.read, r...)
	}
	return nil
}

// openState opens the state that the VM is to go on from; the caller closes it.
func (hw *hardware) openState(l *Lab, state string) types.BaseMethodFault {
	at, fault := l.resolve(state)
	if fault != nil {
		return fault
	}
	f, err := at.root.Open(at.rel)
	if err != nil {
		return fileFault(state, err)
	}
	hw.state = f
	return nil
}

func (u *diskUnit) open(l *Lab) (write, read []location, fault types.BaseMethodFault) {
	if u.chain, fault = l.openChain(u.at); fault != nil {
		return nil, nil, fault
	}
	u.raw = false
	if flat, ok := u.flat(); ok {
		st, err := flat.stat()
		u.raw = err == nil && st.Size() == u.chain[0].desc.Bytes()
	}
	for i, k := range u.chain {
		if i == 0 {
			write = k.files()
		} else {
			read = append(read, k.files()...)
		}
	}
	return write, read, nil
}

// flat is the extent of a disk that has one, without a format, and no parent.
func (u *diskUnit) flat() (location, bool) {
	if len(u.chain) != 1 || len(u.chain[0].desc.Extents) != 1 || u.chain[0].desc.Extents[0].Type == vmfsSparse {
		return location{}, false
	}
	return u.chain[0].files()[1], true
}

// written gives a flat disk that a QEMU is about to open a new content ID, as that
// of a disk that is written to changes: QEMU sees to it with VMDKs only. l.files is
// held.
func (l *Lab) written(u *diskUnit) types.BaseMethodFault {
	if !u.raw || l.opts.NoQEMU {
		return nil
	}
	d := *u.chain[0].desc
	d.CID, _ = newDiskID()
	u.chain[0].desc = &d
	return replaceDescriptor(u.at, &d)
}

// node is the disk's block graph. The chain that was checked is spelled out, so
// that QEMU follows no hint of its own; parents are opened for reading. A flat disk
// is opened past its descriptor, because QEMU's VMDKs do not grow.
func (u *diskUnit) node() fields {
	var n fields
	if flat, ok := u.flat(); ok && u.raw {
		return fields{
			"driver": "raw", "node-name": fmt.Sprintf("n%d", u.key), "read-only": false,
			"file": fields{"driver": "file", "filename": flat.file(), "read-only": false},
		}
	}
	for i := len(u.chain) - 1; i >= 0; i-- {
		ro := i != 0
		m := fields{
			"driver": "vmdk", "read-only": ro,
			"file": fields{"driver": "file", "filename": u.chain[i].at.file(), "read-only": ro},
		}
		if n != nil {
			m["backing"] = n
		}
		n = m
	}
	n["node-name"] = fmt.Sprintf("n%d", u.key)
	return n
}

func (u *diskUnit) device() fields {
	d := fields{
		"driver": "scsi-hd", "id": fmt.Sprintf("d%d", u.key), "drive": fmt.Sprintf("n%d", u.key),
		"bus": fmt.Sprintf("scsi%d.0", u.bus), "scsi-id": u.unit, "lun": 0,
	}
	if u.serial != "" {
		d["serial"] = u.serial
	}
	return d
}

func nicDevice(n *types.VirtualVmxnet3) fields {
	return fields{
		"driver": "vmxnet3", "id": fmt.Sprintf("e%d", n.Key), "netdev": fmt.Sprintf("net%d", n.Key),
		"mac": n.MacAddress, "bus": fmt.Sprintf("rp%d", n.Key-4000), "romfile": "",
	}
}

// nicArgument is nicDevice for the command line, as plain text: of a device in
// JSON behind a root port, QEMU 7.2's small firmware makes something on which
// it then waits for ever.
func nicArgument(n *types.VirtualVmxnet3) string {
	d := nicDevice(n)
	s := fmt.Sprint(d["driver"])
	for _, k := range slices.Sorted(maps.Keys(d)) {
		if k != "driver" {
			s += fmt.Sprintf(",%s=%s", k, comma(fmt.Sprint(d[k])))
		}
	}
	return s
}

// arguments returns QEMU's command line. files are the numbers of the open
// files that it inherits.
func (l *Lab) arguments(s vmState, hw *hardware, boot *bootFiles, files func(netdev int32) int) []string {
	kvm := hw.shape.KVM
	js := func(o fields) string {
		b, _ := json.Marshal(o) // maps of strings and numbers
		return string(b)
	}
	a := []string{
		"-name", "guest=" + comma(s.name), "-nodefaults", "-no-user-config", "-display", "none",
		"-M", "q35", "-m", strconv.Itoa(int(s.config.Hardware.MemoryMB)), "-smp", strconv.Itoa(int(max(s.config.Hardware.NumCPU, 1))),
		"-uuid", s.config.Uuid, "-rtc", "base=utc",
		"-chardev", "socket,id=qmp,fd=3,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
		"-chardev", "socket,id=rpc,fd=4,server=on,wait=off", "-device", "isa-serial,chardev=rpc,index=3",
	}
	if kvm {
		a = append(a, "-accel", "kvm", "-cpu", "host")
	} else {
		accel := "tcg,tb-size=128"
		if s.config.Hardware.NumCPU > 1 {
			// With a thread per CPU, two of them have been seen to wait for
			// each other for ever (QEMU 7.2, "soft lockup" on both). One thread
			// that takes turns is slower and does not.
			accel += ",thread=single"
		}
		a = append(a, "-accel", accel, "-cpu", "max")
	}
	a = append(a, l.serialArguments(hw)...)
	for _, b := range hw.buses {
		a = append(a, "-device", fmt.Sprintf("pvscsi,id=scsi%d,bus=pcie.0,addr=0x%x", b, 4+b))
	}
	for _, u := range hw.disks {
		a = append(a, "-blockdev", js(u.node()), "-device", js(u.device()))
	}
	for i := range hw.shape.RootPorts {
		a = append(a, "-device", fmt.Sprintf("pcie-root-port,id=rp%d,bus=pcie.0,chassis=%d,addr=0x%x", i, i+1, 8+i))
	}
	for _, n := range hw.nics {
		a = append(a, "-netdev", fmt.Sprintf("stream,id=net%d,server=on,addr.type=fd,addr.str=%d", n.Key, files(n.Key)), "-device", nicArgument(n))
	}
	for i, cd := range hw.cds {
		d := fields{"driver": "ide-cd", "id": fmt.Sprintf("cd%d", i), "bus": fmt.Sprintf("ide.%d", i)}
		if cd.rel != "" {
			n := fields{"driver": "raw", "node-name": fmt.Sprintf("iso%d", i), "read-only": true, "file": fields{"driver": "file", "filename": cd.file(), "read-only": true}}
			a = append(a, "-blockdev", js(n))
			d["drive"] = n["node-name"]
			if boot == nil {
				d["bootindex"] = i + 1
			}
		}
		a = append(a, "-device", js(d))
	}
	if boot != nil {
		cmdline := boot.append
		if boot.elf {
			if f := smallFirmware(l.opts.QEMU); f != "" {
				a = append(a, "-bios", f)
			}
			if !kvm {
				// How fast QEMU's APIC timer counts (hw/intc/apic.c), so that
				// the kernel need not measure it; and calls stay as they were
				// compiled, because QEMU translates anew what is patched.
				cmdline += " lapic_hz=1000000000 noreplace-returns"
				if khz := hostTSC(); khz != 0 {
					// What the kernel measures where QEMU has to wait for a
					// processor may be wrong, and then its clocks are.
					cmdline += " tsc_early_khz=" + strconv.Itoa(khz)
				}
			}
		}
		a = append(a, "-kernel", boot.kernel, "-append", cmdline)
		if boot.initrd != "" {
			a = append(a, "-initrd", boot.initrd)
		}
	}
	return a
}

// smallFirmware finds qboot, which starts an unpacked kernel and does nothing
// else, among QEMU's files; "" where QEMU has come without it.
func smallFirmware(qemu string) string {
	if p, err := filepath.EvalSymlinks(qemu); err == nil {
		qemu = p
	}
	for _, dir := range []string{filepath.Join(filepath.Dir(qemu), "..", "share", "qemu"), "/usr/share/qemu"} {
		f := filepath.Join(dir, "qboot.rom")
		if st, err := os.Stat(f); err == nil && st.Mode().IsRegular() {
			return f
		}
	}
	return ""
}

// rootPorts is how many PCI Express ports a VM starts with: those of its NICs,
// and four for NICs to come.
func rootPorts(nics int) int { return min(nics+4, maxNICs) }

// serialArguments makes COM1 to COM3. What COM1 says is also kept in the VM's
// directory; a VM without serial ports has COM1 for that alone.
func (l *Lab) serialArguments(hw *hardware) []string {
	console := comma(location{hw.dir.store, hw.dir.rel + "/console.log"}.file())
	if len(hw.serials) == 0 {
		return []string{"-chardev", "file,id=s0,path=" + console, "-device", "isa-serial,chardev=s0,index=0"}
	}
	var a []string
	for i, p := range hw.serials {
		logTo := ""
		if i == 0 {
			logTo = ",logfile=" + console
		}
		backing := p.Backing
		if !leads(p) {
			backing = nil
		}
		switch b := backing.(type) {
		case nil:
			a = append(a, "-chardev", fmt.Sprintf("null,id=s%d%s", i, logTo))
		case *types.VirtualSerialPortFileBackingInfo:
			at, _ := l.resolve(b.FileName)
			a = append(a, "-chardev", fmt.Sprintf("file,id=s%d,append=on,path=%s%s", i, comma(at.file()), logTo))
		case *types.VirtualSerialPortURIBackingInfo:
			u, _ := parseSerial(b)
			c := fmt.Sprintf("socket,id=s%d,host=%s,port=%s", i, u.host, u.port)
			if u.server {
				c += ",server=on,wait=off"
			} else {
				c += ",reconnect=1"
			}
			if u.telnet {
				c += ",telnet=on"
			}
			a = append(a, "-chardev", c+logTo)
		}
		a = append(a, "-device", fmt.Sprintf("isa-serial,chardev=s%d,index=%d", i, i))
	}
	return a
}

// comma doubles commas, as QEMU's option parser wants them.
func comma(s string) string { return strings.ReplaceAll(s, ",", ",,") }
