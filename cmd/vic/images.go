package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

func pullCommand() *cli.Command {
	return &cli.Command{
		Name: "pull", Usage: "bring an image into the VCH's store", ArgsUsage: "IMAGE",
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "verify", Usage: "look at the disks of layers that are there, and make anew what is gone of them"},
		}, registryFlags()...),
		Action: func(c *cli.Context) error {
			if err := args(c, 1, 1); err != nil {
				return err
			}
			p := newProgress(os.Stderr)
			defer p.close()
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				img, err := e.PullWith(ctx, c.Args().First(), &imagestore.PullOptions{Progress: p.event, Verify: c.Bool("verify")})
				if err != nil {
					return err
				}
				p.close()
				fmt.Printf("%s %s\n", img.Name(), img.Digest())
				return nil
			})
		},
	}
}

func imagesCommand() *cli.Command {
	return &cli.Command{
		Name: "images", Usage: "list the images of the VCH's store",
		Action: func(c *cli.Context) error {
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				all, err := e.Images().List(ctx)
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
				fmt.Fprintln(w, "IMAGE\tDIGEST\tLAYERS\tSIZE")
				for _, i := range all {
					fmt.Fprintf(w, "%s\t%.19s\t%d\t%s\n", i.Name(), i.Digest(), len(i.Layers()), bytesText(i.Size()))
				}
				return w.Flush()
			})
		},
	}
}

func rmiCommand() *cli.Command {
	return &cli.Command{
		Name: "rmi", Usage: "delete images from the VCH's store, by name, digest or the beginning of a digest", ArgsUsage: "IMAGE…",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "all names of a digest, and those of an image that a container was made from: it then goes with prune"}},
		Action: func(c *cli.Context) error {
			if err := args(c, 1, -1); err != nil {
				return err
			}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				var errs []error
				for _, name := range c.Args().Slice() {
					_, err := e.FindImage(ctx, name)
					if err == nil {
						var d *imagestore.Deleted
						d, err = e.DeleteImage(ctx, name, &imagestore.DeleteOptions{Force: c.Bool("force")})
						printDeleted(d)
					}
					errs = append(errs, err)
				}
				return errors.Join(errs...)
			})
		},
	}
}

func gcCommand() *cli.Command {
	return &cli.Command{
		Name: "gc", Usage: "delete layers that no image and no container needs, and what killed processes left in the VCH's stores",
		Action: func(c *cli.Context) error {
			if err := args(c, 0, 0); err != nil {
				return err
			}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				return printReclaimed(e.GC(ctx))
			})
		},
	}
}

func pruneCommand() *cli.Command {
	return &cli.Command{
		Name: "prune", Usage: "delete images that have no name",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "all images that no container was made from"},
			&cli.StringSliceFlag{Name: "filter", Usage: "`FILTER`: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]"},
		},
		Action: func(c *cli.Context) error {
			if err := args(c, 0, 0); err != nil {
				return err
			}
			o, err := imagestore.ParsePruneFilters(c.StringSlice("filter"), time.Now())
			if err != nil {
				return usageError("--filter: %v", err)
			}
			o.All = o.All || c.Bool("all")
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				return printReclaimed(e.Images().Prune(ctx, o))
			})
		},
	}
}

func dfCommand() *cli.Command {
	return &cli.Command{
		Name: "df", Usage: "show the room that the images of the VCH's store take",
		Action: func(c *cli.Context) error {
			if err := args(c, 0, 0); err != nil {
				return err
			}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				u, err := e.Images().Usage(ctx)
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
				fmt.Fprintln(w, "IMAGE\tDIGEST\tSIZE\tSHARED\tUNIQUE\tCONTAINERS")
				for _, i := range u.Images {
					name := "<none>"
					if len(i.Names) > 0 {
						name = strings.Join(i.Names, ",")
					}
					fmt.Fprintf(w, "%s\t%.19s\t%s\t%s\t%s\t%d\n", name, i.Digest, bytesText(i.Bytes()), bytesText(i.Shared), bytesText(i.Unique), len(i.Containers))
				}
				if err := w.Flush(); err != nil {
					return err
				}
				fmt.Printf("%d layers, %s, of which %s reclaimable, %s of that of no image\n", u.Layers, bytesText(u.Bytes), bytesText(u.Reclaimable), bytesText(u.Unreferenced))
				return nil
			})
		},
	}
}

// printDeleted says what is gone; nil is nothing.
func printDeleted(d *imagestore.Deleted) {
	if d == nil {
		return
	}
	for _, n := range d.Untagged {
		fmt.Println("untagged:", n)
	}
	for _, i := range d.Images {
		fmt.Println("deleted:", i)
	}
}

func printReclaimed(d *imagestore.Deleted, err error) error {
	printDeleted(d)
	if d != nil {
		fmt.Printf("deleted %d layers, %s\n", len(d.Layers), bytesText(d.Bytes))
	}
	return err
}

func bytesText(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.2f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f kB", float64(n)/1e3)
}
