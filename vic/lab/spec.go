package lab

import (
	"crypto/rand"
	"net"
	"path"
	"slices"
	"strconv"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// A plan is a device change that has been checked and completed, before
// anything is done.
type plan struct {
	lab     *Lab
	name    string   // of the VM
	dir     location // of the VM
	running bool
	devices object.VirtualDeviceList // as they will be
	keys    map[int32]int32          // a client's keys of new devices to the final ones

	changes []types.BaseVirtualDeviceConfigSpec // for the simulator
	hot     []hotChange
	made    []location // disks made on the way, to be undone
	destroy []location // disks to delete in the end
	extend  map[string]int64
}

// A hotChange is one to make in the running VM.
type hotChange struct {
	op  types.VirtualDeviceConfigSpecOperation
	dev types.BaseVirtualDevice
	old types.BaseVirtualDevice // for an edit

	grow int64 // to how many bytes an edited disk grows; 0 where it does not
}

// devices checks the changes in order and makes the disks that they ask for.
// undo takes those away again.
func (p *plan) apply(changes []types.BaseVirtualDeviceConfigSpec) types.BaseMethodFault {
	for i, c := range changes {
		if c == nil || c.GetVirtualDeviceConfigSpec() == nil || c.GetVirtualDeviceConfigSpec().Device == nil {
			return deviceFault(i, "there is no device")
		}
		s := c.GetVirtualDeviceConfigSpec()
		if s.Device.GetVirtualDevice() == nil {
			return deviceFault(i, "there is no device")
		}
		var fault types.BaseMethodFault
		switch s.Operation {
		case types.VirtualDeviceConfigSpecOperationAdd:
			fault = p.add(i, s)
		case types.VirtualDeviceConfigSpecOperationRemove:
			fault = p.remove(i, s)
		case types.VirtualDeviceConfigSpecOperationEdit:
			fault = p.edit(i, s)
		default:
			fault = deviceFault(i, "operation is %q, not add, remove or edit", s.Operation)
		}
		if fault != nil {
			return fault
		}
	}
	return nil
}

// undo deletes the disks that apply made.
func (p *plan) undo() {
	p.lab.files.Lock()
	defer p.lab.files.Unlock()
	for _, d := range slices.Backward(p.made) {
		_ = p.lab.deleteDisk(d)
	}
	p.made = nil
}

func (p *plan) add(i int, s *types.VirtualDeviceConfigSpec) types.BaseMethodFault {
	d := s.Device.GetVirtualDevice()
	if k, ok := p.keys[d.ControllerKey]; ok {
		d.ControllerKey = k
	}
	old := d.Key
	var fault types.BaseMethodFault
	keep := true
	switch x := s.Device.(type) {
	case *types.VirtualDisk:
		fault = p.addDisk(i, s, x)
	case types.BaseVirtualEthernetCard:
		fault = p.addNIC(i, x)
	case *types.VirtualSerialPort:
		fault = p.addSerial(i, x)
	case *types.VirtualCdrom:
		fault = p.addCD(i, x)
	case *types.ParaVirtualSCSIController, *types.VirtualAHCIController:
		fault = p.addController(i, s.Device)
	case *types.VirtualIDEController, *types.VirtualPCIController, *types.VirtualPS2Controller, *types.VirtualSIOController,
		*types.VirtualKeyboard, *types.VirtualPointingDevice, *types.VirtualMachineVideoCard, *types.VirtualMachineVMCIDevice:
		// Every VM has these; asking for one names the one that is there.
		keep = false
		fault = p.standard(i, s.Device)
	default:
		fault = notSupported("devices of type %T (deviceChange[%d])", s.Device, i)
	}
	if fault != nil {
		return fault
	}
	if old != d.Key {
		p.keys[old] = d.Key
	}
	if !keep {
		return nil
	}
	s.FileOperation = ""
	p.devices = append(p.devices, s.Device)
	p.changes = append(p.changes, s)
	if p.running {
		p.hot = append(p.hot, hotChange{op: s.Operation, dev: s.Device})
	}
	return nil
}

func (p *plan) standard(i int, dev types.BaseVirtualDevice) types.BaseMethodFault {
	d := dev.GetVirtualDevice()
	for _, have := range p.devices.SelectByType(dev) {
		if c, ok := dev.(types.BaseVirtualController); ok {
			if have.(types.BaseVirtualController).GetVirtualController().BusNumber != c.GetVirtualController().BusNumber {
				continue
			}
		}
		d.Key = have.GetVirtualDevice().Key
		return nil
	}
	return deviceFault(i, "a VM has no further %T", dev)
}

func (p *plan) addController(i int, dev types.BaseVirtualDevice) types.BaseMethodFault {
	if p.running {
		return deviceFault(i, "controllers cannot be added while the VM runs")
	}
	first := int32(1000)
	if s, ok := dev.(*types.ParaVirtualSCSIController); ok {
		if s.SharedBus == "" {
			s.SharedBus = types.VirtualSCSISharingNoSharing
		}
		if s.SharedBus != types.VirtualSCSISharingNoSharing {
			return deviceFault(i, "sharedBus %q: buses are not shared", s.SharedBus)
		}
		s.HotAddRemove, s.ScsiCtlrUnitNumber = types.NewBool(true), 7
	} else {
		first = 15000
	}
	c := dev.(types.BaseVirtualController).GetVirtualController()
	if c.BusNumber < 0 || c.BusNumber > 3 {
		return deviceFault(i, "busNumber %d is not 0 to 3", c.BusNumber)
	}
	if p.devices.FindByKey(first+c.BusNumber) != nil {
		return deviceFault(i, "bus %d has a controller already", c.BusNumber)
	}
	c.Key, c.ControllerKey, c.UnitNumber = first+c.BusNumber, 100, nil
	c.Device = nil
	return nil
}

func (p *plan) addDisk(i int, s *types.VirtualDeviceConfigSpec, d *types.VirtualDisk) types.BaseMethodFault {
	ctl, ok := p.devices.FindByKey(d.ControllerKey).(*types.ParaVirtualSCSIController)
	if !ok {
		return deviceFault(i, "the disk's controller %d is no ParaVirtualSCSIController; others are not supported by the lab", d.ControllerKey)
	}
	if fault := p.unit(i, &d.VirtualDevice, 64, 7); fault != nil {
		return fault
	}
	d.Key = 2000 + 64*ctl.BusNumber + *d.UnitNumber
	b, ok := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	if !ok {
		return say(&types.DeviceUnsupportedForVmPlatform{}, "deviceChange[%d]: disks have a VirtualDiskFlatVer2BackingInfo, not %T", i, d.Backing)
	}
	switch b.DiskMode {
	case "", string(types.VirtualDiskModePersistent), string(types.VirtualDiskModeIndependent_persistent):
	default:
		return deviceFault(i, "diskMode %q: disks are persistent", b.DiskMode)
	}
	switch {
	case b.Sharing != "" && b.Sharing != string(types.VirtualDiskSharingSharingNone):
		return deviceFault(i, "sharing %q: disks have one writer", b.Sharing)
	case isTrue(b.EagerlyScrub):
		return deviceFault(i, "eagerlyScrub: disks are thin")
	case b.KeyId != nil || s.Backing != nil && s.Backing.Crypto != nil:
		return notSupported("encrypted disks (deviceChange[%d])", i)
	}
	at, fault := p.diskPath(i, b.FileName, s.FileOperation)
	if fault != nil {
		return fault
	}
	switch s.FileOperation {
	case types.VirtualDeviceConfigSpecFileOperationCreate:
		parent, bytes := "", d.CapacityInBytes
		if b.Parent != nil {
			parent = b.Parent.FileName
		}
		if bytes == 0 {
			bytes = d.CapacityInKB * 1024
		}
		if parent == "" && bytes <= 0 {
			return deviceFault(i, "capacityInBytes is missing")
		}
		if fault := p.lab.makeDisk(at, parent, bytes); fault != nil {
			return fault
		}
		p.made = append(p.made, at)
	case "":
	default:
		return deviceFault(i, "fileOperation %q: disks are created or attached", s.FileOperation)
	}
	chain, fault := p.lab.openChain(at)
	if fault != nil {
		return fault
	}
	for _, o := range p.devices.SelectByType((*types.VirtualDisk)(nil)) {
		if diskFile(o) == at.String() {
			return deviceFault(i, "%s is attached to this VM already", at)
		}
	}
	mode := b.DiskMode
	nb := backing(chain, p.lab.stores)
	if mode != "" {
		nb.DiskMode = mode
	}
	d.Backing = nb
	d.CapacityInBytes = chain[0].desc.Bytes()
	d.CapacityInKB = d.CapacityInBytes / 1024
	return nil
}

// diskPath names a disk's descriptor: a full path as it is, and "" or
// "[datastore]" by the VM's name in its directory.
func (p *plan) diskPath(i int, name string, op types.VirtualDeviceConfigSpecFileOperation) (location, types.BaseMethodFault) {
	if name == "" {
		name = (&object.DatastorePath{Datastore: p.dir.name}).String()
	}
	at, fault := p.lab.resolve(name)
	if fault != nil {
		return at, fault
	}
	if at.rel != "." {
		return at, nil
	}
	if op == "" {
		return at, deviceFault(i, "backing.fileName %q names no disk to attach", name)
	}
	dir := p.dir
	if at.store != dir.store {
		dir = location{at.store, path.Base(dir.rel)}
		if err := dir.root.Mkdir(dir.rel, 0o700); err != nil && !dir.exists() {
			return at, fileFault(dir.String(), err)
		}
	}
	for n := 0; ; n++ {
		base := p.name
		if n > 0 {
			base += "_" + strconv.Itoa(n)
		}
		c, err := dir.join(base + ".vmdk")
		if err != nil {
			return at, fileFault(name, err)
		}
		if !c.exists() {
			return c, nil
		}
	}
}

func diskFile(d types.BaseVirtualDevice) string {
	if b, ok := d.GetVirtualDevice().Backing.(types.BaseVirtualDeviceFileBackingInfo); ok {
		return b.GetVirtualDeviceFileBackingInfo().FileName
	}
	return ""
}

// unit gives a device a free unit number on its controller, or checks its own.
func (p *plan) unit(i int, d *types.VirtualDevice, n, reserved int32) types.BaseMethodFault {
	used := map[int32]bool{reserved: true}
	for _, o := range p.devices {
		v := o.GetVirtualDevice()
		if v.ControllerKey == d.ControllerKey && v.UnitNumber != nil {
			used[*v.UnitNumber] = true
		}
	}
	if d.UnitNumber != nil && *d.UnitNumber >= 0 {
		if *d.UnitNumber >= n || used[*d.UnitNumber] {
			return deviceFault(i, "unitNumber %d is taken or above %d", *d.UnitNumber, n-1)
		}
		return nil
	}
	for u := int32(0); u < n; u++ {
		if !used[u] {
			d.UnitNumber = &u
			return nil
		}
	}
	return deviceFault(i, "controller %d has no free unit", d.ControllerKey)
}

// nextKey returns the first free key and its distance from first.
func (p *plan) nextKey(first, n int32) (key int32, ok bool) {
	for k := first; k < first+n; k++ {
		if p.devices.FindByKey(k) == nil {
			return k, true
		}
	}
	return 0, false
}

func (p *plan) addNIC(i int, dev types.BaseVirtualEthernetCard) types.BaseMethodFault {
	if _, ok := dev.(*types.VirtualVmxnet3); !ok {
		return deviceFault(i, "network adapters are VirtualVmxnet3, not %T", dev)
	}
	c := dev.GetVirtualEthernetCard()
	key, ok := p.nextKey(4000, maxNICs)
	if !ok {
		return deviceFault(i, "a VM has at most %d network adapters", maxNICs)
	}
	c.Key, c.ControllerKey, c.UnitNumber = key, 100, types.NewInt32(7+key-4000)
	if fault := p.nicBacking(i, c); fault != nil {
		return fault
	}
	mac, fault := p.lab.macFor(i, c)
	if fault != nil {
		return fault
	}
	c.MacAddress = mac
	if c.Connectable == nil {
		c.Connectable = &types.VirtualDeviceConnectInfo{StartConnected: true, AllowGuestControl: true}
	}
	c.Connectable.Connected = p.running && c.Connectable.StartConnected
	return nil
}

func (p *plan) nicBacking(i int, c *types.VirtualEthernetCard) types.BaseMethodFault {
	b, ok := c.Backing.(*types.VirtualEthernetCardNetworkBackingInfo)
	if !ok {
		return deviceFault(i, "backing is %T: the lab has standard port groups only", c.Backing)
	}
	if b.DeviceName == "" && b.Network != nil {
		b.DeviceName = p.lab.networkNames[*b.Network]
	}
	if p.lab.nets[b.DeviceName] == nil {
		return deviceFault(i, "there is no network %q", b.DeviceName)
	}
	return nil
}

// macFor returns a NIC's own address, checked, or draws one as vCenter does:
// 00:50:56:80:00:00 to 00:50:56:bf:ff:ff.
func (l *Lab) macFor(i int, c *types.VirtualEthernetCard) (string, types.BaseMethodFault) {
	if c.MacAddress != "" {
		m, err := net.ParseMAC(c.MacAddress)
		if err != nil || len(m) != 6 || m[0]&1 != 0 {
			return "", deviceFault(i, "macAddress %q is not a unicast address of 6 bytes", c.MacAddress)
		}
		if c.AddressType == "" {
			c.AddressType = string(types.VirtualEthernetCardMacTypeManual)
		}
		return m.String(), nil
	}
	used := l.usedMACs()
	c.AddressType = string(types.VirtualEthernetCardMacTypeAssigned)
	for {
		m := net.HardwareAddr{0, 0x50, 0x56, 0, 0, 0}
		_, _ = rand.Read(m[3:])
		m[3] = 0x80 | m[3]&0x3f
		if l.claimMAC(m.String()) && !used[m.String()] {
			return m.String(), nil
		}
	}
}

// usedMACs are those of all VMs. It waits for VMs that the simulator is making:
// it has them in its inventory before they are whole, and does not lock them.
func (l *Lab) usedMACs() map[string]bool {
	l.sim.Lock()
	defer l.sim.Unlock()
	used := map[string]bool{}
	for _, e := range l.reg.All("VirtualMachine") {
		lc := l.context()
		lc.WithLock(e, func() {
			for mac := range macsOf(e) {
				used[mac] = true
			}
		})
	}
	return used
}

func (p *plan) addCD(i int, d *types.VirtualCdrom) types.BaseMethodFault {
	if p.running {
		return deviceFault(i, "CD-ROM drives cannot be added while the VM runs")
	}
	switch c := p.devices.FindByKey(d.ControllerKey).(type) {
	case *types.VirtualIDEController:
		if fault := p.unit(i, &d.VirtualDevice, 2, -1); fault != nil {
			return fault
		}
		d.Key = 3000 + 2*c.BusNumber + *d.UnitNumber
	case *types.VirtualAHCIController:
		if fault := p.unit(i, &d.VirtualDevice, 30, -1); fault != nil {
			return fault
		}
		d.Key = 16000 + 30*c.BusNumber + *d.UnitNumber
	default:
		return deviceFault(i, "the drive's controller %d is no IDE or AHCI controller", d.ControllerKey)
	}
	if n := len(p.devices.SelectByType((*types.VirtualCdrom)(nil))); n >= maxCDs {
		return deviceFault(i, "a VM in the lab has at most %d CD-ROM drives", maxCDs)
	}
	return p.cdBacking(i, d)
}

func (p *plan) cdBacking(i int, d *types.VirtualCdrom) types.BaseMethodFault {
	switch b := d.Backing.(type) {
	case *types.VirtualCdromIsoBackingInfo:
		at, fault := p.lab.resolve(b.FileName)
		if fault != nil {
			return fault
		}
		if st, err := at.stat(); err != nil || !st.Mode().IsRegular() {
			return fileNotFound(b.FileName)
		}
		b.FileName = at.String()
		ref := at.ref
		b.Datastore = &ref
	case *types.VirtualCdromRemotePassthroughBackingInfo, *types.VirtualCdromRemoteAtapiBackingInfo, nil:
		// An empty drive: there is no client whose drive could be used.
	default:
		return deviceFault(i, "backing is %T: CD-ROM drives have an ISO or nothing", d.Backing)
	}
	return nil
}
