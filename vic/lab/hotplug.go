package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// unplugTime bounds how long a guest may take to let go of a device.
const unplugTime = 15 * time.Second

// hotPlug makes one change in a running VM and returns how to undo it. m.power
// is held. A control plane without QEMU has the locks and nothing else.
func (l *Lab) hotPlug(ctx context.Context, m *machine, name string, c hotChange) (undo func(), fault types.BaseMethodFault) {
	switch d := c.dev.(type) {
	case *types.VirtualDisk:
		u, fault := l.diskUnit(d, l.controllerOf(m, d), false)
		if fault != nil {
			return nil, fault
		}
		if c.op == types.VirtualDeviceConfigSpecOperationAdd {
			return l.plugDisk(ctx, m, name, u)
		}
		if c.op == types.VirtualDeviceConfigSpecOperationRemove {
			return l.unplugDisk(ctx, m, name, u)
		}
	case *types.VirtualVmxnet3:
		switch c.op {
		case types.VirtualDeviceConfigSpecOperationAdd:
			return l.plugNIC(ctx, m, d)
		case types.VirtualDeviceConfigSpecOperationRemove:
			return l.unplugNIC(ctx, m, d)
		default:
			return l.switchNIC(m, d, c.old.(*types.VirtualVmxnet3)), nil
		}
	}
	return func() {}, nil
}

// controllerOf finds the SCSI controller of a disk by its key: 1000 and the bus.
func (l *Lab) controllerOf(_ *machine, d *types.VirtualDisk) types.BaseVirtualDevice {
	c := new(types.ParaVirtualSCSIController)
	c.Key, c.BusNumber = d.ControllerKey, d.ControllerKey-1000
	return c
}

func (l *Lab) plugDisk(ctx context.Context, m *machine, name string, u *diskUnit) (func(), types.BaseMethodFault) {
	var write, read []location
	fault := l.withFiles(func() (fault types.BaseMethodFault) {
		if write, read, fault = u.open(l); fault != nil {
			return fault
		}
		if f, by := l.locks.acquire(m.ref.Value, name, write, read); f != "" {
			return fileLocked(f, by)
		}
		if fault := l.written(u); fault != nil {
			l.locks.release(m.ref.Value, write, read)
			return fault
		}
		return nil
	})
	if fault != nil {
		return nil, fault
	}
	unlock := func() { l.locks.release(m.ref.Value, write, read) }
	if q := m.q; q != nil {
		if err := q.addDisk(ctx, u); err != nil {
			unlock()
			return nil, vmConfigFault("%v", err)
		}
	}
	m.write, m.read = append(m.write, write...), append(m.read, read...)
	return func() {
		if m.q != nil {
			// The guest may hold on to the disk; then it stays until power-off,
			// and so do its locks.
			c, cancel := context.WithTimeout(context.Background(), unplugTime)
			defer cancel()
			if m.q.removeDisk(c, u) != nil {
				return
			}
		}
		m.forget(write, read)
		unlock()
	}, nil
}

func (l *Lab) unplugDisk(ctx context.Context, m *machine, name string, u *diskUnit) (func(), types.BaseMethodFault) {
	write, read, fault := u.open(l)
	if fault != nil {
		return nil, fault
	}
	if q := m.q; q != nil {
		if err := q.removeDisk(ctx, u); err != nil {
			return nil, vmConfigFault("%v", err)
		}
	}
	m.forget(write, read)
	l.locks.release(m.ref.Value, write, read)
	return func() { _, _ = l.plugDisk(context.Background(), m, name, u) }, nil
}

// growDisk makes a disk of a running VM larger, whose power state is held. The guest
// hears of it, and asks for the size, if its kernel is told to. A disk that QEMU has
// open by its descriptor, as those of earlier labs have all, is taken out for that,
// and the VM stands still meanwhile.
func (l *Lab) growDisk(ctx context.Context, m *machine, vm *simulator.VirtualMachine, s vmState, d *types.VirtualDisk, bytes int64) types.BaseMethodFault {
	at, fault := l.resolve(diskFile(d))
	if fault != nil {
		return fault
	}
	extend := func() types.BaseMethodFault { return l.extendDisk(at, bytes, m.ref.Value) }
	if m.q == nil {
		return l.withFiles(extend)
	}
	have, err := m.q.disks(ctx)
	if err != nil {
		return vmConfigFault("%v", err)
	}
	if have[d.Key].driver != "raw" {
		if fault := l.withFiles(func() types.BaseMethodFault { _, fault := l.extendable(at, bytes); return fault }); fault != nil {
			return fault
		}
		return l.changeDisks(ctx, m, vm, s, extend)
	}
	return l.withFiles(func() types.BaseMethodFault {
		if _, fault := l.extendable(at, bytes); fault != nil {
			return fault
		}
		if _, err := m.q.qmp.do(ctx, "block_resize", fields{"node-name": have[d.Key].node, "size": bytes}); err != nil {
			return vmConfigFault("%v", err)
		}
		return extend()
	})
}

// forget takes locked files off the machine's list, once each.
func (m *machine) forget(write, read []location) {
	m.write, m.read = without(m.write, write), without(m.read, read)
}

func without(list, gone []location) []location {
	n := map[location]int{}
	for _, g := range gone {
		n[g]++
	}
	var out []location
	for _, x := range list {
		if n[x] > 0 {
			n[x]--
			continue
		}
		out = append(out, x)
	}
	return out
}

