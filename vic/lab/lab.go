package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// A Lab is a running vSphere. Its methods may be called by several goroutines.
type Lab struct {
	opts Options
	log  *slog.Logger
	lock *os.File // of the whole directory
	run  *os.File // the run directory, open
	id   *identity
	url  *url.URL

	svc       *simulator.Service
	reg       *simulator.Registry
	session   *simulator.Session // of the lab's own work
	overrides map[string]mo.Reference
	dc        types.ManagedObjectReference

	stores       map[string]*store
	nets         map[string]*network
	networkNames map[types.ManagedObjectReference]string

	journal  *journal
	places   places
	tasks    tasks
	sessions sessions
	locks    locks
	count    counting
	files    sync.Mutex   // held by what changes files after having looked
	boot     sync.Mutex   // held while a boot CD's files are taken out
	sim      sync.RWMutex // read-held by tasks of the simulator's, see inner
	accel    accelerator

	mu       sync.Mutex
	machines map[types.ManagedObjectReference]*machine
	macs     map[string]bool
	claimed  map[string]bool // names of VMs that are being made

	listener net.Listener
	http     *http.Server
	closing  context.Context
	close    context.CancelFunc
	wg       sync.WaitGroup
	closed   sync.Once
}

// Start makes a lab over a directory and serves it until Close. ctx bounds the
// start only. The inventory is as it was when the directory's last lab ended.
// VMs whose QEMUs a killed lab left running go on running; other VMs that were on
// are powered off, with an event. A second lab on the same directory is refused.
func Start(ctx context.Context, o Options) (*Lab, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	l := &Lab{
		opts: o, log: o.Logger, overrides: map[string]mo.Reference{},
		stores: map[string]*store{}, nets: map[string]*network{}, networkNames: map[types.ManagedObjectReference]string{},
		machines: map[types.ManagedObjectReference]*machine{}, macs: map[string]bool{}, claimed: map[string]bool{},
		sessions: sessions{open: map[string]*openSession{}, reqs: map[string]*http.Request{}},
	}
	l.closing, l.close = context.WithCancel(context.Background())
	l.tasks = tasks{lab: l, running: map[types.ManagedObjectReference]*task{}}
	l.tasks.ctx, l.tasks.end = context.WithCancel(context.Background())
	// References of tasks are not used again by the next lab on the directory.
	l.tasks.n.Store(time.Now().UnixMilli())
	l.journal = &journal{lab: l, marked: map[types.ManagedObjectReference]bool{}}
	if err := l.start(ctx); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("lab: %w", err)
	}
	return l, nil
}

func (l *Lab) start(ctx context.Context) error {
	if err := l.lockDir(); err != nil {
		return err
	}
	var err error
	if l.id, err = loadIdentity(l.opts.Dir); err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	if l.opts.Password == "" {
		l.opts.Password = passwordOf(l.opts.Dir, l.opts.User)
	}
	go hostTSC() // It takes a moment, and the first VM needs it.
	run := filepath.Join(l.opts.Dir, "run")
	if err := os.MkdirAll(run, 0o700); err != nil {
		return err
	}
	if l.run, err = os.Open(run); err != nil {
		return err
	}
	for _, n := range l.opts.Datastores {
		if l.stores[n], err = openStore(l.opts.Dir, n); err != nil {
			delete(l.stores, n)
			return fmt.Errorf("datastore %s: %w", n, err)
		}
		l.stores[n].native = slices.Contains(l.opts.NativeDatastores, n)
	}
	for _, n := range l.opts.Networks {
		w, err := newNetwork(n)
		if err != nil {
			return fmt.Errorf("network %q: %w", n.Name, err)
		}
		l.nets[n.Name] = w
	}
	if err := l.openJournal(); err != nil {
		return err
	}
	if err := l.build(ctx); err != nil {
		return err
	}
	running, err := l.restoreInventory()
	if err != nil {
		return err
	}
	l.takeOver()
	if err := l.takeBack(ctx, running); err != nil {
		return err
	}
	if err := l.listen(); err != nil {
		return err
	}
	l.serve()
	l.goDo(func() { l.sweepSessions(l.closing) })
	l.log.Info("the lab is up", "url", l.url.String(), "dir", l.opts.Dir)
	return nil
}

