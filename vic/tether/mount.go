package tether

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"strings"
)

// A Mount is a filesystem that the container finds at a place of its own. Mounts
// are made from the root down, whatever their order.
type Mount struct {
	// Target is an absolute, clean path; it is looked up inside the container, and
	// made where it does not exist.
	Target string `json:"target"`
	// ReadOnly lets nobody write through this mount.
	ReadOnly bool `json:"readOnly,omitempty"`
	// Volume or Tmpfs is what to mount; the other is nil.
	Volume *Volume `json:"volume,omitempty"`
	Tmpfs  *Tmpfs  `json:"tmpfs,omitempty"`
}

// A Volume is storage that outlives the container: a disk of the VM, or a
// directory of an NFS server.
//
// A disk that is all zeroes gets an ext4 filesystem from the guest that first
// sees it, and one that has grown a larger one. The volume's content is the
// directory /rootfs of that filesystem; what lies beside it is the tether's.
//
// An empty volume gets, in a container's first start and never later, what the image has at the
// mount's target: contents, owners, modes, times and attributes.
// A copy that was cut off is begun again by whoever mounts the volume next.
type Volume struct {
	// Name and Anonymous are for those who read the configuration.
	Name      string `json:"name,omitempty"`
	Anonymous bool   `json:"anonymous,omitempty"`
	// Unit is the disk's on the first SCSI controller, from 1 on.
	Unit int `json:"unit,omitempty"`
	// NFS, where it is not nil, is mounted in place of a disk.
	NFS *NFS `json:"nfs,omitempty"`
	// Subpath mounts a directory of the volume, which must exist. Links in it
	// cannot lead out of the volume. Nothing is copied to it.
	Subpath string `json:"subpath,omitempty"`
	// NoCopy leaves an empty volume empty.
	NoCopy bool `json:"noCopy,omitempty"`
}

// NFS is a directory of a server. The guest's kernel is the client.
type NFS struct {
	// Server is an address, or a name that the guest's DNS servers know.
	Server string `json:"server"`
	// Path that the server exports.
	Path string `json:"path"`
	// Version is "3", "4", "4.1" or "4.2"; empty is 4.2 or what the server has of
	// 4, and else 3.
	Version string `json:"version,omitempty"`
	// Port of the server's NFS service, and of its MOUNT service (version 3);
	// 0 asks its port mapper, and is 2049 with version 4.
	Port      int `json:"port,omitempty"`
	MountPort int `json:"mountPort,omitempty"`
	// Dir, where it is not empty, is the name of a directory in Path that is mounted
	// instead of Path. Where it is not there it is made, by the user UID and the
	// group GID, whose it is then: servers that take root for nobody (root_squash)
	// let them, where Path is theirs.
	Dir string `json:"dir,omitempty"`
	UID uint32 `json:"uid,omitempty"`
	GID uint32 `json:"gid,omitempty"`
}

// Tmpfs is an empty filesystem in the VM's memory, gone with its power-off.
type Tmpfs struct {
	// Bytes it may hold; 0 is half of the memory.
	Bytes int64 `json:"bytes,omitempty"`
	// Mode of its root; 0 is 1777.
	Mode uint32 `json:"mode,omitempty"`
	// UID and GID own its root.
	UID uint32 `json:"uid,omitempty"`
	GID uint32 `json:"gid,omitempty"`
	// Inodes it may hold; 0 leaves the kernel's bound.
	Inodes int64 `json:"inodes,omitempty"`
	// Exec, SUID and Dev let programs, set-user-ID programs and devices on it work.
	Exec bool `json:"exec,omitempty"`
	SUID bool `json:"suid,omitempty"`
	Dev  bool `json:"dev,omitempty"`
}

// MaxMounts bounds the mounts of a container, MaxVolumeUnit the units of its
// disks: what vSphere has room for on one controller.
const (
	MaxMounts     = 128
	MaxVolumeUnit = 15
	// controllerUnit is the SCSI controller's own.
	controllerUnit = 7
)

// validateMounts tells the first field that cannot be right.
func (c *Config) validateMounts() error {
	if c.ShmBytes < 0 {
		return fmt.Errorf("shmBytes: negative")
	}
	if len(c.Mounts) > MaxMounts {
		return fmt.Errorf("mounts: %d, more than %d", len(c.Mounts), MaxMounts)
	}
	seen := map[string]bool{}
	for i := range c.Mounts {
		m := &c.Mounts[i]
		if err := m.validate(); err != nil {
			return fmt.Errorf("mounts[%d].%w", i, err)
		}
		if seen[m.Target] {
			return fmt.Errorf("mounts[%d].target: %q is the target of another mount, too", i, m.Target)
		}
		seen[m.Target] = true
	}
	return nil
}

