package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
)

func topCommand() *cli.Command {
	return &cli.Command{
		Name: "top", Usage: "list the processes of a running container", ArgsUsage: "CONTAINER",
		Action: func(c *cli.Context) error {
			if err := args(c, 1, 1); err != nil {
				return err
			}
			return withFirst(c, func(ctx context.Context, e *engine.Engine, vm *containervm.VM) error {
				all, err := vm.Top(ctx)
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
				fmt.Fprintln(w, "UID\tPID\tPPID\tC\tSTIME\tTTY\tTIME\tCMD")
				now := time.Now()
				for _, p := range all {
					user, tty := p.User, p.TTY
					if user == "" {
						user = fmt.Sprint(p.UID)
					}
					if tty == "" {
						tty = "?"
					}
					stime := p.Started.Local().Format("15:04")
					if now.Sub(p.Started) > 24*time.Hour {
						stime = p.Started.Local().Format("Jan02")
					}
					sec := int(p.CPU.Seconds())
					fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\t%02d:%02d:%02d\t%s\n", printable(user), p.PID, p.PPID,
						share(p.CPU, now.Sub(p.Started)), stime, tty, sec/3600, sec/60%60, sec%60, printable(p.Command))
				}
				return w.Flush()
			})
		},
	}
}

// share is how much of a time was spent, in per cent.
func share(spent, of time.Duration) int {
	if of <= 0 {
		return 0
	}
	return int(min(100*spent/of, 99))
}

// printable keeps what a container chose from moving a terminal's cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

func statsCommand() *cli.Command {
	return &cli.Command{
		Name: "stats", Usage: "show what running containers use, all of them where none is named", ArgsUsage: "[CONTAINER…]",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "no-stream", Usage: "once, measured over a second, instead of until vic is ended"}},
		Action: func(c *cli.Context) error {
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				w, err := watched(ctx, c, e)
				if err != nil {
					return err
				}
				defer w.close()
				return w.run(ctx, c.Bool("no-stream"))
			})
		},
	}
}

// A meter is one container that is measured.
type meter struct {
	vm     *containervm.VM
	client *tether.Client
	last   tether.Stats
	now    tether.Stats
	host   *containervm.HostStats // where the guest does not answer
	err    error
}

type meters []*meter

func watched(ctx context.Context, c *cli.Context, e *engine.Engine) (ms meters, err error) {
	if c.NArg() == 0 {
		vms, infos, err := e.List(ctx)
		for i, vm := range vms {
			if infos[i].State == containervm.Running {
				ms = append(ms, &meter{vm: vm})
			}
		}
		return ms, err
	}
	for _, name := range c.Args().Slice() {
		vm, _, err := e.Find(ctx, name)
		if err != nil {
			return nil, err
		}
		ms = append(ms, &meter{vm: vm})
	}
	return ms, nil
}

func (ms meters) close() {
	for _, m := range ms {
		if m.client != nil {
			_ = m.client.Close()
		}
	}
}

// measure asks all guests at once.
func (ms meters) measure(ctx context.Context) {
	var wg sync.WaitGroup
	for _, m := range ms {
		wg.Go(func() {
			if m.err != nil {
				return
			}
			if m.client == nil && m.host == nil {
				m.client, m.err = m.vm.Dial(ctx)
			}
			if m.host != nil || m.err != nil && (errors.Is(m.err, vic.ErrUnavailable) || errors.Is(m.err, vic.ErrDenied)) {
				m.measureByHost(ctx)
				return
			}
			if m.err != nil {
				return
			}
			m.last = m.now
			m.now, m.err = m.client.Stats(ctx)
		})
	}
	wg.Wait()
}

// measureByHost takes what vSphere tells of a VM whose guest does not answer.
func (m *meter) measureByHost(ctx context.Context) {
	s, err := m.vm.HostStats(ctx)
	if err != nil {
		m.err = errors.Join(m.err, err)
		return
	}
	m.host, m.err = &s, nil
}

func (ms meters) run(ctx context.Context, once bool) error {
	ms.measure(ctx)
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		ms.measure(ctx)
		w := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
		fmt.Fprintln(w, "CONTAINER ID\tNAME\tCPU %\tMEM USAGE / LIMIT\tMEM %\tNET I/O\tBLOCK I/O\tPIDS")
		var errs []error
		for _, m := range ms {
			if m.err == nil {
				m.print(w)
			} else if errors.Is(m.err, tether.ErrNotRunning) || ctx.Err() == nil {
				errs = append(errs, m.err)
			}
		}
		if err := w.Flush(); err != nil {
			return err
		}
		if once || len(errs) == len(ms) {
			return errors.Join(errs...)
		}
	}
}

func (m *meter) print(w *tabwriter.Writer) {
	if h := m.host; h != nil {
		// What its host measures of the whole VM; transfers are those of a second.
		fmt.Fprintf(w, "%.12s\t%s (by its host)\t%.2f%%\t%s / -\t-\t%s/s / %s/s\t%s/s / %s/s\t-\n", m.vm.ID(), m.vm.Name(), h.CPUPercent, bytesText(h.MemoryConsumed),
			bytesText(h.NetworkReceived), bytesText(h.NetworkSent), bytesText(h.DiskRead), bytesText(h.DiskWritten))
		return
	}
	s := m.now
	cpu := 0.0
	if d := s.Time.Sub(m.last.Time); d > 0 && s.CPU > m.last.CPU {
		cpu = 100 * float64(s.CPU-m.last.CPU) / float64(d)
	}
	used := s.MemoryUsed - min(s.MemoryCache, s.MemoryUsed)
	var rx, tx uint64
	for _, n := range s.Networks {
		rx, tx = rx+n.RxBytes, tx+n.TxBytes
	}
	fmt.Fprintf(w, "%.12s\t%s\t%.2f%%\t%s / %s\t%.2f%%\t%s / %s\t%s / %s\t%d\n", m.vm.ID(), m.vm.Name(), cpu,
		bytesText(int64(used)), bytesText(int64(s.MemoryLimit)), 100*float64(used)/max(float64(s.MemoryLimit), 1), bytesText(int64(rx)), bytesText(int64(tx)), bytesText(int64(s.BlockRead)), bytesText(int64(s.BlockWritten)), s.PIDs)
}

func pauseCommand() *cli.Command {
	return each("pause", "freeze the processes of containers", (*containervm.VM).Pause)
}

func unpauseCommand() *cli.Command {
	return each("unpause", "let the processes of paused containers go on", (*containervm.VM).Unpause)
}

// each is a command that does one thing with each container named.
func each(name, usage string, f func(*containervm.VM, context.Context) error) *cli.Command {
	return &cli.Command{
		Name: name, Usage: usage, ArgsUsage: "CONTAINER…",
		Action: func(c *cli.Context) error {
			return withEach(c, func(ctx context.Context, vm *containervm.VM) error { return f(vm, ctx) })
		},
	}
}
