package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/vic/lab"
)

func labCommand() *cli.Command {
	return &cli.Command{
		Name:  "lab",
		Usage: "a vSphere for this machine: vCenter's API, real disks, QEMU for the VMs",
		Subcommands: []*cli.Command{
			{Name: "up", Usage: "start it in the background", Flags: labFlags(), Action: labUp},
			{Name: "status", Usage: "tell whether it is up", Action: labStatus},
			{Name: "env", Usage: "print what govc needs to speak to it, for a shell", Action: labEnv},
			{Name: "down", Usage: "end it and its VMs", Action: labDown},
			{Name: "serve", Hidden: true, Flags: labFlags(), Action: labServe},
		},
	}
}

func labFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "datastore", Usage: "`NAME` of a datastore", Value: cli.NewStringSlice("datastore1")},
		&cli.StringSliceFlag{Name: "native-datastore", Usage: "`NAME` of a datastore that takes no uploaded delta disks, as VMFS 6 and vSAN do not"},
		&cli.StringSliceFlag{Name: "network", Usage: "`NAME` of a port group", Value: cli.NewStringSlice("VM Network")},
		&cli.IntFlag{Name: "hosts", Usage: "`NUMBER` of hosts in the cluster", Value: 1},
		&cli.BoolFlag{Name: "boot-cd", Usage: "boot VMs from their CD by BIOS, as vSphere does, instead of directly"},
	}
}

func labUp(c *cli.Context) error {
	if err := args(c, 0, 0); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	argv := []string{self, "--lab", c.Path("lab"), "lab", "serve", "--hosts", fmt.Sprint(c.Int("hosts"))}
	for _, d := range c.StringSlice("datastore") {
		argv = append(argv, "--datastore", d)
	}
	for _, d := range c.StringSlice("native-datastore") {
		argv = append(argv, "--native-datastore", d)
	}
	for _, n := range c.StringSlice("network") {
		argv = append(argv, "--network", n)
	}
	if c.Bool("boot-cd") {
		argv = append(argv, "--boot-cd")
	}
	st, err := lab.Up(c.Context, lab.UpOptions{Dir: c.Path("lab"), Argv: argv})
	if err != nil {
		return err
	}
	fmt.Printf("the lab is up: %s (pid %d, directory %s)\n", st.URL, st.PID, st.Dir)
	return nil
}

func labServe(c *cli.Context) error {
	o := lab.Options{
		Dir: c.Path("lab"), Datastores: c.StringSlice("datastore"), Hosts: c.Int("hosts"), BootCD: c.Bool("boot-cd"), Logger: logger(c),
	}
	for _, d := range c.StringSlice("native-datastore") {
		if !slices.Contains(o.Datastores, d) {
			o.Datastores = append(o.Datastores, d)
		}
		o.NativeDatastores = append(o.NativeDatastores, d)
	}
	for _, n := range c.StringSlice("network") {
		o.Networks = append(o.Networks, lab.Network{Name: n})
	}
	return lab.Serve(c.Context, o)
}

func labStatus(c *cli.Context) error {
	st, err := lab.Status(c.Path("lab"))
	if err != nil {
		return err
	}
	fmt.Printf("up: %s (pid %d, user %s, directory %s)\n", st.URL, st.PID, st.User, st.Dir)
	return nil
}

func labEnv(c *cli.Context) error {
	st, err := lab.Status(c.Path("lab"))
	if err != nil {
		return err
	}
	for _, kv := range [][2]string{
		{"GOVC_URL", st.URL}, {"GOVC_USERNAME", st.User}, {"GOVC_PASSWORD", st.Password}, {"GOVC_TLS_CA_CERTS", filepath.Join(st.Dir, "ca.pem")},
	} {
		fmt.Printf("export %s=%s\n", kv[0], quote(kv[1]))
	}
	return nil
}

// quote quotes for a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func labDown(c *cli.Context) error {
	if err := lab.Down(c.Context, c.Path("lab")); err != nil {
		return err
	}
	fmt.Println("the lab is down")
	return nil
}