// lockDir makes the directory and takes it for this lab.
func (l *Lab) lockDir() error {
	if err := os.MkdirAll(l.opts.Dir, 0o700); err != nil {
		return err
	}
	// Paths of files are compared with what QEMU's command line says.
	dir, err := filepath.EvalSymlinks(l.opts.Dir)
	if err != nil {
		return err
	}
	l.opts.Dir = dir
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("another lab uses %s: end it or name another directory", dir)
		}
		return err
	}
	l.lock = f
	return nil
}

// passwordOf returns the password that the directory knows for a user, or a new
// one.
func passwordOf(dir, user string) string {
	var s State
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err == nil && json.Unmarshal(b, &s) == nil && s.User == user && s.Password != "" {
		return s.Password
	}
	return randomText()
}

// Close ends every VM's QEMU, the servers and all goroutines. What is on the
// datastores stays, and so does the inventory. A second Close does nothing.
func (l *Lab) Close() error {
	l.closed.Do(func() {
		l.close()
		if l.http != nil {
			_ = l.http.Close()
		} else if l.listener != nil {
			_ = l.listener.Close()
		}
		l.tasks.close()
		l.mu.Lock()
		var ms []*machine
		for _, m := range l.machines {
			ms = append(ms, m)
		}
		l.mu.Unlock()
		var wg sync.WaitGroup
		for _, m := range ms {
			wg.Add(1)
			go func() {
				defer wg.Done()
				m.power.Lock()
				defer m.power.Unlock()
				if m.q != nil {
					m.q.stop()
				}
			}()
		}
		wg.Wait()
		l.wg.Wait()
		l.journal.flush()
		for _, n := range l.nets {
			n.close()
		}
		for _, s := range l.stores {
			_ = s.root.Close()
		}
		if l.run != nil {
			_ = l.run.Close()
		}
		if l.lock != nil {
			_ = l.lock.Close()
		}
	})
	return nil
}

// An Endpoint says how to reach a lab's API.
type Endpoint struct {
	URL            *url.URL // https://127.0.0.1:PORT/sdk, without the login
	User, Password string
	CA             []byte // the authority's certificate, PEM
	SHA1, SHA256   string // the server certificate's thumbprints, "AB:CD:…"
}

// LoginURL is the URL with user and password, as govmomi's clients take it.
func (e Endpoint) LoginURL() *url.URL {
	u := *e.URL
	u.User = url.UserPassword(e.User, e.Password)
	return &u
}

// Endpoint says how to reach the lab's API.
func (l *Lab) Endpoint() Endpoint {
	u := *l.url
	return Endpoint{URL: &u, User: l.opts.User, Password: l.opts.Password, CA: append([]byte(nil), l.id.ca...), SHA1: l.id.sha1(), SHA256: l.id.sha256()}
}

// Dir returns the lab's directory.
func (l *Lab) Dir() string { return l.opts.Dir }

// DialGuest connects to an address such as "192.168.127.20:22" of a guest in a
// port group, as from the port group's gateway. network is the port group's name;
// where it is empty, "tcp" or "tcp4", the one whose subnet has the address is
// taken. ctx bounds the dialling; the caller closes the connection.
func (l *Lab) DialGuest(ctx context.Context, network, address string) (net.Conn, error) {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("lab: dial guest: address: %w", err)
	}
	if !a.Addr().Is4() {
		return nil, fmt.Errorf("lab: dial guest: %s: port groups have IPv4 only", address)
	}
	w := l.nets[network]
	if w == nil && (network == "" || network == "tcp" || network == "tcp4") {
		for _, n := range l.nets {
			if n.subnet.Contains(a.Addr()) {
				w = n
			}
		}
	}
	if w == nil {
		return nil, fmt.Errorf("lab: dial guest: no network %q that has %s: %w", network, a.Addr(), fs.ErrNotExist)
	}
	c, err := w.dial(ctx, a)
	if err != nil {
		return nil, fmt.Errorf("lab: dial guest %s in %q: %w", address, w.Name, err)
	}
	return c, nil
}
