// Package lab is a vSphere that needs no vSphere: an HTTPS endpoint with the
// vSphere API over one directory of this machine. What speaks to vCenter
// (govmomi, govc, the other packages of this module) speaks to it unchanged.
//
// The control plane is govmomi's simulator. What a simulator only pretends is
// done for real here: virtual disks are VMDK files (VMware Virtual Disk Format
// 5.0) that qemu-img can check, and PowerOn boots the VM with QEMU on VMware's
// own devices, pvscsi and vmxnet3, with no privileges. Port groups are
// segments of a user-space switch, each with a gateway that gives DHCP, DNS and
// a way out.
//
//	l, err := lab.Start(ctx, lab.Options{Dir: dir})
//	defer l.Close()
//	client, err := govmomi.NewClient(ctx, l.Endpoint().LoginURL(), true)
//
// What the lab cannot do it refuses with NotSupported and the reason;
// [Supported] lists the API's methods that it has. Nothing is accepted and then
// ignored, with these exceptions, which vSphere records and this lab only
// records too: resource allocations, annotations, boot options other than the
// boot CD and flags.
//
// # The guest's view
//
// A VM is a q35 PC. Its first three serial ports are its own; the fourth (COM4,
// 0x2e8) is the lab's guest RPC channel of package internal/rpci, in place of
// VMware's backdoor: "info-get guestinfo.K", "info-set guestinfo.K V" and
// "tools.set.version N". A value that the guest sets is at once a property
// change of config.extraConfig. As on ESXi, keys that appear while a VM runs
// are gone when it is powered off; keys that were there before keep the value
// that the guest gave them. "info-set guestinfo.ip A" is how VMware Tools
// report an address: it sets guest.ipAddress and guest.net.
//
// # Performance counters
//
// QueryPerf has cpu.usagemhz, cpu.usage and mem.consumed of VMs that run, as this
// machine's kernel counts them of the VM's QEMU, devices and all. There is one sample,
// of the present. Other counters are not available.
//
// # Restarts
//
// The inventory is kept in the lab's directory and is there again on the next
// start, with the same references: folders, pools, VMs with their configuration
// and extraConfig, custom fields, DHCP leases. What a client was told is there
// even if the lab's process was killed right after. VMs that a killed lab left
// running are taken over as they run; connections through their networks' gateways
// are cut. VMs that ended with the lab, or meanwhile, are powered off, with a
// VmPoweredOffEvent: those of a lab that was closed, and in a lab without QEMU
// all. Sessions, tasks and older events are forgotten.
//
// SuspendVM_Task writes memory and devices to a .vmss file and ends the VM's QEMU;
// PowerOnVM_Task goes on from it, also in another lab process.
//
// Snapshots make child disks, NAME-000001.vmdk, beside the disks that they keep;
// removing one merges what only it kept into the lower disk. A running VM stands
// still for either, and while a snapshot's memory is written (.vmsn). Independent
// disks are left out. Quiescing is refused.
//
// # Disks
//
// A disk made through the API is a thin "vmfs" descriptor with a flat extent,
// or, with Backing.Parent, a "vmfsSparse" child with preallocated grain tables.
// Disks of a running VM are locked: what would change them fails with
// FileLocked. Destroy_Task deletes every attached disk and its parents, as has
// been reported of vSphere; detach first what must live on.
package lab
