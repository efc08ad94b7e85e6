package main

import (
	"context"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
)

func execCommand() *cli.Command {
	return &cli.Command{
		Name: "exec", Usage: "run a further process in a running container", ArgsUsage: "CONTAINER COMMAND [ARG…]",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "print the exec's ID and leave it running"},
			&cli.BoolFlag{Name: "interactive", Aliases: []string{"i"}, Usage: "pass standard input on"},
			&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give the process a terminal"},
			&cli.BoolFlag{Name: "privileged", Usage: "give the process all capabilities"},
			&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "`KEY=VALUE`, or KEY for the value it has here"},
			&cli.StringFlag{Name: "workdir", Aliases: []string{"w"}, Usage: "`DIR` in the container"},
			&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "`USER[:GROUP]` by name or number"},
		},
		Action: func(c *cli.Context) error {
			if err := args(c, 2, -1); err != nil {
				return err
			}
			if c.Bool("detach") && c.Bool("interactive") {
				return usageError("exec: -d and -i exclude each other: nobody would be there to type")
			}
			spec := tether.ExecSpec{
				Args: c.Args().Slice()[1:], Env: environ(c.StringSlice("env")), Dir: c.String("workdir"),
				User: c.String("user"), Privileged: c.Bool("privileged"), TTY: c.Bool("tty"),
			}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				if c.Bool("detach") {
					return execDetached(ctx, e, c.Args().First(), spec)
				}
				return exec(ctx, e, c.Args().First(), spec, c.Bool("interactive"))
			})
		},
	}
}

func execDetached(ctx context.Context, e *engine.Engine, container string, spec tether.ExecSpec) error {
	vm, _, err := e.Find(ctx, container)
	if err != nil {
		return err
	}
	info, err := vm.ExecDetached(ctx, spec)
	if err != nil {
		return err
	}
	if info.Exit.Error != "" {
		return exitOf(info.Exit)
	}
	fmt.Println(info.ID)
	return nil
}

func exec(ctx context.Context, e *engine.Engine, container string, spec tether.ExecSpec, interactive bool) error {
	vm, _, err := e.Find(ctx, container)
	if err != nil {
		return err
	}
	t, err := openTerminal("exec", spec.TTY, interactive)
	if err != nil {
		return err
	}
	defer t.restore()
	spec.Rows, spec.Columns = t.size()
	s := tether.Streams{Stdout: os.Stdout, Stderr: os.Stderr}
	if interactive {
		s.Stdin = os.Stdin
	}
	x, err := vm.Exec(ctx, spec, s)
	if err != nil {
		return err
	}
	t.follow(x, func(_ context.Context, signal string) error { return x.Signal(signal) })
	exit, err := x.Wait()
	t.restore()
	if err != nil {
		return err
	}
	return exitOf(exit)
}

// exitOf makes a process's end that of vic.
func exitOf(e tether.Exit) error {
	if e.Error != "" {
		fmt.Fprintf(os.Stderr, "vic: %s\n", e.Error)
	}
	if e.Code != 0 {
		return exitStatus(e.Code)
	}
	return nil
}
