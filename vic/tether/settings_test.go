package tether_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vicsdk/vic-go/vic/tether"
)

// The defaults are the mask that a container of Docker's shows in /proc/self/status.
const defaultCaps = 0xa80425fb

func TestCapabilities(t *testing.T) {
	const all = 1<<41 - 1
	for _, tt := range []struct {
		name string
		s    tether.Settings
		want uint64
	}{
		{"default", tether.Settings{}, defaultCaps},
		{"add, short and lower case", tether.Settings{CapAdd: []string{"net_admin", "CAP_SYS_TIME"}}, defaultCaps | 1<<12 | 1<<25},
		{"drop", tether.Settings{CapDrop: []string{"CHOWN"}}, defaultCaps &^ 1},
		{"added wins over dropped", tether.Settings{CapAdd: []string{"CHOWN"}, CapDrop: []string{"chown"}}, defaultCaps},
		{"all added", tether.Settings{CapAdd: []string{"ALL"}}, all},
		{"all but", tether.Settings{CapAdd: []string{"all"}, CapDrop: []string{"SYS_ADMIN"}}, all &^ (1 << 21)},
		{"none", tether.Settings{CapDrop: []string{"ALL"}}, 0},
		{"only", tether.Settings{CapDrop: []string{"ALL"}, CapAdd: []string{"KILL"}}, 1 << 5},
		{"privileged", tether.Settings{Privileged: true, CapDrop: []string{"ALL"}}, all},
	} {
		got, err := tt.s.Capabilities()
		if err != nil || got != tt.want {
			t.Errorf("%s: %#x, %v; want %#x", tt.name, got, err, tt.want)
		}
	}
}

func TestSettingsAreChecked(t *testing.T) {
	config := func(s tether.Settings) tether.Config {
		return tether.Config{Version: 1, ID: testID, Process: tether.Process{Args: []string{"true"}}, Settings: s}
	}
	for want, s := range map[string]tether.Settings{
		`settings.capAdd[1]: no capability is named "FLY"`:           {CapAdd: []string{"KILL", "FLY"}},
		`settings.capDrop[0]: no capability`:                         {CapDrop: []string{""}},
		`settings.ulimits[0].name: no limit is named "files"`:        {Ulimits: []tether.Ulimit{{Name: "files"}}},
		`settings.ulimits[0].nofile: the soft limit 5 is above`:      {Ulimits: []tether.Ulimit{{Name: "nofile", Soft: 5, Hard: 4}}},
		`settings.ulimits[0].nofile: the soft limit -1 is above`:     {Ulimits: []tether.Ulimit{{Name: "nofile", Soft: -1, Hard: 4}}},
		`settings.ulimits[0].core: -2:0: negative`:                   {Ulimits: []tether.Ulimit{{Name: "core", Soft: -2}}},
		`settings.ulimits[1].name: core is there twice`:              {Ulimits: []tether.Ulimit{{Name: "core"}, {Name: "core"}}},
		`settings.oomScoreAdj: 1001 is not between`:                  {OOMScoreAdj: 1001},
		`settings.groupAdd[0]: "" is no group`:                       {GroupAdd: []string{""}},
		`settings.sysctls: "net.." is no name`:                       {Sysctls: map[string]string{"net..": "1"}},
		`settings.sysctls: "kernel/../../etc/passwd" is no name`:     {Sysctls: map[string]string{"kernel/../../etc/passwd": "1"}},
		`settings.sysctls: "kernel" is no name`:                      {Sysctls: map[string]string{"kernel": "1"}},
		`settings.sysctls: kernel.sem: the value is`:                 {Sysctls: map[string]string{"kernel.sem": "1\n2"}},
		`settings.domainname: "a b" is no domain name`:               {Domainname: "a b"},
		`settings.extraHosts[0].name: "x\ny" is no host name`:        {ExtraHosts: []tether.ExtraHost{{Name: "x\ny", Address: netip.MustParseAddr("::1")}}},
		`settings.extraHosts[0].address: missing`:                    {ExtraHosts: []tether.ExtraHost{{Name: "x"}}},
		`settings.dnsSearch[0]: "a\nnameserver b" is no domain name`: {DNSSearch: []string{"a\nnameserver b"}},
		`settings.dnsOptions[0]: "ndots:1 attempts:2" is no option`:  {DNSOptions: []string{"ndots:1 attempts:2"}},
		`settings.dns[0]: missing`:                                   {DNS: make([]netip.Addr, 1)},
	} {
		c := config(s)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%+v: %v; want %s", s, err, want)
		}
	}
	c := config(tether.Settings{
		CapAdd: []string{"ALL"}, Ulimits: []tether.Ulimit{{Name: "core", Soft: 0, Hard: -1}}, OOMScoreAdj: -1000,
		GroupAdd: []string{"1", "x"}, Sysctls: map[string]string{"net.ipv4.conf.eth0.forwarding": "1", "kernel.sem": "1 2 3 4"},
		Domainname: "example.org", ExtraHosts: []tether.ExtraHost{{Name: "db", Address: netip.MustParseAddr("192.0.2.1")}},
		DNS: []netip.Addr{netip.MustParseAddr("192.0.2.53")}, DNSSearch: []string{"."}, DNSOptions: []string{"ndots:1"},
	})
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var back tether.Config
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(c, back, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
	// What is not set is not told to the guest: a configuration is small.
	c = config(tether.Settings{})
	if b, _ := json.Marshal(c); strings.Contains(string(b), "settings") {
		t.Errorf("%s", b)
	}
}
