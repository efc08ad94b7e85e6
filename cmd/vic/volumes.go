package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/volumestore"
)

func volumeCommand() *cli.Command {
	return &cli.Command{
		Name: "volume", Usage: "make, list, attach, grow and delete volumes",
		Subcommands: []*cli.Command{
			volumeCreateCommand(), volumeLsCommand(), volumeInspectCommand(), volumeAttachCommand(), volumeDetachCommand(),
			volumeGrowCommand(), volumeRmCommand(), volumePruneCommand(),
		},
	}
}

func volumeCreateCommand() *cli.Command {
	return &cli.Command{
		Name: "create", Usage: "make a volume, or find it as it is asked for", ArgsUsage: "[NAME]",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "opt", Aliases: []string{"o"}, Usage: "`KEY=VALUE`: Capacity or size, such as 10g, and VolumeStore, a label"},
			&cli.StringSliceFlag{Name: "label", Usage: "`KEY[=VALUE]` of the volume"},
		},
		Action: func(c *cli.Context) error {
			if err := args(c, 0, 1); err != nil {
				return err
			}
			s := volumestore.Spec{Name: c.Args().First(), Options: pairs(c.StringSlice("opt")), Labels: pairs(c.StringSlice("label"))}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				v, err := e.Volumes().Create(ctx, s)
				if err != nil {
					return err
				}
				fmt.Println(v.Name())
				return nil
			})
		},
	}
}

// pairs reads KEY=VALUE; nil where there are none.
func pairs(all []string) map[string]string {
	var out map[string]string
	for _, kv := range all {
		if out == nil {
			out = map[string]string{}
		}
		k, v, _ := strings.Cut(kv, "=")
		out[k] = v
	}
	return out
}

func volumeLsCommand() *cli.Command {
	return &cli.Command{
		Name: "ls", Usage: "list the volumes",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "filter", Aliases: []string{"f"}, Usage: "`FILTER`: name=PART, label=KEY[=VALUE], label!=KEY[=VALUE], dangling=true or false"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print the names only"},
		},
		Action: func(c *cli.Context) error {
			if err := args(c, 0, 0); err != nil {
				return err
			}
			o, err := volumestore.ParseListFilters(c.StringSlice("filter"))
			if err != nil {
				return usageError("--filter: %v", err)
			}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				all, err := e.Volumes().List(ctx, o)
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
				if !c.Bool("quiet") {
					fmt.Fprintln(w, "NAME\tSTORE\tCAPACITY\tCREATED")
				}
				for _, v := range all {
					i := v.Info()
					if c.Bool("quiet") {
						fmt.Fprintln(w, i.Name)
						continue
					}
					size := fmt.Sprintf("%d MiB", i.Bytes>>20)
					if i.Directory != "" {
						size = "-"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", i.Name, i.Store, size, i.Created.Local().Format("2006-01-02 15:04:05"))
				}
				return w.Flush()
			})
		},
	}
}

func volumeInspectCommand() *cli.Command {
	return &cli.Command{
		Name: "inspect", Usage: "tell what is known of volumes, as JSON", ArgsUsage: "NAME…",
		Action: func(c *cli.Context) error {
			if err := args(c, 1, -1); err != nil {
				return err
			}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				type inspected struct {
					volumestore.Info
					Disk  string
					Users []volumestore.User
				}
				out := []inspected{}
				err := forEach(c, func(name string) error {
					v, err := e.Volumes().Open(ctx, name)
					if err != nil {
						return err
					}
					users, err := v.Users(ctx)
					if err == nil {
						out = append(out, inspected{v.Info(), v.Disk().Path, users})
					}
					return err
				})
				enc := json.NewEncoder(os.Stdout)
				enc.SetIndent("", "  ")
				if e := enc.Encode(out); e != nil {
					return e
				}
				return err
			})
		},
	}
}

func volumeAttachCommand() *cli.Command {
	return &cli.Command{
		Name: "attach", Usage: "give a container a volume, also while it runs", ArgsUsage: "CONTAINER [NAME:]TARGET[:ro]",
		Action: func(c *cli.Context) error {
			if err := args(c, 2, 2); err != nil {
				return err
			}
			m, err := engine.ParseVolume(c.Args().Get(1))
			if err != nil {
				return usageError("attach: %v", err)
			}
			return withFirst(c, func(ctx context.Context, e *engine.Engine, vm *containervm.VM) error {
				return e.AttachVolume(ctx, vm, m)
			})
		},
	}
}

