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

	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
)

// forEach calls f with each argument and prints those it succeeded for.
func forEach(c *cli.Context, f func(name string) error) error {
	var errs []error
	for _, name := range c.Args().Slice() {
		if err := f(name); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Println(name)
	}
	return errors.Join(errs...)
}

func psCommand() *cli.Command {
	return &cli.Command{
		Name: "ps", Usage: "list containers",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "those that do not run, too"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "only IDs"},
		},
		Action: func(c *cli.Context) error {
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				_, infos, err := e.List(ctx)
				if err != nil {
					return err
				}
				now := time.Now()
				w := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
				if !c.Bool("quiet") {
					fmt.Fprintln(w, "CONTAINER ID\tIMAGE\tCOMMAND\tCREATED\tSTATUS\tIP\tNAME")
				}
				for _, i := range infos {
					if !i.On() && !c.Bool("all") {
						continue
					}
					if c.Bool("quiet") {
						fmt.Fprintln(w, i.ID)
						continue
					}
					fmt.Fprintf(w, "%.12s\t%s\t%.30q\t%s\t%s\t%s\t%s\n", i.ID, i.Image, strings.Join(i.Args, " "), ago(i.Created), status(i, now), strings.Join(i.IPs, ","), i.Name)
				}
				return w.Flush()
			})
		},
	}
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "?"
	}
	d := time.Since(t).Round(time.Second)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return fmt.Sprintf("%dd ago", int(d.Hours()/24))
}

func logsCommand() *cli.Command {
	return &cli.Command{
		Name: "logs", Usage: "print what a container wrote", ArgsUsage: "CONTAINER",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on until it ends"},
			&cli.IntFlag{Name: "tail", Aliases: []string{"n"}, Usage: "only the last `LINES`", Value: -1},
			&cli.StringFlag{Name: "since", Usage: "only what was written at `TIME` or later, such as 2026-01-02T15:04:05Z or 10m (ago)"},
			&cli.StringFlag{Name: "until", Usage: "only what was written at `TIME` or before"},
			&cli.BoolFlag{Name: "timestamps", Aliases: []string{"t"}, Usage: "begin each line with its time"},
		},
		Action: func(c *cli.Context) error {
			if err := args(c, 1, 1); err != nil {
				return err
			}
			o := tether.LogOptions{Follow: c.Bool("follow")}
			if err := readTimes(c, &o.Since, &o.Until); err != nil {
				return err
			}
			return withFirst(c, func(ctx context.Context, e *engine.Engine, vm *containervm.VM) error {
				if n := c.Int("tail"); n >= 0 {
					if n == 0 && !o.Follow {
						return nil
					}
					o.Tail = n
				}
				return vm.Logs(ctx, o, func(l tether.LogEntry) error {
					w := os.Stdout
					if l.Stream == tether.Stderr {
						w = os.Stderr
					}
					if c.Bool("timestamps") {
						if _, err := fmt.Fprint(w, l.Time.Format(time.RFC3339Nano), " "); err != nil {
							return err
						}
					}
					_, err := w.Write(l.Data)
					return err
				})
			})
		},
	}
}

func startCommand() *cli.Command {
	return &cli.Command{
		Name: "start", Usage: "start containers that are stopped", ArgsUsage: "CONTAINER…", Flags: registryFlags(),
		Action: func(c *cli.Context) error {
			p := newProgress(os.Stderr)
			defer p.close()
			return withEachOf(c, func(ctx context.Context, e *engine.Engine, vm *containervm.VM) error {
				return e.Start(ctx, vm, p.event)
			})
		},
	}
}

func renameCommand() *cli.Command {
	return &cli.Command{
		Name: "rename", Usage: "give a container another name", ArgsUsage: "CONTAINER NAME",
		Action: func(c *cli.Context) error {
			if err := args(c, 2, 2); err != nil {
				return err
			}
			return withFirst(c, func(ctx context.Context, e *engine.Engine, vm *containervm.VM) error {
				return vm.Rename(ctx, c.Args().Get(1))
			})
		},
	}
}

func updateCommand() *cli.Command {
	return &cli.Command{
		Name: "update", Usage: "change the hardware of stopped containers", ArgsUsage: "CONTAINER…", Flags: hardwareFlags(),
		Action: func(c *cli.Context) error {
			var h containervm.Hardware
			var err error
			if h.CPUs, h.MemoryMB, err = hardware(c); err != nil {
				return err
			}
			return withEach(c, func(ctx context.Context, vm *containervm.VM) error { return vm.Update(ctx, h) })
		},
	}
}

func stopCommand() *cli.Command {
	return &cli.Command{
		Name: "stop", Usage: "end containers: their stop signal, then SIGKILL", ArgsUsage: "CONTAINER…",
		Flags: stopFlags(),
		Action: func(c *cli.Context) error {
			return withEach(c, func(ctx context.Context, vm *containervm.VM) error { return vm.Stop(ctx, stopOptions(c)) })
		},
	}
}

func rmCommand() *cli.Command {
	return &cli.Command{
		Name: "rm", Usage: "delete containers", ArgsUsage: "CONTAINER…",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "running ones, too"},
			&cli.BoolFlag{Name: "volumes", Aliases: []string{"v"}, Usage: "delete their anonymous volumes, too"},
		},
		Action: func(c *cli.Context) error {
			return withEachOf(c, func(ctx context.Context, e *engine.Engine, vm *containervm.VM) error {
				return e.Remove(ctx, vm, &engine.RemoveOptions{Force: c.Bool("force"), Volumes: c.Bool("volumes")})
			})
		},
	}
}
