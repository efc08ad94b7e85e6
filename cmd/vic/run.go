package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
)

func runCommand() *cli.Command {
	return &cli.Command{
		Name: "run", Usage: "run a process of an image in a VM of its own", ArgsUsage: "IMAGE [COMMAND [ARG…]]",
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "print the container's ID and leave it running"},
			&cli.BoolFlag{Name: "interactive", Aliases: []string{"i"}, Usage: "pass standard input on"},
			&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give the process a terminal"},
			&cli.BoolFlag{Name: "rm", Usage: "delete the container after its end"},
			&cli.StringFlag{Name: "name", Usage: "`NAME` of the container"},
			&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "`KEY=VALUE`, or KEY for the value it has here"},
			&cli.StringFlag{Name: "workdir", Aliases: []string{"w"}, Usage: "`DIR` in the container"},
			&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "`USER[:GROUP]` by name or number"},
			&cli.StringFlag{Name: "entrypoint", Usage: "`PROGRAM` in place of the image's"},
			&cli.StringFlag{Name: "hostname", Usage: "`NAME` of the host inside"},
			&cli.StringFlag{Name: "network", Usage: "\"none\" for no network: the container is reached over a serial port of its VM"},
			&cli.StringFlag{Name: "stop-signal", Usage: "`SIGNAL` that asks the process to end"},
		}, slices.Concat(hardwareFlags(), lifeFlags(), settingsFlags(), mountingFlags(), registryFlags())...),
		Action: func(c *cli.Context) error {
			if c.NArg() < 1 {
				return usageError("run: no image is named: usage: vic run [options] %s", c.Command.ArgsUsage)
			}
			spec, err := runSpec(c)
			if err != nil {
				return err
			}
			return run(c, spec)
		},
	}
}

// runSpec reads the command line. Options end at the image: what follows is
// the container's.
func runSpec(c *cli.Context) (engine.RunSpec, error) {
	argv := c.Args().Slice()
	s := engine.RunSpec{Image: argv[0], Detach: c.Bool("detach"), Remove: c.Bool("rm")}
	if err := readLife(c, &s); err != nil {
		return s, err
	}
	if s.Remove && s.Container.Restart.Policy != tether.RestartNo {
		return s, usageError("--rm and --restart exclude each other")
	}
	v := &s.Container
	v.Name, v.Dir, v.User, v.Hostname, v.StopSignal = c.String("name"), c.String("workdir"), c.String("user"), c.String("hostname"), c.String("stop-signal")
	v.TTY, v.OpenStdin = c.Bool("tty"), c.Bool("interactive")
	v.StdinOnce = v.OpenStdin && !s.Detach
	switch n := c.String("network"); n {
	case "":
	case "none":
		v.NICs = []vic.NIC{}
	default:
		return s, usageError("--network %q: only \"none\" can be chosen; without it, the container is on the VCH's network", n)
	}
	if len(argv) > 1 {
		v.Args = argv[1:]
	}
	if e := c.String("entrypoint"); e != "" {
		v.Entrypoint = []string{e}
	}
	v.Env = environ(c.StringSlice("env"))
	var err error
	if v.Settings, err = settings(c); err != nil {
		return s, err
	}
	if err := mountFlags(c, &s); err != nil {
		return s, err
	}
	v.CPUs, v.MemoryMB, err = hardware(c)
	return s, err
}

func hardwareFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "cpus", Usage: "`NUMBER` of virtual CPUs"},
		&cli.StringFlag{Name: "memory", Aliases: []string{"m"}, Usage: "`SIZE`, such as 512m or 2g"},
	}
}

// hardware reads what hardwareFlags say; zero is what was not given.
func hardware(c *cli.Context) (cpus int32, memoryMB int64, err error) {
	if n := c.Int("cpus"); c.IsSet("cpus") {
		if n < 1 || n > 128 {
			return 0, 0, usageError("--cpus %d: want 1 to 128", n)
		}
		cpus = int32(n)
	}
	if m := c.String("memory"); m != "" {
		if memoryMB, err = parseMemory(m); err != nil {
			return 0, 0, usageError("--memory %q: %v", m, err)
		}
	}
	return cpus, memoryMB, nil
}

// environ fills in the values of variables that are only named; one that is not
// set here is left out.
func environ(list []string) (env []string) {
	for _, kv := range list {
		if !strings.Contains(kv, "=") {
			val, ok := os.LookupEnv(kv)
			if !ok {
				continue
			}
			kv += "=" + val
		}
		env = append(env, kv)
	}
	return env
}

