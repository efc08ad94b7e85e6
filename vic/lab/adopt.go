package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"golang.org/x/sys/unix"
)

// takeBack puts power states right when the inventory is there again. A VM that
// was on and whose QEMU lives is taken over with all that the lab has open of a
// VM: QEMU's monitor, the guest's RPC and the adapters are sockets in run/ on
// which QEMU listens. What the guest asked for meanwhile it asks for again
// (package rpci); frames that it sent are lost. The other VMs that were on are
// off, and the other QEMUs are ended: their VMs' power-on was never told of.
func (l *Lab) takeBack(ctx context.Context, running []*simulator.VirtualMachine) error {
	alive, err := leftovers(l.run.Name())
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	for _, vm := range running {
		m := l.machines[vm.Self]
		why := "its QEMU had ended with the lab or while no lab was up"
		if pid, ok := alive[vm.Self.Value]; ok && !l.opts.NoQEMU {
			err := l.adopt(ctx, m, vm, pid)
			if err == nil {
				delete(alive, vm.Self.Value)
				kept[vm.Self.Value] = true
				continue
			}
			why = fmt.Sprintf("its QEMU, process %d, cannot be taken over: %v", pid, err)
			if err := end(pid, l.run.Name()); err != nil {
				return fmt.Errorf("end QEMU %d of an earlier lab: %w", pid, err)
			}
			delete(alive, vm.Self.Value)
		}
		m.power.Lock()
		if m.noted.State != "" {
			l.stopped(m, vm, nil, vm.Name, suspended) // as it was about to be
		} else {
			l.log.Warn("a VM that was on is off", "vm", vm.Name, "why", why)
			l.poweredOff(m, vm, nil, vm.Name)
		}
		m.power.Unlock()
	}
	for _, pid := range alive {
		if err := end(pid, l.run.Name()); err != nil {
			return fmt.Errorf("end QEMU %d of an earlier lab: %w", pid, err)
		}
	}
	l.journal.flush()
	left, err := os.ReadDir(l.run.Name())
	if err != nil {
		return err
	}
	for _, e := range left {
		if vm, _, _ := strings.Cut(e.Name(), "."); kept[vm] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(l.run.Name(), e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// adopt takes over the QEMU of a VM that an earlier lab started.
func (l *Lab) adopt(ctx context.Context, m *machine, vm *simulator.VirtualMachine, pid int) error {
	m.power.Lock()
	defer m.power.Unlock()
	s := l.look(vm)
	hw, fault := l.hardware(s)
	if fault == nil {
		fault = hw.openDisks(l)
	}
	if fault != nil {
		return errors.New(words(fault))
	}
	if f, by := l.locks.acquire(m.ref.Value, s.name, hw.write, hw.read); f != "" {
		return fmt.Errorf("%s is in use by %s", f, by)
	}
	if state := l.noted(m.ref).State; state != "" {
		// It was about to be suspended, and goes on instead.
		l.note(m, func(n *labState) { n.State = "" })
		l.journal.flush()
		l.dropState(state)
	}
	q, err := l.reach(ctx, m, vm, hw, pid)
	if err != nil {
		l.locks.release(m.ref.Value, hw.write, hw.read)
		return err
	}
	m.q, m.on, m.write, m.read = q, true, hw.write, hw.read
	l.logVM(hw.dir, "taken over by another lab process, QEMU is process %d", pid)
	l.goDo(func() { l.watch(m, vm, q, s.name) })
	return nil
}

// reach connects to a QEMU that is not this process's child.
func (l *Lab) reach(ctx context.Context, m *machine, vm *simulator.VirtualMachine, hw *hardware, pid int) (*qemu, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	q := &qemu{pid: pid, done: make(chan struct{}), served: make(chan struct{}), ports: map[int32]*port{}}
	q.kill = func() { _ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) }
	if marked(pid, l.run.Name()) != m.ref.Value {
		_ = unix.Close(fd)
		return nil, errors.New("it has ended")
	}
	if err = l.greet(ctx, q, m, vm, hw); err == nil {
		err = q.asExpected(ctx, hw)
	}
	if err != nil {
		q.close()
		_ = unix.Close(fd)
		return nil, err
	}
	go func() {
		// The exit status is its parent's to know.
		_, _ = awaitEnd(fd, -1)
		q.exit = "it ended without a word to the lab that took it over"
		close(q.done)
		_ = unix.Close(fd)
	}()
	return q, nil
}

// asExpected checks that a QEMU has the disks of its VM. One that a lab had
// stopped when it was killed, perhaps with its disks out, goes on.
func (q *qemu) asExpected(ctx context.Context, hw *hardware) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	have, err := q.disks(ctx)
	if err != nil {
		return err
	}
	st, err := q.status(ctx)
	if err != nil {
		return err
	}
	stopped := st == "paused" || st == "postmigrate"
	for _, u := range hw.disks {
		d := have[u.key]
		flat, is := u.flat()
		if d.file != u.at.file() && !(is && d.file == flat.file()) && !(stopped && d.node == fmt.Sprintf("z%d", u.key)) {
			return fmt.Errorf("its disk %d is %q, not %s", u.key, d.file, u.at)
		}
	}
	switch {
	case st == "running":
		return nil
	case stopped:
		return q.disksIn(ctx, hw)
	}
	return fmt.Errorf("it is in the state %q", st)
}

// A plugged is what a disk device has.
type plugged struct {
	node   string // the top node's name
	driver string // of the top node
	file   string // that of the descriptor, or of a flat disk's extent; "" of what is no file
}

// disks tells what QEMU's disk devices have, by the VM's keys.
func (q *qemu) disks(ctx context.Context) (map[int32]plugged, error) {
	b, err := q.qmp.do(ctx, "query-block", nil)
	if err != nil {
		return nil, err
	}
	var list []struct {
		Qdev     string
		Inserted *struct {
			Node string `json:"node-name"`
			Drv  string
			File string
		}
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, err
	}
	out := map[int32]plugged{}
	for _, d := range list {
		var key int32
		if d.Inserted == nil {
			continue
		}
		if _, err := fmt.Sscanf(filepath.Base(d.Qdev), "d%d", &key); err == nil {
			out[key] = plugged{d.Inserted.Node, d.Inserted.Drv, fileOf(d.Inserted.File)}
		}
	}
	return out, nil
}

// fileOf is the file of a node's name as QEMU spells it: where the node was given
// parents of its own, the name is its options.
func fileOf(name string) string {
	opts, ok := strings.CutPrefix(name, "json:")
	if !ok {
		return name
	}
	var n struct {
		File json.RawMessage
	}
	var f struct{ Filename string }
	if json.Unmarshal([]byte(opts), &n) != nil {
		return ""
	}
	if json.Unmarshal(n.File, &f) == nil {
		return f.Filename
	}
	return ""
}
