package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
)

// lifeFlags say what a container does over time.
func lifeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "restart", Usage: "`POLICY` by which the guest starts the process again: no, on-failure[:MAX], always or unless-stopped", Value: "no"},
		&cli.StringFlag{Name: "health-cmd", Usage: "`COMMAND` for the image's shell that checks the process"},
		&cli.DurationFlag{Name: "health-interval", Usage: "`TIME` between checks (default: the image's, else 30s)"},
		&cli.DurationFlag{Name: "health-timeout", Usage: "`TIME` that a check may take (default: the image's, else 30s)"},
		&cli.IntFlag{Name: "health-retries", Usage: "`NUMBER` of failures in a row that are unhealthy (default: the image's, else 3)"},
		&cli.DurationFlag{Name: "health-start-period", Usage: "`TIME` after the start whose failures do not count"},
		&cli.DurationFlag{Name: "health-start-interval", Usage: "`TIME` between checks in the start period (default: the image's, else 5s)"},
		&cli.BoolFlag{Name: "no-healthcheck", Usage: "without the image's check"},
		&cli.StringSliceFlag{Name: "log-opt", Usage: "`OPTION` of the log: max-size=SIZE, max-file=NUMBER"},
	}
}

// readLife reads lifeFlags into a spec.
func readLife(c *cli.Context, s *engine.RunSpec) error {
	var err error
	if s.Container.Restart, err = parseRestart(c.String("restart")); err != nil {
		return usageError("--restart %q: %v", c.String("restart"), err)
	}
	if s.Container.Log, err = parseLogOptions(c.StringSlice("log-opt")); err != nil {
		return usageError("--log-opt: %v", err)
	}
	h := &s.Health
	for name, d := range map[string]*time.Duration{
		"health-interval": &h.Interval, "health-timeout": &h.Timeout,
		"health-start-period": &h.StartPeriod, "health-start-interval": &h.StartInterval,
	} {
		if *d = c.Duration(name); *d < 0 {
			return usageError("--%s %v: negative", name, *d)
		}
	}
	if h.Retries = c.Int("health-retries"); h.Retries < 0 {
		return usageError("--health-retries %d: negative", h.Retries)
	}
	if cmd := c.String("health-cmd"); cmd != "" {
		h.Test = []string{"CMD-SHELL", cmd}
	}
	if c.Bool("no-healthcheck") {
		if len(h.Test) > 0 {
			return usageError("--no-healthcheck and --health-cmd exclude each other")
		}
		h.Test = []string{"NONE"}
	}
	return nil
}

func parseRestart(s string) (tether.Restart, error) {
	name, max, counted := strings.Cut(s, ":")
	r := tether.Restart{Policy: name}
	if counted {
		n, err := strconv.Atoi(max)
		if err != nil || n < 1 {
			return r, fmt.Errorf("%q is no number of retries", max)
		}
		r.MaxRetries = n
	}
	return r, r.Validate()
}

func parseLogOptions(options []string) (l tether.LogLimit, err error) {
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "max-size":
			if l.MaxBytes, err = parseBytes(value); err != nil {
				return l, fmt.Errorf("max-size=%q: %w", value, err)
			}
		case "max-file":
			if l.MaxFiles, err = strconv.Atoi(value); err != nil || l.MaxFiles < 1 {
				return l, fmt.Errorf("max-file=%q: want a number of files, at least 1", value)
			}
		default:
			return l, fmt.Errorf("%q is neither max-size nor max-file", name)
		}
	}
	return l, l.Validate()
}

// since formats how long ago something was, in the words of docker ps.
func since(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		most int
		name string
	}{
		{time.Second, 59, "second"}, {time.Minute, 59, "minute"}, {time.Hour, 47, "hour"},
		{24 * time.Hour, 13, "day"}, {7 * 24 * time.Hour, 8, "week"}, {30 * 24 * time.Hour, 23, "month"},
		{365 * 24 * time.Hour, 1 << 30, "year"},
	} {
		n := int(d / u.unit)
		switch {
		case n < 1 && u.unit == time.Second:
			return "Less than a second"
		case n == 1:
			return "1 " + u.name
		case n <= u.most:
			return fmt.Sprintf("%d %ss", n, u.name)
		}
	}
	return ""
}

// status is what docker ps shows of a container's state.
func status(i containervm.Info, now time.Time) string {
	switch {
	case i.State == containervm.Running && i.Started.IsZero():
		return "Up, starting"
	case i.State == containervm.Running:
		s := "Up " + since(now.Sub(i.Started))
		if i.Paused {
			return s + " (Paused)"
		}
		if i.Health != nil {
			health := string(i.Health.State)
			if i.Health.State == tether.HealthStarting {
				health = "health: starting"
			}
			s += " (" + health + ")"
		}
		return s
	case i.State == containervm.Restarting:
		return fmt.Sprintf("Restarting (%d) %s ago", i.ExitCode, since(now.Sub(i.Finished)))
	case i.State == containervm.Exited && i.Known:
		return fmt.Sprintf("Exited (%d) %s ago", i.ExitCode, since(now.Sub(i.Finished)))
	case i.State == containervm.Exited:
		return "Exited (code unknown)"
	case i.State == containervm.Created:
		return "Created"
	}
	return strings.ToUpper(string(i.State[:1])) + string(i.State[1:])
}

