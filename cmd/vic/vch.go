package main

import (
	"context"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/bootiso"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/vch"
)

func createCommand() *cli.Command {
	return &cli.Command{
		Name: "create", Usage: "make a VCH", ArgsUsage: "NAME",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "compute-resource", Aliases: []string{"r"}, Usage: "cluster or host by `NAME`, where there are several"},
			&cli.StringFlag{Name: "image-store", Aliases: []string{"i"}, Usage: "`DATASTORE[/DIR]` of images and containers", Value: "datastore1"},
			&cli.StringSliceFlag{Name: "volume-store", Usage: "`DATASTORE[/DIR]:LABEL` or nfs://SERVER[:PORT]/PATH[?version=&mountport=&uid=&gid=]:LABEL of volumes; several may be given, and \"none\" for none (default: one labelled \"default\" beside the images)"},
			&cli.StringFlag{Name: "container-network", Usage: "port group of the containers by `NAME`", Value: "VM Network"},
			&cli.IntFlag{Name: "cpus", Usage: "CPUs of a container that does not say", Value: 1},
			&cli.Int64Flag{Name: "memory", Usage: "`MB` of a container that does not say", Value: 512},
			&cli.PathFlag{Name: "bootstrap-iso", EnvVars: []string{"VIC_BOOTSTRAP_ISO"}, Usage: "`FILE` that containers boot, see \"vic iso\"; without it, the default image is made"},
		},
		Action: func(c *cli.Context) error {
			if err := args(c, 1, 1); err != nil {
				return err
			}
			stores, err := volumeStores(c.StringSlice("volume-store"))
			if err != nil {
				return err
			}
			p := newProgress(os.Stderr)
			defer p.close()
			return withClient(c, func(ctx context.Context, cl *vic.Client) error {
				iso := c.Path("bootstrap-iso")
				if iso == "" {
					var err error
					if iso, err = bootiso.Default(ctx, nil); err != nil {
						return err
					}
				}
				h, err := engine.CreateVCH(ctx, cl, engine.VCHSpec{
					Spec: vch.Spec{
						Name: c.Args().First(), Compute: c.String("compute-resource"), ImageStore: c.String("image-store"),
						VolumeStores: stores,
						CPUs:         int32(c.Int("cpus")), MemoryMB: c.Int64("memory"),
					},
					Network: c.String("container-network"),
				}, vch.Options{BootISO: iso, Progress: p.event})
				if err != nil {
					return err
				}
				p.close()
				fmt.Println(h.Owner().ID)
				return nil
			})
		},
	}
}

func lsCommand() *cli.Command {
	return &cli.Command{
		Name: "ls", Usage: "list the VCHs",
		Action: func(c *cli.Context) error {
			return withClient(c, func(ctx context.Context, cl *vic.Client) error {
				all, err := vch.List(ctx, cl)
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
				fmt.Fprintln(w, "ID\tNAME\tSTATE\tDATASTORE")
				for _, s := range all {
					fmt.Fprintf(w, "%.12s\t%s\t%s\t%s\n", s.ID, s.Name, s.State, s.Datastore)
				}
				return w.Flush()
			})
		},
	}
}

func deleteCommand() *cli.Command {
	return &cli.Command{
		Name: "delete", Usage: "delete a VCH", ArgsUsage: "NAME",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "delete its containers first, running ones too"},
			&cli.BoolFlag{Name: "images", Usage: "delete the images of its store first; those that another VCH's containers use are refused"},
			&cli.BoolFlag{Name: "volumes", Usage: "delete the volumes of its stores first, with all that they hold; those that a VM has are refused"},
		},
		Action: func(c *cli.Context) error {
			if err := args(c, 1, 1); err != nil {
				return err
			}
			return withClient(c, func(ctx context.Context, cl *vic.Client) error {
				return engine.DeleteVCH(ctx, cl, c.Args().First(), engine.DeleteOptions{Force: c.Bool("force"), Images: c.Bool("images"), Volumes: c.Bool("volumes")})
			})
		},
	}
}
