package tether

import (
	"fmt"
	"net/netip"
	"path"
	"strings"
	"time"
)

// Keys of the documents that travel by guestinfo. Every key exists from the
// VM's creation on, because vSphere drops at power-off what was added while
// the VM ran.
const (
	// ConfigKey holds a Config as JSON, written by the controller.
	ConfigKey = "guestinfo.vic.config"
	// StatusKey holds a Status as JSON, written by the guest. It is a claim:
	// any process in the guest can write it.
	StatusKey = "guestinfo.vic.status"
)

// Port is the TCP port on which the tether serves controllers.
const Port = 2377

// Config is all that a container VM is told at its start. It is inert data and
// not secret: whoever may read the VM in vSphere, and any process in the
// guest, can read it.
type Config struct {
	// Version of this document, 1.
	Version int `json:"version"`
	// ID of the container, 64 hexadecimal digits.
	ID string `json:"id"`
	// Authority is the public key of the controllers' certificate authority in
	// authorized_keys form. Controllers show a certificate signed by it, or by one
	// of Authorities, which are trusted beside it. What the guest trusts while it
	// runs, Client.SetAuthorities changes.
	Authority   string   `json:"authority"`
	Authorities []string `json:"authorities,omitempty"`
	// Root is the disk that holds the container's filesystem.
	Root Disk `json:"root"`
	// Process is the container's main process.
	Process Process `json:"process"`
	// Hostname of the container.
	Hostname string `json:"hostname"`
	// Settings of the container's processes.
	Settings Settings `json:"settings,omitzero"`
	// NICs in the order eth0, eth1, …
	NICs []NIC `json:"nics,omitempty"`
	// Serial is the serial port, 2 to 4 for COM2 to COM4, on which the tether
	// serves controllers beside its NICs; zero is none. COM1 is the kernel's.
	Serial int `json:"serial,omitempty"`
	// DNS servers and search domains for /etc/resolv.conf, beside those that
	// DHCP brings.
	DNS    []netip.Addr `json:"dns,omitempty"`
	Search []string     `json:"search,omitempty"`
	// Mounts beside the root and what every container has.
	Mounts []Mount `json:"mounts,omitempty"`
	// ShmBytes is the size of /dev/shm; 0 is 64 MiB.
	ShmBytes int64 `json:"shmBytes,omitempty"`
	// ReadOnlyRoot lets nobody write to the root. Mounts, /dev, and the files in
	// /etc that the tether keeps are what they are without it.
	ReadOnlyRoot bool `json:"readOnlyRoot,omitempty"`
	// Stop says how to end the process.
	Stop Stop `json:"stop"`
	// Restart says when the guest starts the process again by itself.
	Restart Restart `json:"restart,omitzero"`
	// Health is the health check, or nil.
	Health *Health `json:"health,omitempty"`
	// Log bounds the log on the container's disk.
	Log LogLimit `json:"log,omitzero"`
	// AwaitAttach makes the guest stay, for at most this long after the
	// process ended, until a controller that attached has taken the rest of
	// the output, so that the end of a short process's output need not be read
	// from its disk. It delays nothing before or while the process runs.
	AwaitAttach time.Duration `json:"awaitAttach,omitempty"`
	// Apply, where it is not nil, makes the VM a helper that writes to disks for
	// a controller (see Client.Apply): no root is mounted and no process is run,
	// and Root, Process, Stop and AwaitAttach are not looked at.
	Apply *Apply `json:"apply,omitempty"`
}

// Apply is what a helper VM is told.
type Apply struct {
	// Idle is how long the VM stays on while no controller speaks to it; zero
	// means DefaultIdle.
	Idle time.Duration `json:"idle,omitempty"`
}

// Disk names a disk by its place on the first SCSI controller.
type Disk struct {
	Unit int `json:"unit"`
}

// NIC is a network adapter and its address.
type NIC struct {
	// MAC finds the adapter.
	MAC string `json:"mac"`
	// Address and prefix length; the zero value asks DHCP.
	Address netip.Prefix `json:"address,omitzero"`
	// Gateway of the default route, with a fixed Address.
	Gateway netip.Addr `json:"gateway,omitzero"`
}