func (q *qemu) addDisk(ctx context.Context, u *diskUnit) error {
	n := u.node()
	if _, err := q.qmp.do(ctx, "blockdev-add", n); err != nil {
		return err
	}
	if _, err := q.qmp.do(ctx, "device_add", u.device()); err != nil {
		_, _ = q.qmp.do(ctx, "blockdev-del", fields{"node-name": n["node-name"]})
		return err
	}
	return nil
}

func (q *qemu) removeDisk(ctx context.Context, u *diskUnit) error {
	if err := q.removeDevice(ctx, fmt.Sprintf("d%d", u.key)); err != nil {
		return err
	}
	_, err := q.qmp.do(ctx, "blockdev-del", fields{"node-name": fmt.Sprintf("n%d", u.key)})
	return err
}

// removeDevice asks the guest to let go of a device and waits until it has.
func (q *qemu) removeDevice(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, unplugTime)
	defer cancel()
	hit, forget := q.qmp.expect("DEVICE_DELETED", func(b json.RawMessage) bool {
		var d struct{ Device string }
		return json.Unmarshal(b, &d) == nil && d.Device == id
	})
	defer forget()
	if _, err := q.qmp.do(ctx, "device_del", fields{"id": id}); err != nil {
		return err
	}
	select {
	case <-hit:
		return nil
	case <-q.qmp.gone:
		return errQEMUGone
	case <-ctx.Done():
		return errors.New("the guest does not let go of the device")
	}
}

func (l *Lab) plugNIC(ctx context.Context, m *machine, n *types.VirtualVmxnet3) (func(), types.BaseMethodFault) {
	q := m.q
	if q == nil {
		return func() {}, nil
	}
	if err := l.addNIC(ctx, q, m, n); err != nil {
		return nil, vmConfigFault("%v", err)
	}
	return func() {
		c, cancel := context.WithTimeout(context.Background(), unplugTime)
		defer cancel()
		_ = q.removeNIC(c, n.Key)
	}, nil
}

func (l *Lab) unplugNIC(ctx context.Context, m *machine, n *types.VirtualVmxnet3) (func(), types.BaseMethodFault) {
	q := m.q
	if q == nil {
		return func() {}, nil
	}
	if err := q.removeNIC(ctx, n.Key); err != nil {
		return nil, vmConfigFault("%v", err)
	}
	return func() { _, _ = l.plugNIC(context.Background(), m, n) }, nil
}

// addNIC adds an adapter to a running VM. QEMU makes the socket itself: an open
// file passed to its monitor would not do, because it listens in a thread that
// has no monitor (7.2, util/qemu-sockets.c, socket_get_fd).
func (l *Lab) addNIC(ctx context.Context, q *qemu, m *machine, n *types.VirtualVmxnet3) error {
	ctx, cancel := context.WithTimeout(ctx, unplugTime)
	defer cancel()
	// The directory's open file, seen from another process, keeps the name
	// within what a socket's may have.
	path := fmt.Sprintf("/proc/%d/fd/%d/%s", os.Getpid(), l.run.Fd(), nicSocket(m.ref.Value, n.Key))
	id := fmt.Sprintf("net%d", n.Key)
	if _, err := q.qmp.do(ctx, "netdev_add", fields{"type": "stream", "id": id, "server": true, "addr": fields{"type": "unix", "path": path}}); err != nil {
		return err
	}
	undo := func() { _, _ = q.qmp.do(context.WithoutCancel(ctx), "netdev_del", fields{"id": id}) }
	var err error
	for try := time.Millisecond; ; try *= 2 {
		if err = l.plug(ctx, q, m, n); err == nil || ctx.Err() != nil {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(try):
		}
	}
	if err != nil {
		undo()
		return fmt.Errorf("QEMU does not listen for its network adapter: %w", err)
	}
	if _, err := q.qmp.do(ctx, "device_add", nicDevice(n)); err != nil {
		undo()
		q.unplug(n.Key)
		return fmt.Errorf("%w (a running VM has room for four more adapters)", err)
	}
	return nil
}

// unplug ends the lab's end of a NIC.
func (q *qemu) unplug(key int32) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if p := q.ports[key]; p != nil {
		p.close()
		delete(q.ports, key)
	}
}

func (q *qemu) removeNIC(ctx context.Context, key int32) error {
	if err := q.removeDevice(ctx, fmt.Sprintf("e%d", key)); err != nil {
		return err
	}
	_, err := q.qmp.do(ctx, "netdev_del", fields{"id": fmt.Sprintf("net%d", key)})
	q.unplug(key)
	return err
}

// switchNIC connects a running NIC to another port group, or pulls or plugs its
// cable.
func (l *Lab) switchNIC(m *machine, n, old *types.VirtualVmxnet3) (undo func()) {
	l.cable(m, n)
	return func() { l.cable(m, old) }
}

func (l *Lab) cable(m *machine, n *types.VirtualVmxnet3) {
	q := m.q
	if q == nil {
		return
	}
	q.mu.Lock()
	p := q.ports[n.Key]
	q.mu.Unlock()
	b, ok := n.Backing.(*types.VirtualEthernetCardNetworkBackingInfo)
	if p == nil || !ok {
		return
	}
	up := n.Connectable == nil || n.Connectable.Connected
	if up {
		p.connect(l.nets[b.DeviceName].segment)
	} else {
		p.connect(nil)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, _ = q.qmp.do(ctx, "set_link", fields{"name": fmt.Sprintf("net%d", n.Key), "up": up})
}
