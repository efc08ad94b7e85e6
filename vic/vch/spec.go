// Package vch makes, opens, lists and deletes virtual container hosts.
//
// A VCH is a resource pool, a VM folder and a record. The record is a document
// on the datastore of the VCH's image store, [datastore] vic/vch/NAME/vch.json,
// because pools and folders carry no settings of their own. It is written
// before the pool and the folder are made, so that whatever a crash leaves can
// be found and deleted.
package vch

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// A Spec says what a VCH is to be. It is inert data.
type Spec struct {
	// ID makes Create idempotent: creating again with the same ID and name
	// opens what is there. Empty draws one. 16 to 64 hexadecimal digits.
	ID string `json:"id,omitempty"`
	// Name, at most 31 characters out of letters, digits, '-', '_' and '.'.
	Name string `json:"name"`
	// Compute is the cluster or host, by name or inventory path; empty where
	// there is only one.
	Compute string `json:"compute,omitempty"`
	// ImageStore is "datastore" or "datastore/directory". Container VMs live
	// on the same datastore. The directory defaults to vic/images.
	ImageStore string `json:"imageStore"`
	// VolumeStores are where volumes are kept, by label: "datastore" or
	// "datastore/directory", which defaults to vic/volumes/NAME, NAME being the
	// VCH's, or a directory of an NFS server (see vic.ParseNFS), whose records are
	// then kept on ImageStore's datastore. Volumes that name no store are in the one labelled "default"; without
	// it, they cannot be made. Nil is one of that label on ImageStore's datastore;
	// an empty map that is not nil is none.
	VolumeStores map[string]string `json:"volumeStores"`
	// NIC connects container VMs for which no other is named; package network
	// makes it of a port group.
	NIC vic.NIC `json:"nic"`
	// CPUs (default 1) and MemoryMB (default 512) of container VMs that do not
	// say otherwise.
	CPUs     int32 `json:"cpus,omitempty"`
	MemoryMB int64 `json:"memoryMB,omitempty"`
}

// Options of Create that are not part of what the VCH is.
type Options struct {
	// BootISO is the path of a local file, the bootstrap ISO that container
	// VMs boot (package bootiso makes one). Required.
	BootISO string
	// Progress, or nil.
	Progress func(vic.Event)
}

var (
	nameRE  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,30}$`)
	labelRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
	idRE    = regexp.MustCompile(`^[0-9a-f]{16,64}$`)
)

// Validate tells the first field that cannot be right. It does not ask
// vSphere.
func (s *Spec) Validate() error {
	ds, dir, hasDir := strings.Cut(s.ImageStore, "/")
	switch {
	case !nameRE.MatchString(s.Name):
		return fault.Of(vic.ErrInvalid, "Name %q: want at most 31 letters, digits, '-', '_' or '.', beginning with a letter or digit", s.Name)
	case s.ID != "" && !idRE.MatchString(s.ID):
		return fault.Of(vic.ErrInvalid, "ID %q: want 16 to 64 hexadecimal digits in lower case", s.ID)
	case ds == "":
		return fault.Of(vic.ErrInvalid, "ImageStore is empty: want \"datastore\" or \"datastore/directory\"")
	case hasDir && !cleanDir(dir):
		return fault.Of(vic.ErrInvalid, "ImageStore %q: the directory must be a plain relative path", s.ImageStore)
	case s.NIC.Network.ID == "":
		return fault.Of(vic.ErrInvalid, "NIC is empty: open the port group of the containers and take its NIC")
	case s.NIC.MAC != "" || s.NIC.Address.IsValid():
		return fault.Of(vic.ErrInvalid, "NIC: a MAC or an address would be shared by all containers")
	case s.CPUs < 0 || s.CPUs > 128:
		return fault.Of(vic.ErrInvalid, "CPUs %d: want 1 to 128", s.CPUs)
	case s.MemoryMB < 0 || s.MemoryMB != 0 && s.MemoryMB < 64:
		return fault.Of(vic.ErrInvalid, "MemoryMB %d: want at least 64", s.MemoryMB)
	}
	for _, label := range slices.Sorted(maps.Keys(s.VolumeStores)) {
		if !labelRE.MatchString(label) {
			return fault.Of(vic.ErrInvalid, "VolumeStores: label %.80q: want at most 64 letters, digits, '-', '_' or '.'", label)
		}
		if isNFS(s.VolumeStores[label]) {
			if _, err := vic.ParseNFS(s.VolumeStores[label]); err != nil {
				return describe("VolumeStores: "+label, err)
			}
			continue
		}
		ds, dir, hasDir := strings.Cut(s.VolumeStores[label], "/")
		if ds == "" || strings.Contains(ds, ":") || hasDir && !cleanDir(dir) {
			return fault.Of(vic.ErrInvalid, "VolumeStores: %q: %q: want \"datastore\" or \"datastore/directory\", a plain relative path, or nfs://server/path", label, s.VolumeStores[label])
		}
	}
	return nil
}

func isNFS(store string) bool { return strings.HasPrefix(store, "nfs://") }

func cleanDir(d string) bool {
	if d == "" || strings.ContainsAny(d, "[]\\\x00") {
		return false
	}
	for _, p := range strings.Split(d, "/") {
		if p == "" || p == "." || p == ".." {
			return false
		}
	}
	return true
}
