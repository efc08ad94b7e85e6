package vic

import (
	"net/netip"
	"time"
)

// A Disk is a virtual disk on a datastore. It is inert data.
type Disk struct {
	// Path is its descriptor's datastore path, "[datastore] dir/name.vmdk".
	Path string `json:"path"`
	// Bytes is its capacity.
	Bytes int64 `json:"bytes"`
}

// A NIC says how a container VM's adapter is connected. It is inert data;
// package network makes it.
type NIC struct {
	// Network is the port group.
	Network Ref `json:"network"`
	// PortGroupKey and SwitchUUID say where a distributed port group is;
	// both are empty for a standard one.
	PortGroupKey string `json:"portGroupKey,omitempty"`
	SwitchUUID   string `json:"switchUUID,omitempty"`
	// MAC, or empty for one that vSphere draws.
	MAC string `json:"mac,omitempty"`
	// Address and Gateway are fixed by whoever makes the NIC; without an
	// Address the guest asks DHCP.
	Address netip.Prefix `json:"address,omitzero"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
	// DNS servers that are reached through this NIC.
	DNS []netip.Addr `json:"dns,omitempty"`
}

// An Owner is the VCH that an object belongs to, as far as those who make
// objects for it must know it. It is inert data.
type Owner struct {
	// ID is the VCH's, drawn at its creation; every object of the VCH carries it.
	ID   string `json:"id"`
	Name string `json:"name"`
	// Datacenter's inventory path.
	Datacenter string `json:"datacenter"`
	// Pool is the resource pool, Folder the VM folder of its container VMs.
	Pool   Ref `json:"pool"`
	Folder Ref `json:"folder"`
	// Datastore keeps the container VMs.
	Datastore Ref `json:"datastore"`
	// BootISO is the datastore path of the ISO that container VMs boot.
	BootISO string `json:"bootISO"`
	// Authority is the public key, in authorized_keys form, of the authority
	// that certifies this VCH's controllers to its guests. Authorities are trusted
	// beside it, while one takes another's place.
	Authority   string   `json:"authority"`
	Authorities []string `json:"authorities,omitempty"`
	// NIC connects container VMs for which nothing else is said.
	NIC NIC `json:"nic"`
	// CPUs and MemoryMB of container VMs for which nothing else is said.
	CPUs     int32 `json:"cpus"`
	MemoryMB int64 `json:"memoryMB"`
}

// An Event tells how far a long operation is.
type Event struct {
	// Op is the operation: "pull", "create", "start", …
	Op string `json:"op"`
	// ID is what it is about: a layer's digest, a VM's name.
	ID string `json:"id,omitempty"`
	// Phase of the work on ID: "download", "apply", "upload", "exists", "pack",
	// "push", "mounted", "done", …
	Phase string `json:"phase"`
	// Done of Total bytes; Total is 0 where it is not known.
	Done  int64     `json:"done,omitempty"`
	Total int64     `json:"total,omitempty"`
	Time  time.Time `json:"time"`
}

// A Place is a directory of a datastore.
type Place struct {
	Datastore Ref `json:"datastore"`
	// Dir is a slash path from the datastore's root.
	Dir string `json:"dir"`
	// NFS is, of a volume store on an NFS server, where that is (see ParseNFS); the
	// directory holds its records.
	NFS string `json:"nfs,omitempty"`
}
