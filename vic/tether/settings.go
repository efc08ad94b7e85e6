package tether

import (
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Settings are what bounds a container's processes and what they are told of
// their surroundings. The zero value is what Docker gives by default. They hold
// for the main process and for every Exec.
type Settings struct {
	// CapAdd and CapDrop change DefaultCapabilities: names of capabilities(7) in
	// any case, with or without CAP_, or ALL. What is dropped goes first, what
	// is added comes then; with ALL added, all but what is dropped is given.
	CapAdd  []string `json:"capAdd,omitempty"`
	CapDrop []string `json:"capDrop,omitempty"`
	// Privileged gives all capabilities, whatever CapAdd and CapDrop say, and
	// all devices of the VM.
	Privileged bool `json:"privileged,omitempty"`
	// NoNewPrivileges keeps set-user-ID programs and file capabilities from
	// giving privileges (no_new_privs of prctl(2)).
	NoNewPrivileges bool `json:"noNewPrivileges,omitempty"`
	// Ulimits replace the limits of the same name.
	Ulimits []Ulimit `json:"ulimits,omitempty"`
	// OOMScoreAdj is from -1000 (never killed for want of memory) to 1000.
	OOMScoreAdj int `json:"oomScoreAdj,omitempty"`
	// GroupAdd are further groups, by name in the container's /etc/group or by
	// number.
	GroupAdd []string `json:"groupAdd,omitempty"`
	// Sysctls by name, as net.core.somaxconn. The kernel is the container's
	// alone, so any that it has may be set.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// Domainname of the container (domainname(1)) and the rest of its full
	// name in /etc/hosts.
	Domainname string `json:"domainname,omitempty"`
	// ExtraHosts are further lines of /etc/hosts.
	ExtraHosts []ExtraHost `json:"extraHosts,omitempty"`
	// DNS and DNSSearch, where they are not empty, stand in /etc/resolv.conf
	// instead of what the networks bring. The search domain "." alone is none.
	DNS       []netip.Addr `json:"dns,omitempty"`
	DNSSearch []string     `json:"dnsSearch,omitempty"`
	// DNSOptions of /etc/resolv.conf, such as ndots:2.
	DNSOptions []string `json:"dnsOptions,omitempty"`
}

// Ulimit is a limit of getrlimit(2) by its name in lower case without RLIMIT_,
// in that call's units. -1 is unlimited.
type Ulimit struct {
	Name string `json:"name"`
	Soft int64  `json:"soft"`
	Hard int64  `json:"hard"`
}

// ExtraHost is a line of /etc/hosts.
type ExtraHost struct {
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
}

// capabilities by their number (linux/capability.h).
var capabilities = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// DefaultCapabilities are those that Docker grants (moby, oci/caps/defaults.go;
// Docker's run reference, "Runtime privilege and Linux capabilities").
func DefaultCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

// Capabilities is the set that processes may have, by the bits of capget(2). An
// error names the field.
func (s *Settings) Capabilities() (uint64, error) {
	const all = 1<<len(capabilities) - 1
	add, allAdded, err := capabilitySet("capAdd", s.CapAdd)
	if err != nil {
		return 0, err
	}
	drop, allDropped, err := capabilitySet("capDrop", s.CapDrop)
	if err != nil {
		return 0, err
	}
	given, _, err := capabilitySet("", DefaultCapabilities())
	switch {
	case err != nil:
		return 0, err
	case s.Privileged:
		return all, nil
	case allAdded:
		return all &^ drop, nil
	case allDropped:
		return add, nil
	}
	return given&^drop | add, nil
}

func capabilitySet(field string, names []string) (set uint64, all bool, err error) {
	for i, name := range names {
		n := strings.ToUpper(name)
		if n == "ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(n, "CAP_") {
			n = "CAP_" + n
		}
		bit := slices.Index(capabilities[:], n)
		if bit < 0 {
			return 0, false, fmt.Errorf("%s[%d]: no capability is named %.40q", field, i, name)
		}
		set |= 1 << bit
	}
	return set, all, nil
}

