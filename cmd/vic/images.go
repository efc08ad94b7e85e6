package main

import (
	"context"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/vic/engine"
)

func pullCommand() *cli.Command {
	return &cli.Command{
		Name: "pull", Usage: "bring an image into the VCH's store", ArgsUsage: "IMAGE", Flags: registryFlags(),
		Action: func(c *cli.Context) error {
			if err := args(c, 1, 1); err != nil {
				return err
			}
			p := newProgress(os.Stderr)
			defer p.close()
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				img, err := e.Pull(ctx, c.Args().First(), p.event)
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
		Name: "rmi", Usage: "delete images from the VCH's store", ArgsUsage: "IMAGE…",
		Action: func(c *cli.Context) error {
			if err := args(c, 1, -1); err != nil {
				return err
			}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				return forEach(c, func(name string) error {
					if _, err := e.Image(ctx, name); err != nil {
						return err
					}
					return e.DeleteImage(ctx, name)
				})
			})
		},
	}
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
