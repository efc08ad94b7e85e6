//go:build linux && amd64

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/vicsdk/vic-go/vic/tether"
)

// A runner starts the container's process, each time in a world of its own on
// the same root filesystem. It implements tether.Runner.
type runner struct {
	m       *machine
	etc     etcFiles
	started func() // called once, after the first start
	// group of the run that is to come or goes on.
	group *os.File
	// oomKills of the runs that have ended.
	oomKills int
}

// oneRun is one run of the process and the world that it lives in.
type oneRun struct {
	*process
	r     *runner
	ns    *namespace
	ended chan struct{}
	ooms  sync.WaitGroup
}

// Start implements tether.Runner.
func (r *runner) Start(n int) (tether.RunningMain, error) {
	if n > 1 {
		if err := r.renewGroup(); err != nil {
			return nil, err
		}
	}
	r.m.mounting.Lock()
	defer r.m.mounting.Unlock()
	ns, err := r.m.newNamespace(r.etc)
	if err != nil {
		return nil, err
	}
	if n == 1 {
		r.m.mark("container root")
	}
	p, err := startProcess(ns, r.m.reaper, r.group, r.m.config.Process, hostname(r.m.config), r.m.output.Writer(tether.Stdout), r.m.output.Writer(tether.Stderr))
	if err != nil {
		endContainer(ns.pid1)
		return nil, err
	}
	r.m.world.enter(ns, r.group)
	if n == 1 {
		r.m.mark("process")
		r.started()
	}
	o := &oneRun{process: p, r: r, ns: ns, ended: make(chan struct{})}
	o.ooms.Go(func() { r.watchOOM(o.ended) })
	return o, nil
}

// Probe implements tether.Runner.
func (r *runner) Probe(ctx context.Context, args []string, out io.Writer) (int, error) {
	p := r.m.config.Process
	p.Args, p.TTY, p.OpenStdin = args, false, false
	s, err := r.m.world.beside(p, out, out)
	var failed *startError
	if errors.As(err, &failed) && failed.code != codeSetup {
		// As a shell tells it, and as Docker's exec does.
		_, _ = fmt.Fprintln(out, err)
		return failed.code, nil
	}
	if err != nil {
		return -1, err
	}
	return s.finish(ctx), nil
}

// finish waits for the end of a process beside the main one and of its output,
// and kills it, with its process group, where ctx ends before.
func (s *process) finish(ctx context.Context) (code int) {
	kill := context.AfterFunc(ctx, func() { _ = s.reaper.killGroup(s.pid) })
	defer kill()
	ws := <-s.ended
	done := make(chan struct{})
	go func() {
		s.output.Wait() // Its children may have it; they end with the container.
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// Changed implements tether.Runner.
func (r *runner) Changed() { r.m.tell() }

// renewGroup makes the container's cgroup anew, so that nothing is left of a run:
// no group that it made, no count, no setting.
func (r *runner) renewGroup() error {
	_ = r.group.Close()
	if err := removeCgroup(containerGroup); err != nil {
		return fmt.Errorf("what is left of the last run: %w", err)
	}
	var err error
	r.group, err = containerCgroup()
	return err
}

// Wait implements tether.RunningMain.
func (o *oneRun) Wait(ended func()) tether.Exit {
	exit := o.process.wait(func() {
		ended()
		endContainer(o.ns.pid1)
		o.r.m.world.leave()
	})
	o.ns.close()
	close(o.ended)
	o.ooms.Wait()
	kills := oomKills()
	exit.OOMKilled = kills > 0
	o.r.oomKills += kills
	o.r.m.container.OOMKills(o.r.oomKills)
	return exit
}
