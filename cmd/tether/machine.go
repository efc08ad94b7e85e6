//go:build linux && amd64

package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vicsdk/vic-go/bootiso/modlist"
	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

const (
	configWait  = 3 * time.Minute // for the configuration to be told, with many VMs starting at once
	publishWait = 5 * time.Second // for a status to be taken
	etcDir      = "/run/vic/etc"
)

// A machine is the VM from the start of PID 1 to its power-off.
type machine struct {
	log       *slog.Logger
	info      tether.Guestinfo
	config    *tether.Config
	container *tether.Container
	modules   []modlist.Module
	events    *uevents
	reaper    *reaper
	hostKey   ssh.Signer
	trusted   []ssh.PublicKey
	net       *network
	output    *tether.Recorder
	logFiles  *tether.LogFiles
	volumes   volumes
	server    *tether.Server
	world     *world
	clock     *clock

	mounting sync.Mutex     // held while a container's world is made, and while its mounts change
	mounts   []tether.Mount // of the configuration, and as they were changed since

	told chan struct{} // asks for the status to be published

	marks     sync.Mutex
	early     []tether.Stage // before there is a container
	publishMu sync.Mutex
}

// mark adds a stage to the timeline.
func (m *machine) mark(name string) {
	at := uptime()
	m.marks.Lock()
	defer m.marks.Unlock()
	if m.container != nil {
		m.container.Mark(name, at)
		return
	}
	m.early = append(m.early, tether.Stage{Name: name, At: at})
}

// run does everything but the power-off.
func (m *machine) run() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	m.mark("tether")
	if err := m.prepare(); err != nil {
		m.log.Error("cannot set up the machine", "error", err)
	}
	m.mark("mounts")
	if err := m.configure(ctx); err != nil {
		// There is no container yet that could tell it.
		m.log.Error("no usable configuration", "error", err)
		m.adopt(&tether.Config{})
		m.finish(ctx, &startError{codeSetup, err}, tether.Exit{})
		return
	}
	if m.config.Apply != nil {
		if err := m.runHelper(ctx); err != nil {
			m.finish(ctx, &startError{codeSetup, err}, tether.Exit{})
		}
		return
	}
	exit, err := m.runContainer(ctx)
	m.finish(ctx, err, exit)
}

// prepare mounts what the tether itself needs.
func (m *machine) prepare() error {
	var errs error
	for _, mt := range ownMounts {
		errs = errors.Join(errs, mt.do())
	}
	unix.Umask(0o022)
	// What Docker's daemon gives its containers.
	files := unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	errs = errors.Join(errs, setrlimit(unix.RLIMIT_NOFILE, files))
	forever := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	errs = errors.Join(errs, setrlimit(unix.RLIMIT_NPROC, forever))
	m.reaper = newReaper()
	var err error
	m.events, err = listenUevents()
	return errors.Join(errs, err)
}

// adopt makes the container of a configuration.
func (m *machine) adopt(c *tether.Config) {
	var boot [8]byte
	_, _ = rand.Read(boot[:]) // It cannot fail (crypto/rand).
	m.marks.Lock()
	defer m.marks.Unlock()
	m.config, m.container = c, tether.NewContainer(*c, hex.EncodeToString(boot[:]))
	m.mounts = slices.Clone(c.Mounts)
	for _, s := range m.early {
		m.container.Mark(s.Name, s.At)
	}
}

// configure learns what to run while the early modules are loaded.
func (m *machine) configure(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		var err error
		if m.modules, err = readModules(); err == nil {
			err = loadModules(m.modules, false, loadModule)
		}
		if err != nil {
			// What is missing will be missed by name.
			m.log.Error("kernel modules", "error", err)
		}
		m.mark("modules")
	})
	wg.Go(func() {
		if err := loopback(); err != nil {
			m.log.Error("network", "error", err)
		}
		sysctls(m.log)
	})
	var err error
	if m.info, err = openGuestinfo(); err != nil {
		return err
	}
	m.mark("guestinfo")
	ctx, cancel := context.WithTimeout(ctx, configWait)
	defer cancel()
	doc, err := m.info.Get(ctx, tether.ConfigKey)
	if err != nil {
		return fmt.Errorf("%s: %w", tether.ConfigKey, err)
	}
	c, err := tether.ParseConfig([]byte(doc))
	if err != nil {
		return err
	}
	if m.trusted, err = tether.ParseAuthorities(c.Trusted()); err != nil {
		return fmt.Errorf("%s: authority and those beside it: %w", tether.ConfigKey, err)
	}
	m.adopt(c)
	m.mark("config")
	return nil
}

