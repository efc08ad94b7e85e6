package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
)

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name: "inspect", Usage: "print what vSphere knows of containers, as JSON; times of stages are nanoseconds since the kernel's start", ArgsUsage: "CONTAINER…",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "timeline", Usage: "only the stages of the last start, as a table"},
		},
		Action: func(c *cli.Context) error {
			if err := args(c, 1, -1); err != nil {
				return err
			}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				var all []containervm.Info
				for _, name := range c.Args().Slice() {
					_, info, err := e.Find(ctx, name)
					if err != nil {
						return err
					}
					all = append(all, info)
				}
				if c.Bool("timeline") {
					return printTimelines(all)
				}
				out := json.NewEncoder(os.Stdout)
				out.SetIndent("", "  ")
				return out.Encode(all)
			})
		},
	}
}

// printTimelines prints the stages of each container's start.
func printTimelines(all []containervm.Info) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	for _, i := range all {
		if len(all) > 1 {
			fmt.Fprintf(w, "%s\n", i.Name)
		}
		fmt.Fprintf(w, "ms\tstep ms\t  stage\n")
		last := 0.0
		for _, s := range i.Timeline {
			at := float64(s.At.Microseconds()) / 1000
			fmt.Fprintf(w, "%.1f\t%.1f\t  %s\n", at, at-last, s.Name)
			last = at
		}
	}
	return w.Flush()
}
