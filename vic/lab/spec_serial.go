package lab

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

func (p *plan) addSerial(i int, d *types.VirtualSerialPort) types.BaseMethodFault {
	if p.running {
		return deviceFault(i, "serial ports cannot be added while the VM runs")
	}
	key, ok := p.nextKey(9000, maxSerial)
	if !ok {
		return deviceFault(i, "a VM in the lab has at most %d serial ports of its own: the fourth is the lab's", maxSerial)
	}
	d.Key, d.ControllerKey, d.UnitNumber = key, 400, types.NewInt32(key-9000)
	switch b := d.Backing.(type) {
	case *types.VirtualSerialPortURIBackingInfo:
		if _, err := parseSerial(b); err != nil {
			return deviceFault(i, "backing: %v", err)
		}
	case *types.VirtualSerialPortFileBackingInfo:
		at, fault := p.lab.resolve(b.FileName)
		if fault != nil {
			return fault
		}
		if at.rel == "." {
			at, _ = p.dir.join(fmt.Sprintf("serial%d.log", key-9000))
		}
		if st, err := at.parent().stat(); err != nil || !st.IsDir() {
			return fileNotFound(at.parent().String())
		}
		b.FileName = at.String()
	default:
		return deviceFault(i, "backing is %T: serial ports have a URI or a file", d.Backing)
	}
	return nil
}

// A serialLine is a network serial port.
type serialLine struct {
	host, port     string
	server, telnet bool
}

// parseSerial reads a URI such as tcp://127.0.0.1:4000 with its direction. A
// port that the VM listens on is on loopback: "tcp://:4000" is 127.0.0.1.
func parseSerial(b *types.VirtualSerialPortURIBackingInfo) (serialLine, error) {
	var s serialLine
	if b.ProxyURI != "" {
		return s, fmt.Errorf("proxyURI is set: the lab connects serial ports without a concentrator")
	}
	u, err := url.Parse(b.ServiceURI)
	if err != nil || u.Scheme != "tcp" && u.Scheme != "telnet" {
		return s, fmt.Errorf("serviceURI %q is not tcp://host:port or telnet://host:port", b.ServiceURI)
	}
	s.host, s.port, s.telnet = u.Hostname(), u.Port(), u.Scheme == "telnet"
	if n, err := strconv.ParseUint(s.port, 10, 16); err != nil || n == 0 {
		return s, fmt.Errorf("serviceURI %q has no port of 1 to 65535", b.ServiceURI)
	}
	switch types.VirtualDeviceURIBackingOptionDirection(b.Direction) {
	case types.VirtualDeviceURIBackingOptionDirectionServer:
		s.server = true
		if s.host == "" {
			s.host = "127.0.0.1"
		}
		if err := loopback(net.JoinHostPort(s.host, s.port)); err != nil {
			return s, err
		}
	case types.VirtualDeviceURIBackingOptionDirectionClient:
		if s.host == "" {
			return s, fmt.Errorf("serviceURI %q names no host to connect to", b.ServiceURI)
		}
	default:
		return s, fmt.Errorf("direction %q is not client or server", b.Direction)
	}
	if strings.ContainsAny(s.host, ",=\x00 \n") {
		return s, fmt.Errorf("serviceURI %q has a strange host", b.ServiceURI)
	}
	return s, nil
}

// leads tells whether a serial port's line leads anywhere from power-on on.
func leads(p *types.VirtualSerialPort) bool {
	return p.Connectable == nil || p.Connectable.StartConnected
}

// DialHost connects to a network serial port at the host of its VM: to an address
// such as "host1:12000", where a VM that is on listens on that port. The lab's
// hosts are all this machine. ctx bounds the dialling; the caller closes the
// connection.
func (l *Lab) DialHost(ctx context.Context, address string) (net.Conn, error) {
	name, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("lab: dial host: %w", err)
	}
	lc := l.context()
	for _, e := range l.reg.All("VirtualMachine") {
		vm, ok := e.(*simulator.VirtualMachine)
		if !ok {
			continue
		}
		s := l.look(vm)
		h, ok := l.reg.Get(s.host).(*simulator.HostSystem)
		if !ok || s.power != types.VirtualMachinePowerStatePoweredOn {
			continue
		}
		var host string
		lc.WithLock(h, func() { host = h.Name })
		if host != name {
			continue
		}
		for _, d := range s.config.Hardware.Device {
			p, ok := d.(*types.VirtualSerialPort)
			if !ok || !leads(p) {
				continue
			}
			b, ok := p.Backing.(*types.VirtualSerialPortURIBackingInfo)
			if !ok {
				continue
			}
			if u, err := parseSerial(b); err == nil && u.server && u.port == port {
				return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(u.host, u.port))
			}
		}
	}
	return nil, fmt.Errorf("lab: dial host %s: no VM that is on there has a serial port that listens on it: %w", address, fs.ErrNotExist)
}