// readTimes reads --since and --until; one that was not given stays zero.
func readTimes(c *cli.Context, since, until *time.Time) error {
	for name, t := range map[string]*time.Time{"since": since, "until": until} {
		if s := c.String(name); s != "" {
			var err error
			if *t, err = parseTime(s, time.Now()); err != nil {
				return usageError("--%s %q: %v", name, s, err)
			}
		}
	}
	return nil
}

// parseTime reads a time as docker logs takes it: RFC 3339, seconds since 1970,
// or how long ago it was, such as 10m.
func parseTime(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	if whole, part, _ := strings.Cut(s, "."); len(part) <= 9 {
		sec, err := strconv.ParseInt(whole, 10, 64)
		nsec, perr := strconv.ParseInt((part + "000000000")[:9], 10, 64)
		if err == nil && perr == nil {
			return time.Unix(sec, nsec), nil
		}
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("want a time such as 2026-01-02T15:04:05Z, seconds since 1970, or how long ago, such as 10m")
}

func waitCommand() *cli.Command {
	return &cli.Command{
		Name: "wait", Usage: "wait for containers and print their exit codes", ArgsUsage: "CONTAINER…",
		Flags: []cli.Flag{&cli.StringFlag{Name: "condition", Usage: "`CONDITION`: not-running, next-exit or removed", Value: string(containervm.NotRunning)}},
		Action: func(c *cli.Context) error {
			if err := args(c, 1, -1); err != nil {
				return err
			}
			condition := containervm.WaitCondition(c.String("condition"))
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				for _, name := range c.Args().Slice() {
					vm, _, err := e.Find(ctx, name)
					if err != nil {
						return err
					}
					info, err := vm.WaitFor(ctx, condition)
					switch {
					case err != nil:
						return err
					case condition == containervm.Removed:
						fmt.Println(name)
					case info.State == containervm.Exited && !info.Known:
						return fmt.Errorf("%s was powered off before its guest wrote down how the process ended", name)
					default:
						fmt.Println(info.ExitCode)
					}
				}
				return nil
			})
		},
	}
}

func restartCommand() *cli.Command {
	return &cli.Command{
		Name: "restart", Usage: "stop containers and start them", ArgsUsage: "CONTAINER…",
		Flags: stopFlags(),
		Action: func(c *cli.Context) error {
			return withEach(c, func(ctx context.Context, vm *containervm.VM) error { return vm.Restart(ctx, stopOptions(c)) })
		},
	}
}

func killCommand() *cli.Command {
	return &cli.Command{
		Name: "kill", Usage: "send a signal to containers' processes", ArgsUsage: "CONTAINER…",
		Flags: []cli.Flag{&cli.StringFlag{Name: "signal", Aliases: []string{"s"}, Usage: "`SIGNAL` by name or number", Value: "SIGKILL"}},
		Action: func(c *cli.Context) error {
			return withEach(c, func(ctx context.Context, vm *containervm.VM) error { return vm.Kill(ctx, c.String("signal")) })
		},
	}
}

func reconcileCommand() *cli.Command {
	return &cli.Command{
		Name: "reconcile", Usage: "start the containers that are off and whose restart policy wants them running, as after a host failed",
		Action: func(c *cli.Context) error {
			if err := args(c, 0, 0); err != nil {
				return err
			}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				started, err := e.Reconcile(ctx)
				for _, name := range started {
					fmt.Println(name)
				}
				return err
			})
		},
	}
}

// withEach calls f with each container that is named, and prints those it
// succeeded for.
func withEach(c *cli.Context, f func(context.Context, *containervm.VM) error) error {
	return withEachOf(c, func(ctx context.Context, _ *engine.Engine, vm *containervm.VM) error { return f(ctx, vm) })
}

// withEachOf is withEach for what takes the engine, too.
func withEachOf(c *cli.Context, f func(context.Context, *engine.Engine, *containervm.VM) error) error {
	if err := args(c, 1, -1); err != nil {
		return err
	}
	return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
		return forEach(c, func(name string) error {
			vm, _, err := e.Find(ctx, name)
			if err != nil {
				return err
			}
			return f(ctx, e, vm)
		})
	})
}

// withFirst finds the container that the first argument names.
func withFirst(c *cli.Context, f func(context.Context, *engine.Engine, *containervm.VM) error) error {
	return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
		vm, _, err := e.Find(ctx, c.Args().First())
		if err != nil {
			return err
		}
		return f(ctx, e, vm)
	})
}

func stopFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "time", Aliases: []string{"t"}, Usage: "`SECONDS` before SIGKILL (default: the container's own, else 10)", Value: -1},
		&cli.StringFlag{Name: "signal", Aliases: []string{"s"}, Usage: "`SIGNAL` in place of the container's"},
	}
}

func stopOptions(c *cli.Context) *containervm.StopOptions {
	o := &containervm.StopOptions{Signal: c.String("signal")}
	if n := c.Int("time"); n >= 0 {
		d := time.Duration(n) * time.Second
		o.Grace = &d
	}
	return o
}
