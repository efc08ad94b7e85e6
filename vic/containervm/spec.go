// Package containervm makes, opens, lists, starts, attaches to, stops and
// deletes container VMs: VMs that boot the bootstrap ISO and run one process
// of an image on a disk that is a child of the image's.
//
// What a container is lives in its VM: name, identity, configuration and last
// known outcome are the VM's own properties. Nothing is kept by this package,
// so any process may go on where another was ended.
package containervm

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"path"
	"regexp"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

// A Spec says what a container VM is to be. It is inert data.
type Spec struct {
	// ID makes Create idempotent. Empty draws one. 64 hexadecimal digits.
	ID string
	// Owner is the VCH (see vch.VCH.Owner).
	Owner vic.Owner
	// Name, unique in the VCH: vSphere itself refuses a second VM of a name in
	// a folder. Letters, digits, '-', '_' and '.', at most 63.
	Name string
	// Root is the image's top disk; the container gets a child of it.
	Root vic.Disk
	// Image is the image's configuration, and ImageName what people call it.
	Image     ocispec.ImageConfig
	ImageName string

	// Entrypoint replaces the image's where it is not nil; then the image's
	// command is not used either. Args replaces the image's command where it
	// is not nil.
	Entrypoint []string
	Args       []string
	// Env is added to the image's; a variable named in both has this value.
	Env []string
	// Dir and User replace the image's where they are not empty.
	Dir, User string
	// Hostname defaults to the first twelve digits of the ID.
	Hostname string

	// Settings of the container's processes: capabilities, limits, kernel
	// parameters, groups, names and resolver.
	Settings tether.Settings

	TTY           bool
	Rows, Columns uint16
	OpenStdin     bool
	StdinOnce     bool
	// AwaitAttach is for containers that somebody is about to attach to: see
	// tether.Config. At most a minute.
	AwaitAttach time.Duration

	// StopSignal replaces the image's where it is not empty; StopTimeout is
	// the grace before SIGKILL (zero: ten seconds).
	StopSignal  string
	StopTimeout time.Duration

	// Mounts beside the root.
	Mounts []Mount
	// ShmBytes is the size of /dev/shm (zero: 64 MiB). ReadOnlyRoot lets nobody
	// write to the root; see tether.Config.
	ShmBytes     int64
	ReadOnlyRoot bool

	// Restart says when the guest starts the process again by itself. It also
	// says whether a VM that is off should run (see Info.ShouldRun).
	Restart tether.Restart

	// Health is the health check that the guest runs, or nil.
	Health *tether.Health
	// Log bounds the log on the container's disk.
	Log tether.LogLimit

	// CPUs and MemoryMB default to the owner's.
	CPUs     int32
	MemoryMB int64
	// NICs; nil gives one of the owner's kind. An empty slice that is not nil
	// gives none, and Serial.
	NICs []vic.NIC
	// Serial gives the VM a network serial port, over which controllers reach
	// the guest where they do not by its NICs. It is dialled at the VM's host
	// (see vic.Config.DialHost), carries some 0.5 MB/s, and one process at a
	// time; the next waits for it, but for Stop and Kill, which find another way. Hosts need the firewall's rule set "VM serial
	// port connected over network".
	Serial bool

	serialPort int // drawn
}

var (
	nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)
	idRE   = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// NewID draws a container ID.
func NewID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func invalidName(name string) error {
	return fault.Of(vic.ErrInvalid, "Name %q: want at most 63 letters, digits, '-', '_' or '.', beginning with a letter or digit", name)
}

func checkCPUs(n int32) error {
	if n < 1 || n > 128 {
		return fault.Of(vic.ErrInvalid, "CPUs %d: want 1 to 128", n)
	}
	return nil
}

func checkMemory(mb int64) error {
	switch {
	case mb < 64:
		return fault.Of(vic.ErrInvalid, "MemoryMB %d: want at least 64", mb)
	case mb%4 != 0:
		return fault.Of(vic.ErrInvalid, "MemoryMB %d: vSphere wants a multiple of 4", mb)
	}
	return nil
}

