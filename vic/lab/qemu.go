package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
)

// A qemu is a running VM's process.
type qemu struct {
	kill    func()
	pid     int
	qmp     *qmp
	rpc     net.Conn
	served  chan struct{} // closed when the guest RPC server has ended
	done    chan struct{} // closed when the process has ended
	exit    string        // why it failed, when done is closed
	stderr  tail
	byGuest atomic.Bool // the guest asked for the end
	asked   atomic.Bool // we did

	mu    sync.Mutex
	ports map[int32]*port // of NICs, by key
}

// startTime bounds how long QEMU may take to answer.
const startTime = 30 * time.Second

// startQEMU boots a VM, or has it go on from hw.state, which is closed. The process is told of its sockets as open files, so
// that there is nothing to wait for and no path that could be too long.
func (l *Lab) startQEMU(ctx context.Context, m *machine, vm *simulator.VirtualMachine, s vmState, hw *hardware) (*qemu, error) {
	boot, err := l.bootFilesOf(hw)
	if err != nil {
		return nil, err
	}
	q := &qemu{done: make(chan struct{}), served: make(chan struct{}), ports: map[int32]*port{}}
	var files []*os.File
	closeFiles := func() {
		for _, f := range files {
			_ = f.Close()
		}
		files = nil
	}
	defer closeFiles()
	for _, name := range []string{"qmp", "rpc"} {
		f, _, err := l.socket(m.ref.Value + "." + name)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	fd := map[int32]int{}
	for _, n := range hw.nics {
		f, _, err := l.socket(nicSocket(m.ref.Value, n.Key))
		if err != nil {
			return nil, err
		}
		fd[n.Key] = 3 + len(files)
		files = append(files, f)
	}
	args := l.arguments(s, hw, boot, func(key int32) int { return fd[key] })
	args = append(args, "-D", l.marker(m.ref.Value))
	if hw.state != nil {
		args = append(args, "-incoming", fmt.Sprintf("fd:%d", 3+len(files)))
		files = append(files, hw.state)
	}
	cmd := exec.Command(l.opts.QEMU, args...)
	cmd.ExtraFiles = files
	cmd.Stdout, cmd.Stderr = &q.stderr, &q.stderr
	// A Ctrl-C in the terminal is for the lab, which then ends its VMs.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	l.logVM(hw.dir, "power on: %s %s", l.opts.QEMU, strings.Join(args, " "))
	err = cmd.Start()
	// From here on the sockets are QEMU's alone: if it ends, they close.
	closeFiles()
	if err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	q.kill, q.pid = func() { _ = cmd.Process.Kill() }, cmd.Process.Pid
	go func() {
		_ = cmd.Wait()
		if !cmd.ProcessState.Success() {
			q.exit = strings.TrimSpace(cmd.ProcessState.String() + " " + q.stderr.String())
		}
		close(q.done)
	}()
	err = l.greet(ctx, q, m, vm, hw)
	if err == nil && hw.state != nil {
		err = q.loaded(ctx)
	}
	if err != nil {
		q.kill()
		<-q.done
		q.close()
		if t := q.stderr.String(); t != "" {
			err = fmt.Errorf("QEMU: %s", t)
		} else if q.exit != "" {
			err = fmt.Errorf("%w (QEMU: %s)", err, q.exit)
		}
		return nil, err
	}
	return q, nil
}

// greet connects to a QEMU that has its sockets.
func (l *Lab) greet(ctx context.Context, q *qemu, m *machine, vm *simulator.VirtualMachine, hw *hardware) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	conn, err := l.dialQEMU(m.ref.Value + ".qmp")
	if err == nil {
		q.qmp, err = openQMP(ctx, conn.(*net.UnixConn), q.onEvent(l, m, vm))
		if err != nil {
			_ = conn.Close()
		}
	}
	for _, n := range hw.nics {
		if err == nil {
			err = l.plug(ctx, q, m, n)
		}
	}
	if err == nil {
		q.rpc, err = l.dialQEMU(m.ref.Value + ".rpc")
	}
	if err != nil {
		close(q.served)
		return err
	}
	go func() {
		defer close(q.served)
		l.serveGuest(q.rpc, m, vm)
	}()
	return nil
}

// nicSocket names the socket on which a VM's QEMU takes an adapter's frames.
func nicSocket(vm string, key int32) string { return fmt.Sprintf("%s.net%d", vm, key) }

// dialQEMU connects to a socket in run/, by the directory's open file.
func (l *Lab) dialQEMU(name string) (net.Conn, error) {
	return net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/%s", l.run.Fd(), name))
}

// onEvent keeps the inventory up to date with what happens in QEMU.
func (q *qemu) onEvent(l *Lab, m *machine, vm *simulator.VirtualMachine) func(string, json.RawMessage) {
	return func(name string, data json.RawMessage) {
		var d struct {
			Guest  bool
			Reason string
		}
		_ = json.Unmarshal(data, &d)
		switch name {
		case "SHUTDOWN":
			if d.Guest && !q.asked.Load() {
				q.byGuest.Store(true)
			}
		case "RESET":
			l.goDo(func() { l.guestReset(m, vm, d.Guest) })
		}
	}
}

// socket makes a listening Unix socket in run/ and returns it as a file that a
// child can inherit, with the address to dial. Both go by way of the directory's
// open file: a path of any length stays within what a socket's name may have.
func (l *Lab) socket(name string) (*os.File, string, error) {
	addr := fmt.Sprintf("/proc/self/fd/%d/%s", l.run.Fd(), name)
	_ = os.Remove(filepath.Join(l.run.Name(), name))
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: addr, Net: "unix"})
	if err != nil {
		return nil, "", err
	}
	ln.SetUnlinkOnClose(false)
	f, err := ln.File()
	err = errors.Join(err, ln.Close())
	return f, addr, err
}

// stop ends the process at once, as the power switch does.
func (q *qemu) stop() {
	q.asked.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, _ = q.qmp.do(ctx, "quit", nil)
	select {
	case <-q.done:
	case <-ctx.Done():
		q.kill()
		<-q.done
	}
}

// close frees what belonged to a process that has ended.
func (q *qemu) close() {
	if q.qmp != nil {
		q.qmp.close()
	}
	if q.rpc != nil {
		_ = q.rpc.Close()
	}
	<-q.served
	q.unplugAll()
}

func (q *qemu) unplugAll() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range q.ports {
		p.close()
	}
	clear(q.ports)
}

// failure says why the process ended when nobody asked for it.
func (q *qemu) failure() string {
	if q.asked.Load() || q.byGuest.Load() {
		return ""
	}
	return q.exit
}

// tail keeps the last 8 KiB that a process said.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if n := len(t.b) - 8<<10; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}

// logVM appends a line to the VM's vmware.log.
func (l *Lab) logVM(dir location, format string, args ...any) {
	f, err := dir.root.OpenFile(dir.rel+"/vmware.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = fmt.Fprintf(f, "%s %s\n", time.Now().UTC().Format(time.RFC3339Nano), fmt.Sprintf(format, args...))
}