func volumeDetachCommand() *cli.Command {
	return &cli.Command{
		Name: "detach", Usage: "take a mount away from a container, also while it runs", ArgsUsage: "CONTAINER TARGET",
		Action: func(c *cli.Context) error {
			if err := args(c, 2, 2); err != nil {
				return err
			}
			return withFirst(c, func(ctx context.Context, e *engine.Engine, vm *containervm.VM) error {
				return e.DetachVolume(ctx, vm, c.Args().Get(1))
			})
		},
	}
}

func volumeGrowCommand() *cli.Command {
	return &cli.Command{
		Name: "grow", Usage: "make a volume larger, also while a container uses it", ArgsUsage: "NAME SIZE",
		Action: func(c *cli.Context) error {
			if err := args(c, 2, 2); err != nil {
				return err
			}
			n, err := volumestore.ParseBytes(c.Args().Get(1))
			if err != nil {
				return usageError("SIZE: %v", err)
			}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				_, err := e.GrowVolume(ctx, c.Args().First(), n)
				return err
			})
		},
	}
}

func volumeRmCommand() *cli.Command {
	return &cli.Command{
		Name: "rm", Usage: "delete volumes that no container has; files on NFS servers stay there", ArgsUsage: "NAME…",
		Action: func(c *cli.Context) error {
			if err := args(c, 1, -1); err != nil {
				return err
			}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				return forEach(c, func(name string) error { return e.Volumes().Delete(ctx, name) })
			})
		},
	}
}

func volumePruneCommand() *cli.Command {
	return &cli.Command{
		Name: "prune", Usage: "delete anonymous volumes that no container has",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "volumes with a name, too"},
			&cli.StringSliceFlag{Name: "filter", Usage: "`FILTER`: label=KEY[=VALUE], label!=KEY[=VALUE], all=true"},
		},
		Action: func(c *cli.Context) error {
			if err := args(c, 0, 0); err != nil {
				return err
			}
			o, err := volumestore.ParsePruneFilters(c.StringSlice("filter"))
			if err != nil {
				return usageError("--filter: %v", err)
			}
			o.All = o.All || c.Bool("all")
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				gone, err := e.Volumes().Prune(ctx, o)
				for _, n := range gone {
					fmt.Println("deleted:", n)
				}
				return err
			})
		},
	}
}

// volumeStores reads PLACE:LABEL; the label follows the last colon.
func volumeStores(flags []string) (map[string]string, error) {
	if len(flags) == 0 {
		return nil, nil
	}
	out := map[string]string{}
	for _, f := range flags {
		if f == "none" && len(flags) == 1 {
			return out, nil
		}
		i := strings.LastIndexByte(f, ':')
		if i <= 0 {
			return nil, usageError("--volume-store %q: want DATASTORE[/DIR]:LABEL or nfs://SERVER/PATH:LABEL", f)
		}
		place, label := strings.TrimPrefix(f[:i], "ds://"), f[i+1:]
		if _, ok := out[label]; ok {
			return nil, usageError("--volume-store: there are two of label %q", label)
		}
		out[label] = place
	}
	return out, nil
}

func mountingFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "volume", Aliases: []string{"v"}, Usage: "`[NAME:]TARGET[:ro,nocopy]`: a volume, made where it is not there"},
		&cli.StringSliceFlag{Name: "mount", Usage: "`LIST` of KEY=VALUE: type=volume, tmpfs or nfs, source, target, readonly, volume-opt, …"},
		&cli.StringSliceFlag{Name: "tmpfs", Usage: "`TARGET[:OPTIONS]`: size, mode, uid, gid, exec, …"},
		&cli.StringFlag{Name: "shm-size", Usage: "`SIZE` of /dev/shm (default 64m)"},
		&cli.BoolFlag{Name: "read-only", Usage: "let nobody write to the root"},
	}
}

// mountFlags reads what is mounted.
func mountFlags(c *cli.Context, s *engine.RunSpec) error {
	for _, f := range c.StringSlice("volume") {
		v, err := engine.ParseVolume(f)
		if err != nil {
			return usageError("run: %v", err)
		}
		s.Volumes = append(s.Volumes, v)
	}
	for _, f := range c.StringSlice("mount") {
		if err := engine.ParseMount(f, s); err != nil {
			return usageError("run: %v", err)
		}
	}
	for _, f := range c.StringSlice("tmpfs") {
		m, err := engine.ParseTmpfs(f)
		if err != nil {
			return usageError("run: %v", err)
		}
		s.Container.Mounts = append(s.Container.Mounts, m)
	}
	s.Container.ReadOnlyRoot = c.Bool("read-only")
	if f := c.String("shm-size"); f != "" {
		n, err := volumestore.ParseBytes(f)
		if err != nil {
			return usageError("--shm-size: %v", err)
		}
		s.Container.ShmBytes = n
	}
	return nil
}