// limits by their number on Linux (asm-generic/resource.h).
var limits = [...]string{
	"cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as", "locks", "sigpending",
	"msgqueue", "nice", "rtprio", "rttime",
}

// Resource returns the limit's number and values for prlimit(2). An error names
// the field of the ulimit.
func (u Ulimit) Resource() (resource int, soft, hard uint64, err error) {
	resource = slices.Index(limits[:], u.Name)
	switch {
	case resource < 0:
		return 0, 0, 0, fmt.Errorf("name: no limit is named %.40q: it is one of %s", u.Name, strings.Join(limits[:], ", "))
	case u.Soft < -1 || u.Hard < -1:
		return 0, 0, 0, fmt.Errorf("%s: %d:%d: negative; -1 is unlimited", u.Name, u.Soft, u.Hard)
	}
	soft, hard = uint64(u.Soft), uint64(u.Hard) // -1 is RLIM_INFINITY.
	if soft > hard {
		return 0, 0, 0, fmt.Errorf("%s: the soft limit %d is above the hard one, %d", u.Name, u.Soft, u.Hard)
	}
	return resource, soft, hard, nil
}

var (
	hostRE   = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})$`)
	sysctlRE = regexp.MustCompile(`^[A-Za-z0-9_-]+([./][A-Za-z0-9_:-]+)+$`)
)

// validate tells the first field that cannot be right.
func (s *Settings) validate() error {
	if _, err := s.Capabilities(); err != nil {
		return err
	}
	seen := map[string]bool{}
	for i, u := range s.Ulimits {
		if _, _, _, err := u.Resource(); err != nil {
			return fmt.Errorf("ulimits[%d].%w", i, err)
		}
		if seen[u.Name] {
			return fmt.Errorf("ulimits[%d].name: %s is there twice", i, u.Name)
		}
		seen[u.Name] = true
	}
	if s.OOMScoreAdj < -1000 || s.OOMScoreAdj > 1000 {
		return fmt.Errorf("oomScoreAdj: %d is not between -1000 and 1000", s.OOMScoreAdj)
	}
	for i, g := range s.GroupAdd {
		if g == "" || strings.ContainsAny(g, ":\n\x00") {
			return fmt.Errorf("groupAdd[%d]: %.40q is no group", i, g)
		}
	}
	for name, value := range s.Sysctls {
		switch {
		case !sysctlRE.MatchString(name):
			return fmt.Errorf("sysctls: %.80q is no name such as net.core.somaxconn", name)
		case len(value) > 4096 || strings.ContainsAny(value, "\n\x00"):
			return fmt.Errorf("sysctls: %s: the value is above 4096 bytes or has several lines", name)
		}
	}
	if s.Domainname != "" && (len(s.Domainname) > 64 || !hostRE.MatchString(s.Domainname)) {
		return fmt.Errorf("domainname: %.80q is no domain name of at most 64 bytes", s.Domainname)
	}
	for i, h := range s.ExtraHosts {
		switch {
		case !hostRE.MatchString(h.Name):
			return fmt.Errorf("extraHosts[%d].name: %.80q is no host name", i, h.Name)
		case !h.Address.IsValid():
			return fmt.Errorf("extraHosts[%d].address: missing", i)
		}
	}
	return s.validateDNS()
}

func (s *Settings) validateDNS() error {
	for i, a := range s.DNS {
		if !a.IsValid() {
			return fmt.Errorf("dns[%d]: missing", i)
		}
	}
	for i, d := range s.DNSSearch {
		if d != "." && !hostRE.MatchString(d) {
			return fmt.Errorf("dnsSearch[%d]: %.80q is no domain name", i, d)
		}
	}
	for i, o := range s.DNSOptions {
		if o == "" || len(o) > math.MaxUint8 || strings.ContainsAny(o, " \t\n\x00") {
			return fmt.Errorf("dnsOptions[%d]: %.80q is no option", i, o)
		}
	}
	return nil
}
