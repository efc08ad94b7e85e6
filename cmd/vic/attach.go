package main

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/moby/term"
	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
)

func attachCommand() *cli.Command {
	return &cli.Command{
		Name: "attach", Usage: "connect to a container's main process: its output from now on, and its input where that is open", ArgsUsage: "CONTAINER",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "no-stdin", Usage: "bring it no input"},
			&cli.BoolFlag{Name: "no-sig-proxy", Usage: "do not pass signals on"},
			&cli.StringFlag{Name: "detach-keys", Usage: "`KEYS` that detach, as docker takes them", Value: "ctrl-p,ctrl-q"},
		},
		Action: func(c *cli.Context) error {
			if err := args(c, 1, 1); err != nil {
				return err
			}
			keys, err := term.ToBytes(c.String("detach-keys"))
			if err != nil {
				return usageError("--detach-keys: %v", err)
			}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				vm, info, err := e.Find(ctx, c.Args().First())
				if err != nil {
					return err
				}
				return attach(ctx, vm, info, keys, !c.Bool("no-stdin") && info.OpenStdin, !c.Bool("no-sig-proxy"))
			})
		},
	}
}

// attach carries the streams of a container's main process until its end, or
// until the keys are typed.
func attach(ctx context.Context, vm *containervm.VM, info containervm.Info, keys []byte, input, signals bool) error {
	t, err := openTerminal("attach", info.TTY, input)
	if err != nil {
		return err
	}
	defer t.restore()
	o := containervm.AttachOptions{Streams: tether.Streams{Stdout: os.Stdout, Stderr: os.Stderr}, New: true}
	typed := make(chan struct{})
	if input {
		var in io.Reader = os.Stdin
		if info.TTY {
			in = term.NewEscapeProxy(in, keys)
		}
		o.Stdin = &untilKeys{r: in, typed: typed}
	}
	att, err := vm.AttachWith(ctx, o)
	if err != nil {
		return err
	}
	defer att.Detach()
	if signals {
		t.follow(att, vm.Kill)
	}
	select {
	case <-att.Done():
	case <-typed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	exit, err := att.Wait()
	t.restore()
	if err != nil {
		return err
	}
	return exitOf(exit)
}

// untilKeys tells when the keys that detach were typed. The process's input stays
// open then.
type untilKeys struct {
	r     io.Reader
	typed chan struct{}
}

func (u *untilKeys) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if errors.As(err, new(term.EscapeError)) {
		close(u.typed)
		return n, io.ErrClosedPipe
	}
	return n, err
}