// runContainer brings up everything the process needs, each as soon as it can,
// runs it, again as its restart policy says, and returns its last end. An error
// means that it did not start.
func (m *machine) runContainer(ctx context.Context) (tether.Exit, error) {
	// One start that fails ends the others' waiting.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	step := func(name string, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				cancel(err)
				return
			}
			m.mark(name)
		})
	}
	step("host key", m.makeHostKey)
	step("root", func() error {
		dev, err := findDisk(ctx, m.events, m.config.Root.Unit)
		if err != nil {
			return fmt.Errorf("root.unit: %w", err)
		}
		m.mark("disk")
		if err := reserve(dev); err != nil {
			// A container without that room is better than none.
			m.log.Error("no room is kept for the log", "error", err)
		}
		if err := mountRoot(dev); err != nil {
			return err
		}
		return m.openLog()
	})
	if len(m.config.Mounts) > 0 {
		step("volumes", func() error { return m.volumes.mount(ctx, m.events, m.config.Mounts) })
	}
	// What is asked for last begins first, and the network waits for others.
	step("network", func() (err error) {
		m.net, err = bringUp(ctx, m.events, m.config, m.log)
		return err
	})
	if err := unix.Sethostname([]byte(hostname(m.config))); err != nil {
		m.log.Error("hostname", "error", err)
	}
	group, err := containerCgroup()
	if err != nil {
		cancel(err)
	}
	wg.Wait()
	m.world = &world{config: m.config, reaper: m.reaper}
	m.clock = newClock(m.log)
	// Controllers get in where that is possible at all, to hear what failed.
	if err := m.serve(ctx); err != nil {
		cancel(err)
	}
	if err := context.Cause(ctx); err != nil {
		return tether.Exit{}, err
	}
	go m.publisher(ctx)
	if m.config.Serial != 0 && m.server != nil {
		go m.watchRequests(ctx)
	}
	if m.server != nil {
		// Controllers hear where to come while the process is being started.
		m.tell()
	}
	if err := apply(m.config.Settings); err != nil {
		return tether.Exit{}, err
	}
	etc, err := writeEtc(etcDir, m.config, m.net.resolv())
	if err != nil {
		return tether.Exit{}, err
	}
	m.net.changed = func() {
		if err := etc.write("resolv.conf", m.net.resolv()); err != nil {
			m.log.Error("resolv.conf", "error", err)
		}
		m.reached()
		m.tell()
	}
	r := &runner{m: m, etc: etc, group: group, started: func() { go m.afterStart(ctx) }}
	defer func() { _ = r.group.Close() }()
	return m.container.Run(r, m.output)
}

func (m *machine) makeHostKey() error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("host key: %w", err)
	}
	m.hostKey, err = ssh.NewSignerFromSigner(key)
	return err
}

// openLog goes on with the log of former boots.
func (m *machine) openLog() error {
	f, err := tether.OpenLogFiles(filepath.Dir(diskMount+tether.LogPath), m.config.Log)
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	m.output, m.logFiles = tether.NewRecorder(f, f.Size()), f
	return nil
}

// serve starts the server. It needs the host key and the log; where a step has
// failed they may be missing, and then there is no server.
func (m *machine) serve(ctx context.Context) error {
	if m.hostKey == nil || m.output == nil || m.net == nil {
		return nil
	}
	return m.listen(ctx, tether.ServerConfig{
		HostKey: m.hostKey, Authorities: m.trusted, ID: m.config.ID,
		Container: m.container, Output: m.output, Logger: m.log,
		Executor: m.world, Freezer: m.world, Monitor: m.world, Mounter: m, Files: m.world, Changed: m.publish, Now: m.clock.now,
	})
}

// listen starts a server on the NICs and the serial port, where there are some.
func (m *machine) listen(ctx context.Context, c tether.ServerConfig) error {
	s, err := tether.NewServer(c)
	if err != nil {
		return err
	}
	m.reached()
	// Until the power-off, and not only until the process's end.
	serving := context.WithoutCancel(ctx)
	serve := func(l net.Listener) {
		m.server = s
		go func() {
			if err := s.Serve(serving, l); err != nil {
				m.log.Error("tether", "error", err)
			}
		}()
	}
	if m.config.Serial != 0 {
		l, err := listenSerial(m.config.Serial)
		if err != nil {
			return fmt.Errorf("tether: %w", err)
		}
		serve(l)
	}
	if len(m.config.NICs) > 0 {
		// Without MPTCP, which Go's listeners otherwise ask for: a controller has
		// one way in.
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		l, err := lc.Listen(ctx, "tcp", ":"+strconv.Itoa(tether.Port))
		if err != nil {
			return fmt.Errorf("tether: %w", err)
		}
		serve(refuseLocal{l})
	}
	if m.server != nil {
		m.mark("listening")
	}
	return nil
}

