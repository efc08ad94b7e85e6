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
	cmd     *exec.Cmd
	qmp     *qmp
	rpc     net.Conn
	served  chan struct{} // closed when the guest RPC server has ended
	record  string        // its file in run/
	done    chan struct{} // closed when the process has ended
	stderr  tail
	byGuest atomic.Bool // the guest asked for the end
	asked   atomic.Bool // we did

	mu    sync.Mutex
	ports map[int32]*port // of NICs, by key
}

// startTime bounds how long QEMU may take to answer.
const startTime = 30 * time.Second

// startQEMU boots a VM. The process is told of its sockets as open files, so
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
	dial := map[string]string{}
	for _, name := range []string{"qmp", "rpc"} {
		f, addr, err := l.socket(m.ref.Value + "." + name)
		if err != nil {
			return nil, err
		}
		files, dial[name] = append(files, f), addr
	}
	fd := map[int32]int{}
	for _, n := range hw.nics {
		p, f, err := l.plug(n)
		if err != nil {
			q.unplugAll()
			return nil, err
		}
		fd[n.Key] = 3 + len(files)
		files = append(files, f)
		q.ports[n.Key] = p
	}
	args := l.arguments(s, hw, boot, l.useKVM(ctx), func(key int32) int { return fd[key] })
	args = append(args, "-D", l.marker(m.ref.Value))
	q.cmd = exec.Command(l.opts.QEMU, args...)
	q.cmd.ExtraFiles = files
	q.cmd.Stdout, q.cmd.Stderr = &q.stderr, &q.stderr
	// A Ctrl-C in the terminal is for the lab, which then ends its VMs.
	q.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	l.logVM(hw.dir, "power on: %s %s", l.opts.QEMU, strings.Join(args, " "))
	err = q.cmd.Start()
	// From here on the sockets are QEMU's alone: if it ends, they close.
	closeFiles()
	if err != nil {
		q.unplugAll()
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	go func() {
		_ = q.cmd.Wait()
		close(q.done)
	}()
	if err := l.greet(ctx, q, m, vm, dial); err != nil {
		_ = q.cmd.Process.Kill()
		<-q.done
		q.close()
		if t := q.stderr.String(); t != "" {
			err = fmt.Errorf("QEMU: %s", t)
		}
		return nil, err
	}
	return q, nil
}

// greet connects to a started QEMU and writes its record.
func (l *Lab) greet(ctx context.Context, q *qemu, m *machine, vm *simulator.VirtualMachine, dial map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := l.writeRecord(q, m.ref.Value); err != nil {
		close(q.served)
		return err
	}
	conn, err := net.Dial("unix", dial["qmp"])
	if err == nil {
		q.qmp, err = openQMP(ctx, conn.(*net.UnixConn), q.onEvent(l, m, vm))
		if err != nil {
			_ = conn.Close()
		}
	}
	if err == nil {
		q.rpc, err = net.Dial("unix", dial["rpc"])
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
		_ = q.cmd.Process.Kill()
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
	if q.record != "" {
		_ = os.Remove(q.record)
	}
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
	if q.asked.Load() || q.byGuest.Load() || q.cmd.ProcessState == nil || q.cmd.ProcessState.Success() {
		return ""
	}
	return strings.TrimSpace(q.cmd.ProcessState.String() + " " + q.stderr.String())
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