// parseMemory reads a size in bytes or with one of the suffixes b, k, m, g, as
// docker takes it, and gives megabytes, rounded up to the multiple of four
// that vSphere wants.
func parseMemory(s string) (int64, error) {
	n, err := parseBytes(s)
	mb := (n + 1<<20 - 1) >> 20
	return (mb + 3) / 4 * 4, err
}

// parseBytes reads a size in bytes or with one of the suffixes b, k, m, g, t.
func parseBytes(s string) (int64, error) {
	unit := int64(1)
	num := strings.ToLower(strings.TrimSpace(s))
	for suffix, u := range map[string]int64{"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40} {
		if strings.HasSuffix(num, suffix) {
			unit, num = u, strings.TrimSuffix(num, suffix)
			break
		}
	}
	n, err := strconv.ParseFloat(num, 64)
	if err != nil || n <= 0 || math.IsInf(n, 0) || math.IsNaN(n) || n*float64(unit) > 1<<46 {
		return 0, fmt.Errorf("want a size such as 512m or 2g")
	}
	return int64(math.Ceil(n * float64(unit))), nil
}

func run(c *cli.Context, s engine.RunSpec) error {
	p := newProgress(os.Stderr)
	defer p.close()
	s.Progress = p.event
	s.Streams = tether.Streams{Stdout: os.Stdout, Stderr: os.Stderr}
	if s.Container.OpenStdin && !s.Detach {
		s.Streams.Stdin = os.Stdin
	}
	// Until the VM is on a signal ends vic; from then on it is the container's.
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.Context))
	defer cancel()
	untilStart := context.AfterFunc(c.Context, cancel)
	c.Context = ctx
	t, err := openTerminal("run", s.Container.TTY && !s.Detach, s.Container.OpenStdin)
	if err != nil {
		return err
	}
	defer t.restore()
	s.Container.Rows, s.Container.Columns = t.size()
	s.Started = func(vm *containervm.VM, att *containervm.Attachment) {
		untilStart()
		p.close()
		if att != nil {
			t.follow(att, func(ctx context.Context, signal string) error { return vm.Kill(ctx, signal) })
		}
	}
	var exit tether.Exit
	err = withEngine(c, func(ctx context.Context, e *engine.Engine) error {
		vm, st, err := e.Run(ctx, s)
		exit = st
		if err == nil && s.Detach {
			fmt.Println(vm.ID())
		}
		return err
	})
	t.restore()
	if err != nil {
		return runFailure{err}
	}
	return exitOf(exit)
}

// terminal is the one that vic runs in, where the container gets a terminal.
type terminal struct {
	fd    int
	state *term.State
	tty   bool
	stop  []func()
}

func openTerminal(command string, tty, interactive bool) (*terminal, error) {
	t := &terminal{fd: int(os.Stdin.Fd()), tty: tty}
	if !t.tty {
		return t, nil
	}
	if interactive && !term.IsTerminal(t.fd) {
		return nil, usageError("%s: -t with -i: standard input is no terminal; leave -t out", command)
	}
	if interactive {
		st, err := term.MakeRaw(t.fd)
		if err != nil {
			return nil, err
		}
		t.state = st
	}
	return t, nil
}

// size of the terminal in characters; zeros where there is none.
func (t *terminal) size() (rows, columns uint16) {
	if !t.tty {
		return 0, 0
	}
	for _, fd := range []int{int(os.Stdout.Fd()), t.fd} {
		if w, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ); err == nil && w.Row > 0 && w.Col > 0 {
			return w.Row, w.Col
		}
	}
	return 0, 0
}

// follow passes window sizes and signals on until restore.
func (t *terminal) follow(att interface {
	Resize(rows, columns uint16) error
}, kill func(ctx context.Context, signal string) error) {
	ch := make(chan os.Signal, 8)
	signal.Notify(ch, syscall.SIGWINCH, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	done := make(chan struct{})
	t.stop = append(t.stop, func() { signal.Stop(ch); close(done) })
	resize := func() {
		if rows, columns := t.size(); rows > 0 {
			_ = att.Resize(rows, columns)
		}
	}
	resize()
	go func() {
		for {
			select {
			case <-done:
				return
			case s := <-ch:
				if s == syscall.SIGWINCH {
					resize()
					continue
				}
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				if err := kill(ctx, unix.SignalName(s.(syscall.Signal))); err != nil {
					fmt.Fprintf(os.Stderr, "vic: %v\n", err)
				}
				cancel()
			}
		}
	}()
}

func (t *terminal) restore() {
	for _, f := range t.stop {
		f()
	}
	t.stop = nil
	if t.state != nil {
		_ = term.Restore(t.fd, t.state)
		t.state = nil
	}
}
