package containervm

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

// Where a guest says that it is reached decides nothing alone.
func TestReachBoundsWhatIsDialled(t *testing.T) {
	own := func() ([]net.Addr, error) {
		return []net.Addr{&net.IPNet{IP: net.IPv4(10, 9, 9, 9), Mask: net.CIDRMask(24, 32)}, &net.IPNet{IP: net.ParseIP("2001:db8::9"), Mask: net.CIDRMask(64, 128)}}, nil
	}
	fixed := Reach([]vic.NIC{{Address: netip.MustParsePrefix("192.0.2.5/24")}}, false)
	lease := Reach([]vic.NIC{{}}, false)
	both := Reach([]vic.NIC{{Address: netip.MustParsePrefix("192.0.2.5/24")}, {}}, false)
	lan := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::/64")}
	for _, c := range []struct {
		reach, address string
		networks       []netip.Prefix
		why            string
	}{
		{fixed, "192.0.2.5:2377", nil, ""},
		{fixed, "[::ffff:192.0.2.5]:2377", nil, ""},
		{fixed, "192.0.2.6:2377", nil, "none of the VM's"},
		{fixed, "10.1.2.3:2377", lan, "none of the VM's"},
		{fixed, "192.0.2.5:22", nil, "port"},
		{"", "192.0.2.5:2377", nil, "none of the VM's"},
		{lease, "10.1.2.3:2377", nil, ""},
		{lease, "10.1.2.3:443", nil, "port"},
		{lease, "vcenter.example.com:2377", nil, "no address"},
		{lease, "10.1.2.3", nil, "no address"},
		{lease, "", nil, "no address"},
		{lease, "127.0.0.1:2377", nil, "no guest"},
		{lease, "[::1]:2377", nil, "no guest"},
		{lease, "[::ffff:127.0.0.1]:2377", nil, "no guest"},
		{lease, "0.0.0.0:2377", nil, "no guest"},
		{lease, "0.1.2.3:2377", nil, "no guest"},
		{lease, "[::]:2377", nil, "no guest"},
		{lease, "169.254.169.254:2377", nil, "no guest"},
		{lease, "[fe80::1]:2377", nil, "no guest"},
		{lease, "[fe80::1%eth0]:2377", nil, "zone"},
		{lease, "[2001:db8::1%eth0]:2377", nil, "zone"},
		{lease, "224.0.0.1:2377", nil, "no guest"},
		{lease, "255.255.255.255:2377", nil, "no guest"},
		{lease, "10.9.9.9:2377", nil, "machine's own"},
		{lease, "[::ffff:10.9.9.9]:2377", nil, "machine's own"},
		{lease, "[2001:db8::9]:2377", nil, "machine's own"},
		{lease, "10.1.2.3:2377", lan, ""},
		{lease, "[fd00::7]:2377", lan, ""},
		{lease, "10.2.2.3:2377", lan, "networks"},
		{lease, "127.0.0.1:2377", []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}, "no guest"},
		{both, "192.0.2.5:2377", lan, ""},
		{both, "10.1.2.3:2377", lan, ""},
		{both, "192.0.2.6:2377", lan, "networks"},
	} {
		err := parseReach(c.reach).check(c.address, c.networks, own)
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%q dials %q: %v, want %q", c.reach, c.address, err, c.why)
		}
	}
}

// A boot has one host key.
func TestHostKeySwap(t *testing.T) {
	var w view
	for _, c := range []struct {
		boot, key string
		ok        bool
	}{{"a", "k1", true}, {"a", "k1", true}, {"a", "k2", false}, {"a", "", true}, {"a", "k2", false}, {"b", "k2", true}, {"b", "k1", false}} {
		err := w.pin(tether.Status{Boot: c.boot, HostKey: c.key})
		if (err == nil) != c.ok || err != nil && !(errors.Is(err, tether.ErrHostKey) && errors.Is(err, vic.ErrDenied)) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// What a guest writes under its keys changes nothing of what vSphere says.
func TestForgedGuestinfo(t *testing.T) {
	doc := `{"version":1,"process":{"args":["sh"]},"stop":{"grace":1000}}`
	read := func(config, status string, power types.VirtualMachinePowerState) Info {
		m := mo.VirtualMachine{Config: &types.VirtualMachineConfigInfo{}, Runtime: types.VirtualMachineRuntimeInfo{PowerState: power}}
		for k, v := range map[string]string{tether.ConfigKey: config, keyConfigSum: configSum(doc), tether.StatusKey: status, keyID: "1", KeyReach: "lease"} {
			m.Config.ExtraConfig = append(m.Config.ExtraConfig, &types.OptionValue{Key: k, Value: v})
		}
		info, _ := describe(&m)
		return info
	}
	const on, off = types.VirtualMachinePowerStatePoweredOn, types.VirtualMachinePowerStatePoweredOff
	if i := read(doc, noStatus, on); len(i.Args) != 1 || i.config != doc {
		t.Errorf("the true configuration: %+v", i)
	}
	if i := read(`{"version":1,"process":{"args":["rm"]},"stop":{"grace":9000000000000000000}}`, noStatus, on); i.Args != nil || i.config != "" {
		t.Errorf("a forged configuration counts: %+v", i)
	}
	for name, st := range map[string]string{
		"code":      `{"version":1,"boot":"b","state":"exited","exitCode":256}`,
		"addresses": `{"version":1,"boot":"b","state":"exited","addresses":["` + strings.Repeat(`x","`, 17) + `"]}`,
		"deep":      strings.Repeat(`{"timeline":[`, 4000),
		"size":      `{"version":1,"boot":"b","state":"exited","error":"` + strings.Repeat("x", 64<<10) + `"}`,
		"year":      `{"version":1,"boot":"b","state":"exited","finished":"99999-01-01T00:00:00Z"}`,
		"host key":  `{"version":1,"boot":"b","state":"exited","hostKey":"` + strings.Repeat("k", 2000) + `"}`,
		"bytes":     "\xff\xfe\x00",
	} {
		if i := read(doc, st, off); i.Known || i.status.Version != 0 {
			t.Errorf("%s: a status that no tether writes counts: %+v", name, i)
		}
	}
	// A running VM has not ended, whatever it says.
	if i := read(doc, `{"version":1,"boot":"b","state":"exited","exitCode":0,"error":"\u001b[2J"}`, on); i.State != Running || i.Known || i.Error != "" {
		t.Errorf("%+v", i)
	}
	if i := read(doc, `{"version":1,"boot":"b","state":"failed","exitCode":125,"error":"\u001b[2J\u202egone"}`, off); strings.ContainsAny(i.Error, "\x1b\u202e") || !i.Known {
		t.Errorf("%+v", i)
	}
}