// reached tells the container where it is reached.
func (m *machine) reached() {
	key := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(m.hostKey.PublicKey())))
	var all []string
	for _, a := range m.net.hosts() {
		all = append(all, netip.AddrPortFrom(a, tether.Port).String())
	}
	m.container.Reached(key, all)
}

// settleTime is how long the process and those who attach to it have the
// processor for themselves. Controllers know already where the guest is, and
// vSphere that it runs.
const settleTime = 100 * time.Millisecond

// afterStart does what neither the process nor who attaches to it need wait
// for.
func (m *machine) afterStart(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(settleTime):
	}
	m.tell()
	for _, a := range m.net.hosts() {
		m.set(ctx, "guestinfo.ip", a.String())
		break
	}
	if err := loadModules(m.modules, true, loadModule); err != nil {
		m.log.Error("kernel modules", "error", err)
	}
	go m.clock.follow(ctx)
	err := onPowerButton(ctx, func() {
		m.log.Info("power button: the container is asked to stop")
		if err := m.container.Stop("", -1); err != nil {
			m.log.Error("stop", "error", err)
		}
	})
	if err != nil {
		m.log.Warn("no graceful stop by the power button", "error", err)
	}
}

// tell has the status published soon. It does not wait.
func (m *machine) tell() {
	select {
	case m.told <- struct{}{}:
	default: // It will be, and as it is then.
	}
}

// publisher publishes the status when told to.
func (m *machine) publisher(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.told:
		}
		m.publish()
	}
}

// publish sets the status in guestinfo and, once the process has ended, on the
// disk, where it outlives the VM's power.
func (m *machine) publish() {
	m.publishMu.Lock()
	defer m.publishMu.Unlock()
	s := m.container.Status()
	b, err := json.Marshal(s)
	if err != nil {
		m.log.Error("status", "error", err)
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	if m.output != nil && !s.Finished.IsZero() {
		wg.Go(func() {
			if err := writeStatus(diskMount+tether.StatusPath, b); err != nil {
				m.log.Error("status", "error", err)
			}
		})
	}
	m.set(context.Background(), tether.StatusKey, string(b))
}

func (m *machine) set(ctx context.Context, key, value string) {
	if m.info == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, publishWait)
	defer cancel()
	if err := m.info.Set(ctx, key, value); err != nil {
		m.log.Error("guestinfo", "key", key, "error", err)
	}
}

// answerTime is how long the answers to those who wait for the end may take.
const answerTime = time.Second

// finish makes the end lasting, tells it and leaves the disk clean.
func (m *machine) finish(ctx context.Context, failed error, exit tether.Exit) {
	now := time.Now()
	if failed != nil {
		exit = tether.Exit{Code: codeSetup, Error: failed.Error()}
		var s *startError
		if errors.As(failed, &s) {
			exit.Code = s.code
		}
		m.log.Error("the container did not start", "code", exit.Code, "error", failed)
	}
	if m.output != nil {
		if err := m.output.Close(); err != nil {
			m.log.Error("log", "error", err)
		}
	}
	m.container.Finished(exit, now)
	m.mark("exit")
	m.publish()
	if m.server != nil && m.config.AwaitAttach > 0 {
		m.server.Linger(ctx, m.config.AwaitAttach)
	}
	if m.output != nil {
		if m.server != nil {
			m.server.Hangup(answerTime)
		}
		_ = m.logFiles.Close() // It was synced.
		if err := unmountRoot(); err != nil {
			m.log.Error("root", "error", err)
		}
	}
	if err := m.volumes.unmount(); err != nil {
		m.log.Error("volumes", "error", err)
	}
	m.log.Info("end", "code", exit.Code, "signal", exit.Signal, "uptime", uptime().Round(time.Millisecond))
}

// writeStatus replaces a file by the status, on the disk when it returns.
func writeStatus(name string, status []byte) error {
	f, err := os.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(status, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}
