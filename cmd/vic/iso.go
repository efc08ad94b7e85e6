package main

import (
	"os"

	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/bootiso"
)

func isoCommand() *cli.Command {
	return &cli.Command{
		Name: "iso", Usage: "build the ISO that container VMs boot",
		Flags: []cli.Flag{
			&cli.PathFlag{Name: "kernel-tree", Usage: "`DIR` of an unpacked kernel package; without it, vic's own kernel is taken"},
			&cli.PathFlag{Name: "tether", Usage: "`FILE` of the built tether; without it, vic's own is taken, or built by the go command"},
			&cli.PathFlag{Name: "out", Required: true, Usage: "`FILE` to write"},
		},
		Action: func(c *cli.Context) error {
			if err := args(c, 0, 0); err != nil {
				return err
			}
			o := bootiso.Options{Out: c.Path("out")}
			var err error
			if tree := c.Path("kernel-tree"); tree != "" {
				if o.Kernel, o.Modules, err = bootiso.KernelTree(tree); err != nil {
					return err
				}
			}
			if file := c.Path("tether"); file != "" {
				if o.Tether, err = os.ReadFile(file); err != nil {
					return err
				}
			}
			return bootiso.Build(c.Context, o)
		},
	}
}