// Process is what to run.
type Process struct {
	// Args is the program and its arguments. A program without a slash is
	// looked up in the PATH of Env, inside the container's root.
	Args []string `json:"args"`
	// Env in the form KEY=value. PATH, HOME, HOSTNAME and, with a TTY, TERM
	// are added where they are missing.
	Env []string `json:"env,omitempty"`
	// Dir is the working directory, made where it does not exist. Empty is /.
	Dir string `json:"dir,omitempty"`
	// User as in an image's configuration: user, uid, user:group, uid:gid,
	// looked up in the container's own /etc/passwd and /etc/group.
	User string `json:"user,omitempty"`
	// TTY gives the process a pseudo-terminal of Rows and Columns
	// characters (0 leaves 24 by 80).
	TTY     bool   `json:"tty,omitempty"`
	Rows    uint16 `json:"rows,omitempty"`
	Columns uint16 `json:"columns,omitempty"`
	// OpenStdin keeps the standard input open for attachers. Without it the
	// process reads an end of file at once.
	OpenStdin bool `json:"openStdin,omitempty"`
	// StdinOnce closes the standard input when the first attacher that
	// brought one goes.
	StdinOnce bool `json:"stdinOnce,omitempty"`
}

// Stop says how the main process is asked to end.
type Stop struct {
	// Signal by name; empty means SIGTERM (see also IsMeantBy).
	Signal string `json:"signal,omitempty"`
	// Grace is the time between Signal and SIGKILL where a caller gives none.
	// Zero means ten seconds.
	Grace time.Duration `json:"grace,omitempty"`
}

// Trusted are all of the authorities, Authority first.
func (c *Config) Trusted() []string { return append([]string{c.Authority}, c.Authorities...) }

// Validate tells the first field that cannot be right, by its name in JSON.
func (c *Config) Validate() error {
	switch {
	case c.Version != 1:
		return fmt.Errorf("version: %d is not 1, the version this tether knows", c.Version)
	case c.Serial != 0 && (c.Serial < 2 || c.Serial > 4):
		return fmt.Errorf("serial: %d is not 2 to 4", c.Serial)
	case c.Apply != nil && c.Apply.Idle < 0:
		return fmt.Errorf("apply.idle: negative")
	case c.Apply != nil:
		return c.validateNICs()
	case len(c.Process.Args) == 0 || c.Process.Args[0] == "":
		return fmt.Errorf("process.args: empty: neither the image nor the caller names a program")
	case c.Process.Dir != "" && !path.IsAbs(c.Process.Dir):
		return fmt.Errorf("process.dir: %q is not absolute", c.Process.Dir)
	case c.Root.Unit < 0 || c.Root.Unit > 64:
		return fmt.Errorf("root.unit: %d is not between 0 and 64", c.Root.Unit)
	case len(c.Hostname) > 64:
		return fmt.Errorf("hostname: longer than 64 bytes")
	case c.Stop.Grace < 0:
		return fmt.Errorf("stop.grace: negative")
	case c.Restart.Validate() != nil:
		return c.Restart.Validate()
	case c.Health.validate() != nil:
		return c.Health.validate()
	case c.Log.Validate() != nil:
		return c.Log.Validate()
	case c.AwaitAttach < 0 || c.AwaitAttach > time.Minute:
		return fmt.Errorf("awaitAttach: not between 0 and one minute")
	}
	for i, s := range c.Process.Args {
		if strings.IndexByte(s, 0) >= 0 {
			return fmt.Errorf("process.args[%d]: holds a NUL byte", i)
		}
	}
	for i, s := range c.Process.Env {
		if k, _, ok := strings.Cut(s, "="); !ok || k == "" || strings.IndexByte(s, 0) >= 0 {
			return fmt.Errorf("process.env[%d]: %.40q is not KEY=value", i, s)
		}
	}
	if err := c.validateMounts(); err != nil {
		return err
	}
	if err := c.Settings.validate(); err != nil {
		return fmt.Errorf("settings.%w", err)
	}
	return c.validateNICs()
}

func (c *Config) validateNICs() error {
	for i, n := range c.NICs {
		if n.MAC == "" {
			return fmt.Errorf("nics[%d].mac: empty", i)
		}
		if n.Gateway.IsValid() && !n.Address.IsValid() {
			return fmt.Errorf("nics[%d].gateway: given without an address", i)
		}
	}
	return nil
}