func (m *Mount) validate() error {
	if err := CheckTarget(m.Target); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	switch {
	case (m.Volume == nil) == (m.Tmpfs == nil):
		return fmt.Errorf("volume: want a volume or a tmpfs, and not both")
	case m.Tmpfs != nil:
		return m.Tmpfs.validate()
	}
	v := m.Volume
	if v.NFS != nil {
		if v.Unit != 0 {
			return fmt.Errorf("volume.unit: a volume of an NFS server is no disk")
		}
		if err := v.NFS.Validate(); err != nil {
			return fmt.Errorf("volume.nfs.%w", err)
		}
	} else if err := checkUnit(v.Unit); err != nil {
		return fmt.Errorf("volume.unit: %w", err)
	}
	if s := v.Subpath; s != "" && (path.IsAbs(s) || path.Clean(s) != s || s == "." || s == ".." || strings.HasPrefix(s, "../") || strings.IndexByte(s, 0) >= 0 || len(s) > 4095) {
		return fmt.Errorf("volume.subpath: %.100q is no clean path inside the volume", s)
	}
	return nil
}

func checkUnit(n int) error {
	if n < 1 || n > MaxVolumeUnit || n == controllerUnit {
		return fmt.Errorf("%d is not between 1 and %d, or is %d, the controller's own", n, MaxVolumeUnit, controllerUnit)
	}
	return nil
}

// CheckTarget tells why nothing can be mounted at a path of the container.
func CheckTarget(p string) error {
	switch {
	case !path.IsAbs(p) || path.Clean(p) != p:
		return fmt.Errorf("%.100q is no clean absolute path", p)
	case len(p) > 4095 || strings.IndexByte(p, 0) >= 0:
		return fmt.Errorf("%.100q is too long or holds a NUL byte", p)
	case p == "/":
		return fmt.Errorf("the root is the container's own disk")
	case p == "/dev" || p == "/proc" || p == "/sys" || strings.HasPrefix(p, "/proc/") || strings.HasPrefix(p, "/sys/"):
		return fmt.Errorf("%q is the kernel's", p)
	}
	return nil
}

func (t *Tmpfs) validate() error {
	switch {
	case t.Bytes < 0:
		return fmt.Errorf("tmpfs.bytes: negative")
	case t.Inodes < 0:
		return fmt.Errorf("tmpfs.inodes: negative")
	case t.Mode > 0o7777:
		return fmt.Errorf("tmpfs.mode: %#o is above 07777", t.Mode)
	}
	return nil
}

// Validate tells the first field that cannot be right.
func (n *NFS) Validate() error {
	_, err := netip.ParseAddr(n.Server)
	switch {
	case n.Server == "" || len(n.Server) > 253:
		return fmt.Errorf("server: %.80q is neither an address nor a name", n.Server)
	case err != nil && (strings.Trim(strings.ToLower(n.Server), "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" || net.ParseIP(n.Server) != nil):
		return fmt.Errorf("server: %.80q is neither an address nor a name", n.Server)
	case !path.IsAbs(n.Path) || path.Clean(n.Path) != n.Path || len(n.Path) > 1023 || strings.IndexByte(n.Path, 0) >= 0:
		return fmt.Errorf("path: %.100q is no clean absolute path", n.Path)
	case n.Dir == "." || n.Dir == ".." || len(n.Dir) > 255 || strings.ContainsAny(n.Dir, "/\x00"):
		return fmt.Errorf("dir: %.100q is no name of a directory", n.Dir)
	case n.Dir == "" && (n.UID != 0 || n.GID != 0):
		return fmt.Errorf("uid, gid: they are for dir, which is empty")
	case n.Port < 0 || n.Port > 65535:
		return fmt.Errorf("port: %d is not between 0 and 65535", n.Port)
	case n.MountPort < 0 || n.MountPort > 65535:
		return fmt.Errorf("mountPort: %d is not between 0 and 65535", n.MountPort)
	}
	switch n.Version {
	case "", "3", "4", "4.1", "4.2":
		return nil
	}
	return fmt.Errorf("version: %.20q is not 3, 4, 4.1 or 4.2", n.Version)
}
