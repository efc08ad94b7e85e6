package lab

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/rpci"
)

// Bounds of what a guest may set.
const (
	maxGuestKey   = 256
	maxGuestValue = 64 << 10
	maxGuestTotal = 1 << 20
)

// badOption says what is wrong with an option of extraConfig, if anything.
func badOption(key, value string) string {
	switch {
	case key == "" || len(key) > maxGuestKey:
		return "a key has 1 to 256 bytes"
	case len(value) > maxGuestTotal:
		return "a value has at most 1 MiB"
	case key == "ip0" || strings.HasPrefix(key, "SET.") || strings.HasPrefix(key, "RUN."):
		// The simulator below would take these as orders: to pretend a
		// property's value, to run a program on this machine.
		return "keys of this form are reserved"
	}
	for _, r := range key {
		if r <= ' ' || r == '"' || r == '[' || r == ']' || r >= 0x7f {
			return "a key is of printable ASCII without blanks, quotes and brackets"
		}
	}
	if !xmlText(value) {
		return "a value is UTF-8 without control characters"
	}
	return ""
}

// xmlText tells whether s can be in an XML document as it is (XML 1.0, 2.2).
func xmlText(s string) bool {
	for i, r := range s {
		switch {
		case r == utf8.RuneError:
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				return false
			}
		case r < ' ' && r != '\t' && r != '\n' && r != '\r', r == 0xfffe, r == 0xffff:
			return false
		}
	}
	return true
}

// serveGuest answers a guest's RPC until the VM's end.
func (l *Lab) serveGuest(conn net.Conn, m *machine, vm *simulator.VirtualMachine) {
	_ = rpci.Serve(conn, func(request string) string {
		answer := l.guestRPC(vm, request)
		l.journal.flush()
		return answer
	})
}

// guestRPC answers one request as VMware's hypervisor does.
func (l *Lab) guestRPC(vm *simulator.VirtualMachine, request string) string {
	verb, rest, _ := strings.Cut(request, " ")
	switch verb {
	case "info-get":
		return l.guestGet(vm, rest)
	case "info-set":
		key, value, _ := strings.Cut(rest, " ")
		return l.guestSet(vm, key, value)
	case "tools.set.version", "tools.set.versiontype":
		v, _, _ := strings.Cut(rest, " ")
		if _, err := strconv.ParseUint(v, 10, 31); err != nil {
			return "0 Invalid version"
		}
		l.toolsRun(vm, v, netip.Addr{})
		return "1 "
	}
	return "0 Unknown command"
}

func (l *Lab) guestGet(vm *simulator.VirtualMachine, key string) string {
	if !strings.HasPrefix(key, "guestinfo.") {
		return "0 Permission denied"
	}
	lc := l.context()
	var value string
	var ok bool
	lc.WithLock(vm, func() { value, ok = options(vm.Config.ExtraConfig)[key] })
	if !ok {
		return "0 No value found"
	}
	return "1 " + value
}

// guestSet sets a key. Readers see it as a change of config.extraConfig.
func (l *Lab) guestSet(vm *simulator.VirtualMachine, key, value string) string {
	if !strings.HasPrefix(key, "guestinfo.") {
		return "0 Permission denied"
	}
	if why := badOption(key, value); why != "" {
		return "0 Invalid: " + why
	}
	if len(value) > maxGuestValue {
		return "0 Value above 64 KiB"
	}
	if key == "guestinfo.ip" {
		a, err := netip.ParseAddr(value)
		if err != nil || a.Zone() != "" {
			return "0 Invalid address"
		}
		l.toolsRun(vm, "", a)
	}
	answer := "1 "
	lc := l.context()
	lc.WithLock(vm, func() {
		total := len(key) + len(value)
		at := -1
		list := make([]types.BaseOptionValue, len(vm.Config.ExtraConfig), len(vm.Config.ExtraConfig)+1)
		copy(list, vm.Config.ExtraConfig)
		for i, o := range list {
			v := o.GetOptionValue()
			if v.Key == key {
				at = i
			} else if s, ok := v.Value.(string); ok && strings.HasPrefix(v.Key, "guestinfo.") {
				total += len(v.Key) + len(s)
			}
		}
		if total > maxGuestTotal {
			answer = "0 More than 1 MiB of guestinfo"
			return
		}
		ov := &types.OptionValue{Key: key, Value: value}
		op := types.PropertyChangeOpAssign
		if at < 0 {
			list, op = append(list, ov), types.PropertyChangeOpAdd
		} else {
			list[at] = ov
		}
		lc.Update(vm, []types.PropertyChange{
			{Name: `config.extraConfig["` + key + `"]`, Val: ov, Op: op},
			{Name: "config.extraConfig", Val: list},
		})
	})
	return answer
}

// toolsRun notes that VMware Tools run in the guest, and its address.
func (l *Lab) toolsRun(vm *simulator.VirtualMachine, version string, addr netip.Addr) {
	lc := l.context()
	lc.WithLock(vm, func() {
		g, sum := *vm.Guest, *vm.Summary.Guest
		g.ToolsRunningStatus = string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
		g.ToolsStatus = types.VirtualMachineToolsStatusToolsOk
		g.ToolsVersionStatus2 = string(types.VirtualMachineToolsVersionStatusGuestToolsUnmanaged)
		if version != "" {
			g.ToolsVersion = version
		}
		if addr.IsValid() {
			g.IpAddress = addr.String()
			g.Net = l.withAddress(g.Net, addr)
		}
		sum.ToolsRunningStatus, sum.ToolsStatus, sum.IpAddress = g.ToolsRunningStatus, g.ToolsStatus, g.IpAddress
		lc.Update(vm, []types.PropertyChange{
			{Name: "guest.net", Val: g.Net},
			{Name: "guest.ipAddress", Val: g.IpAddress},
			{Name: "guest.toolsVersion", Val: g.ToolsVersion},
			{Name: "guest.toolsVersionStatus2", Val: g.ToolsVersionStatus2},
			{Name: "guest.toolsStatus", Val: g.ToolsStatus},
			{Name: "guest.toolsRunningStatus", Val: g.ToolsRunningStatus},
			{Name: "summary.guest", Val: &sum},
		})
	})
}

// withAddress notes an address at the NIC whose network it is of, else at the
// first.
func (l *Lab) withAddress(list []types.GuestNicInfo, addr netip.Addr) []types.GuestNicInfo {
	out := append([]types.GuestNicInfo(nil), list...)
	at := 0
	for i, n := range out {
		if g := l.nets[n.Network]; g != nil && g.subnet.Contains(addr) {
			at = i
			break
		}
	}
	if at < len(out) {
		out[at].IpAddress, out[at].Connected = []string{addr.String()}, true
	}
	return out
}

// guestReset notes that a VM starts anew within its QEMU.
func (l *Lab) guestReset(m *machine, vm *simulator.VirtualMachine, byGuest bool) {
	lc := l.context()
	lc.WithLock(vm, func() {
		lc.Update(vm, []types.PropertyChange{
			{Name: "guest.ipAddress", Val: ""},
			{Name: "guest.toolsRunningStatus", Val: string(types.VirtualMachineToolsRunningStatusGuestToolsNotRunning)},
		})
	})
	if byGuest {
		l.post(&types.VmGuestRebootEvent{VmEvent: l.vmEvent(m.ref, l.look(vm))})
	}
}
