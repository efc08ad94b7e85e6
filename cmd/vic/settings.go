package main

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/vic/tether"
)

// settingsFlags are those of what bounds a container's processes.
func settingsFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "cap-add", Usage: "`CAPABILITY` to give beyond the default ones, or ALL"},
		&cli.StringSliceFlag{Name: "cap-drop", Usage: "`CAPABILITY` to take away, or ALL"},
		&cli.BoolFlag{Name: "privileged", Usage: "give all capabilities and all devices of the VM"},
		&cli.StringSliceFlag{Name: "security-opt", Usage: "no-new-privileges: programs give no further privileges"},
		&cli.StringSliceFlag{Name: "ulimit", Usage: "`NAME=SOFT[:HARD]`, such as nofile=1024:2048; -1 is unlimited"},
		&cli.StringSliceFlag{Name: "sysctl", Usage: "`NAME=VALUE` of a kernel parameter"},
		&cli.IntFlag{Name: "oom-score-adj", Usage: "`NUMBER` from -1000 to 1000: how soon to be killed for want of memory"},
		&cli.StringSliceFlag{Name: "group-add", Usage: "further `GROUP` by name or number"},
		&cli.StringFlag{Name: "domainname", Usage: "`DOMAIN` of the host inside"},
		&cli.StringSliceFlag{Name: "add-host", Usage: "`NAME:ADDRESS` for /etc/hosts"},
		&cli.StringSliceFlag{Name: "dns", Usage: "`ADDRESS` of a name server, instead of the network's"},
		&cli.StringSliceFlag{Name: "dns-search", Usage: "`DOMAIN` to search, instead of the network's; . for none"},
		&cli.StringSliceFlag{Name: "dns-option", Usage: "`OPTION` of /etc/resolv.conf"},
	}
}

func settings(c *cli.Context) (tether.Settings, error) {
	s := tether.Settings{
		CapAdd: c.StringSlice("cap-add"), CapDrop: c.StringSlice("cap-drop"), Privileged: c.Bool("privileged"),
		OOMScoreAdj: c.Int("oom-score-adj"), GroupAdd: c.StringSlice("group-add"), Domainname: c.String("domainname"),
		DNSSearch: c.StringSlice("dns-search"), DNSOptions: c.StringSlice("dns-option"),
	}
	for _, o := range c.StringSlice("security-opt") {
		switch o {
		case "no-new-privileges", "no-new-privileges=true", "no-new-privileges:true":
			s.NoNewPrivileges = true
		case "no-new-privileges=false", "no-new-privileges:false":
			s.NoNewPrivileges = false
		default:
			return s, usageError("--security-opt %q: only no-new-privileges: a container has a kernel of its own, and no profiles bound what it may ask of that", o)
		}
	}
	for _, u := range c.StringSlice("ulimit") {
		l, err := parseUlimit(u)
		if err != nil {
			return s, err
		}
		s.Ulimits = append(s.Ulimits, l)
	}
	for _, kv := range c.StringSlice("sysctl") {
		name, value, ok := strings.Cut(kv, "=")
		if !ok {
			return s, usageError("--sysctl %q: want NAME=VALUE", kv)
		}
		if s.Sysctls == nil {
			s.Sysctls = map[string]string{}
		}
		s.Sysctls[name] = value
	}
	for _, h := range c.StringSlice("add-host") {
		i := strings.IndexAny(h, ":=")
		if i < 0 {
			return s, usageError("--add-host %q: want NAME:ADDRESS", h)
		}
		a, err := netip.ParseAddr(strings.Trim(h[i+1:], "[]"))
		if err != nil {
			return s, usageError("--add-host %q: %v", h, err)
		}
		s.ExtraHosts = append(s.ExtraHosts, tether.ExtraHost{Name: h[:i], Address: a})
	}
	for _, d := range c.StringSlice("dns") {
		a, err := netip.ParseAddr(d)
		if err != nil {
			return s, usageError("--dns %q: %v", d, err)
		}
		s.DNS = append(s.DNS, a)
	}
	return s, nil
}

// parseUlimit reads NAME=SOFT[:HARD]; one number stands for both.
func parseUlimit(s string) (l tether.Ulimit, err error) {
	name, values, ok := strings.Cut(s, "=")
	soft, hard, two := strings.Cut(values, ":")
	if !two {
		hard = soft
	}
	l.Name = name
	var err2 error
	l.Soft, err = strconv.ParseInt(soft, 10, 64)
	l.Hard, err2 = strconv.ParseInt(hard, 10, 64)
	if !ok || err != nil || err2 != nil {
		return l, usageError("--ulimit %q: want NAME=SOFT[:HARD]", s)
	}
	return l, nil
}