// complete checks the spec and fills in its defaults.
func (s *Spec) complete() error {
	if s.ID == "" {
		s.ID = NewID()
	}
	if s.CPUs == 0 {
		s.CPUs = s.Owner.CPUs
	}
	if s.MemoryMB == 0 {
		s.MemoryMB = s.Owner.MemoryMB
	}
	if s.NICs == nil {
		s.NICs = []vic.NIC{s.Owner.NIC}
	}
	if s.Hostname == "" {
		s.Hostname = s.ID[:min(12, len(s.ID))]
	}
	switch {
	case !idRE.MatchString(s.ID):
		return fault.Of(vic.ErrInvalid, "ID %q: want 64 hexadecimal digits in lower case", s.ID)
	case !nameRE.MatchString(s.Name):
		return invalidName(s.Name)
	case s.Owner.ID == "" || s.Owner.Folder.ID == "" || s.Owner.Pool.ID == "":
		return fault.Of(vic.ErrInvalid, "Owner: incomplete; take it from an open VCH")
	case s.Root.Path == "" || s.Root.Bytes <= 0:
		return fault.Of(vic.ErrInvalid, "Root: no disk; take it from an image of the VCH's store")
	case len(s.NICs) > 10:
		return fault.Of(vic.ErrInvalid, "NICs: %d: vSphere takes at most 10", len(s.NICs))
	}
	if err := s.checkMounts(); err != nil {
		return err
	}
	if err := checkCPUs(s.CPUs); err != nil {
		return err
	}
	if err := checkMemory(s.MemoryMB); err != nil {
		return err
	}
	s.Serial = s.Serial || len(s.NICs) == 0
	s.NICs = append([]vic.NIC(nil), s.NICs...)
	for i := range s.NICs {
		if s.NICs[i].Network.ID == "" {
			return fault.Of(vic.ErrInvalid, "NICs[%d]: names no port group", i)
		}
		if s.NICs[i].MAC == "" {
			s.NICs[i].MAC = newMAC()
		}
	}
	return nil
}

// newMAC draws a locally administered address. The MAC is in the guest's
// configuration before the VM exists, so vSphere cannot draw it; outside
// VMware's own ranges vSphere takes any.
func newMAC() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	b[0] = b[0]&^1 | 2
	return net.HardwareAddr(b[:]).String()
}

// config makes the document that the guest reads.
func (s *Spec) config() (*tether.Config, error) {
	img := s.Image
	entry, args := img.Entrypoint, img.Cmd
	if s.Entrypoint != nil {
		entry, args = s.Entrypoint, nil
	}
	if s.Args != nil {
		args = s.Args
	}
	c := &tether.Config{
		Version: 1, ID: s.ID, Authority: s.Owner.Authority, Authorities: s.Owner.Authorities,
		Root: tether.Disk{Unit: 0},
		Process: tether.Process{
			Args: append(append([]string{}, entry...), args...),
			Env:  tether.MergeEnv(img.Env, s.Env),
			Dir:  first(s.Dir, img.WorkingDir), User: first(s.User, img.User),
			TTY: s.TTY, Rows: s.Rows, Columns: s.Columns,
			OpenStdin: s.OpenStdin, StdinOnce: s.StdinOnce,
		},
		Hostname:    s.Hostname,
		Settings:    s.Settings,
		Stop:        tether.Stop{Signal: first(s.StopSignal, img.StopSignal), Grace: s.StopTimeout},
		AwaitAttach: s.AwaitAttach,
		Restart:     s.Restart, Health: s.Health, Log: s.Log,
	}
	if d := c.Process.Dir; d != "" && !path.IsAbs(d) {
		c.Process.Dir = "/" + d
	}
	if s.Serial {
		c.Serial = serialCOM
	}
	c.ShmBytes, c.ReadOnlyRoot = s.ShmBytes, s.ReadOnlyRoot
	for _, m := range s.Mounts {
		c.Mounts = append(c.Mounts, m.config(s.volumeUnits()))
	}
	for _, n := range s.NICs {
		c.NICs = append(c.NICs, tether.NIC{MAC: n.MAC, Address: n.Address, Gateway: n.Gateway})
		c.DNS = append(c.DNS, n.DNS...)
	}
	if err := c.Validate(); err != nil {
		return nil, fault.As(vic.ErrInvalid, fmt.Errorf("container configuration: %w", err))
	}
	return c, nil
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
