package main

import (
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/bootiso"
)

func isoCommand() *cli.Command {
	return &cli.Command{
		Name: "iso", Usage: "build the ISO that container VMs boot",
		Flags: []cli.Flag{
			&cli.PathFlag{Name: "kernel-tree", Required: true, Usage: "`DIR` of an unpacked kernel package"},
			&cli.PathFlag{Name: "tether", Usage: "`FILE` of the built tether; without it, it is built by the go command in this module"},
			&cli.PathFlag{Name: "out", Value: "bootstrap.iso", Usage: "`FILE` to write"},
		},
		Action: func(c *cli.Context) error {
			if err := args(c, 0, 0); err != nil {
				return err
			}
			o := bootiso.Options{Out: c.Path("out")}
			var err error
			if o.Kernel, o.Modules, err = bootiso.KernelTree(c.Path("kernel-tree")); err != nil {
				return err
			}
			if o.Loader, err = bootiso.OpenLoader(); err != nil {
				return err
			}
			file := c.Path("tether")
			if file == "" {
				dir, err := os.MkdirTemp("", "vic-iso-*")
				if err != nil {
					return err
				}
				defer os.RemoveAll(dir)
				file = filepath.Join(dir, "tether")
				if err := bootiso.BuildTether(c.Context, "", file); err != nil {
					return err
				}
			}
			if o.Tether, err = os.ReadFile(file); err != nil {
				return err
			}
			return bootiso.Build(c.Context, o)
		},
	}
}
