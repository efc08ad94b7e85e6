package containervm

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

// lineKeepAlive is how long a guest on a slow line may be silent.
const lineKeepAlive = time.Minute

// serialCOM is the serial port of controllers: COM2.
const serialCOM = 2

// Ports that VMs listen on at their hosts are even and from here on; below what
// hosts draw for connections that they make, and above what services have.
const (
	firstPort = 10000
	lastPort  = 29998
)

// freePort draws a port that no container of the VCH has. Where two creators draw
// the same at the same time, or something else on a host has it, vSphere tells
// when the VM is powered on.
func freePort(ctx context.Context, c *vic.Client, owner vic.Owner) (int, error) {
	folder := types.ManagedObjectReference{Type: "Folder", Value: owner.Folder.ID}
	all, err := vsphere.Children[mo.VirtualMachine](ctx, c.Session(), folder, "VirtualMachine", []string{"config.hardware.device"})
	if err != nil {
		return 0, err
	}
	taken := map[int]bool{}
	for i := range all {
		if p := linePort(&all[i]); p != 0 {
			taken[p] = true
		}
	}
	n := (lastPort - firstPort) / 2
	if len(taken) >= n {
		return 0, fault.Of(vic.ErrUnavailable, "all ports for serial lines are taken")
	}
	for {
		if p := firstPort + 2*rand.IntN(n+1); !taken[p] {
			return p, nil
		}
	}
}

// linePort is the port of a VM's serial line, or 0.
func linePort(m *mo.VirtualMachine) int {
	if m.Config == nil {
		return 0
	}
	for _, d := range m.Config.Hardware.Device {
		s, ok := d.(*types.VirtualSerialPort)
		if !ok || s.UnitNumber == nil || *s.UnitNumber != serialCOM-1 {
			continue
		}
		b, ok := s.Backing.(*types.VirtualSerialPortURIBackingInfo)
		if !ok || b.Direction != string(types.VirtualDeviceURIBackingOptionDirectionServer) {
			continue
		}
		u, err := url.Parse(b.ServiceURI)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseUint(u.Port(), 10, 16); err == nil {
			return int(n)
		}
	}
	return 0
}

// A line is what the users of a VM's serial line in one session share: the line
// has room for one connection, and who attaches wants to send signals beside.
type line struct {
	turn    chan struct{} // whoever dials has it
	t       *tether.Client
	hostKey string
}

// dialSerial connects over the VM's serial line, or takes a share of the
// connection that there is.
func dialSerial(ctx context.Context, c *vic.Client, vm types.ManagedObjectReference, cfg tether.ClientConfig) (*tether.Client, error) {
	v, _ := c.Session().Lines.LoadOrStore(vm, &line{turn: make(chan struct{}, 1)})
	l := v.(*line)
	ctx, cancel := context.WithTimeout(ctx, dialSerialTime)
	defer cancel()
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if l.t != nil && l.hostKey == cfg.HostKey {
		if t, ok := l.t.Share(); ok {
			return t, nil
		}
	}
	t, err := openSerial(ctx, c, vm, cfg)
	if err != nil {
		return nil, err
	}
	l.t, l.hostKey = t, cfg.HostKey
	return t, nil
}

// openSerial connects at the host that the VM is on now, to the port that vSphere
// says. The guest has no say in either.
func openSerial(ctx context.Context, c *vic.Client, vm types.ManagedObjectReference, cfg tether.ClientConfig) (*tether.Client, error) {
	var m mo.VirtualMachine
	if err := vsphere.Properties(ctx, c.Session(), vm, []string{"config.hardware.device", "runtime.host"}, &m); err != nil {
		return nil, err
	}
	port := linePort(&m)
	if port == 0 || m.Runtime.Host == nil {
		return nil, fault.Of(vic.ErrState, "the VM has no serial port for controllers any more, or no host")
	}
	var h mo.HostSystem
	if err := vsphere.Properties(ctx, c.Session(), *m.Runtime.Host, []string{"name"}, &h); err != nil {
		return nil, err
	}
	address := net.JoinHostPort(h.Name, strconv.Itoa(port))
	conn, err := c.DialHost(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	line, err := tether.DialLine(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", address, err)
	}
	cfg.KeepAlive = lineKeepAlive // a sign of life waits behind other bytes
	t, err := tether.NewClient(ctx, line, cfg)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", address, err)
	}
	return t, nil
}
