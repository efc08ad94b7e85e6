package tether

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// closeTimeout bounds how long a server waits for a controller to confirm
// that it has taken the end of a stream.
const closeTimeout = 10 * time.Second

type serverConn struct {
	server    *Server
	conn      *ssh.ServerConn
	authority string // that certified the controller, in SSH's wire form
}

// serve handles a connection until it ends, and returns when all of its
// channels have ended.
func (c *serverConn) serve(ctx context.Context, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for r := range requests {
			c.server.config.Applier.touch()
			if r.WantReply {
				// Every request is answered; it is a sign of life.
				_ = r.Reply(r.Type == requestPing, nil)
			}
		}
	})
	slots := make(chan struct{}, maxChannels)
	for n := range channels {
		handle := c.handler(n)
		if handle == nil {
			_ = n.Reject(ssh.UnknownChannelType, fmt.Sprintf("unknown channel type %.60q", n.ChannelType()))
			continue
		}
		if len(n.ExtraData()) > maxDocument {
			_ = n.Reject(ssh.Prohibited, fmt.Sprintf("more than %d bytes of parameters", maxDocument))
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = n.Reject(ssh.ResourceShortage, fmt.Sprintf("more than %d channels", maxChannels))
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			handle(ctx, n)
		})
	}
}

func (c *serverConn) handler(n ssh.NewChannel) func(context.Context, ssh.NewChannel) {
	if c.server.config.Applier != nil {
		switch n.ChannelType() {
		case channelApply:
			return c.apply
		case channelCall:
			return c.call
		}
		return nil
	}
	switch n.ChannelType() {
	case channelAttach:
		return c.attach
	case channelCall:
		return c.call
	case channelExec:
		return c.exec
	case channelLogs:
		return c.logs
	case channelTarOut:
		return c.tarOut
	case channelTarIn:
		return c.tarIn
	case channelTree:
		return c.tree
	}
	return nil
}

// accept opens a channel whose context ends when the peer closes it.
func accept(ctx context.Context, n ssh.NewChannel, request func(*ssh.Request)) (context.Context, ssh.Channel, <-chan struct{}, context.CancelFunc) {
	ch, requests, err := n.Accept()
	if err != nil {
		return nil, nil, nil, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		defer cancel()
		for r := range requests {
			request(r)
		}
	}()
	return ctx, ch, gone, cancel
}

func refuse(r *ssh.Request) {
	if r.WantReply {
		_ = r.Reply(false, nil)
	}
}

// finish closes a channel and waits, not for ever, until the peer has closed
// it too, which it does after it has read everything before.
func finish(ch ssh.Channel, gone <-chan struct{}) bool {
	_ = ch.Close()
	t := time.NewTimer(closeTimeout)
	defer t.Stop()
	select {
	case <-gone:
		return true
	case <-t.C:
		return false
	}
}

func (c *serverConn) attach(ctx context.Context, n ssh.NewChannel) {
	var q attachRequest
	if err := decode("attach", n.ExtraData(), &q); err != nil {
		_ = n.Reject(ssh.Prohibited, err.Error())
		return
	}
	s := c.server
	// Following starts before the peer hears of it: what is written after an
	// attach was confirmed is never missed.
	run, err := s.config.Container.runOf(q.Run)
	var f *follower
	if err == nil {
		f, err = s.config.Output.follow(run.number, q.Replay, [3]int64{Stdout: q.Skip[0], Stderr: q.Skip[1]})
	}
	if err != nil {
		_ = n.Reject(ssh.Prohibited, err.Error())
		return
	}
	defer f.close()
	from := f.from()
	done := s.wantEnd()
	delivered := false
	defer func() { done(delivered) }()
	eof := make(chan struct{})
	endInput := sync.OnceFunc(func() { close(eof) })
	ctx, ch, gone, cancel := accept(ctx, n, func(r *ssh.Request) {
		if r.Type == requestEOF {
			endInput()
			return
		}
		c.attachRequest(r)
	})
	if ch == nil {
		return
	}
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer ch.Close()
	if b, err := json.Marshal(attachedRun{run.number, from}); err == nil {
		_, _ = ch.SendRequest(requestRun, false, b)
	}
	wg.Go(func() {
		if q.Stdin {
			run.stdin(ctx, ch, s.config.Container.config.Process.StdinOnce, func() bool { return told(eof, gone) })
		}
		// Take what still comes, or the peer's window would fill.
		_, _ = io.Copy(io.Discard, ch)
	})
	for {
		stream, p, err := f.next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			w := io.Writer(ch)
			if stream == Stderr {
				w = ch.Stderr()
			}
			_, err = w.Write(p)
		} else if ctx.Err() == nil {
			s.log.Warn("attach", "error", err)
			c.exit(ch, Exit{}, err)
			finish(ch, gone)
			return
		}
		if err != nil {
			return
		}
	}
	e, err := run.end(ctx)
	if err != nil {
		return
	}
	c.exit(ch, e, nil)
	delivered = finish(ch, gone) && ctx.Err() != nil
}

// told waits for what says that an end of file was meant, or for the channel's
// end, after which it cannot come any more.
func told(eof, gone <-chan struct{}) bool {
	select {
	case <-eof:
		return true
	case <-gone:
	}
	select {
	case <-eof:
		return true
	default:
		return false
	}
}

// exit tells the end, in our own words and then in SSH's.
func (c *serverConn) exit(ch ssh.Channel, e Exit, failed error) {
	doc := struct {
		Exit  *Exit        `json:"exit,omitempty"`
		Error *RemoteError `json:"error,omitempty"`
	}{Exit: &e}
	if failed != nil {
		doc.Exit, doc.Error = nil, remoteError(failed)
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return
	}
	_, _ = ch.SendRequest(requestExit, false, b)
	switch {
	case failed != nil:
	case e.Signal != "":
		_, _ = ch.SendRequest("exit-signal", false, ssh.Marshal(exitSignal{Name: e.Signal[len("SIG"):], Message: e.Error}))
	default:
		_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(exitStatus{uint32(e.Code)}))
	}
	_ = ch.CloseWrite()
}

// attachRequest handles the standard requests on an attachment.
func (c *serverConn) attachRequest(r *ssh.Request) {
	var err error
	switch r.Type {
	case "window-change":
		var w windowChange
		if err = ssh.Unmarshal(r.Payload, &w); err == nil {
			if w.Rows > 1<<16-1 || w.Columns > 1<<16-1 {
				err = ErrInvalid
			} else {
				err = c.server.config.Container.Resize(uint16(w.Rows), uint16(w.Columns))
			}
		}
	case "signal":
		var s signalName
		if err = ssh.Unmarshal(r.Payload, &s); err == nil {
			err = c.server.config.Container.Signal(s.Name)
		}
	default:
		err = ErrUnsupported
	}
	if r.WantReply {
		_ = r.Reply(err == nil, nil)
	}
}

func (c *serverConn) call(ctx context.Context, n ssh.NewChannel) {
	var q callRequest
	if err := decode("call", n.ExtraData(), &q); err != nil {
		_ = n.Reject(ssh.Prohibited, err.Error())
		return
	}
	ctx, ch, gone, cancel := accept(ctx, n, refuse)
	if ch == nil {
		return
	}
	defer cancel()
	switch q.Method {
	case methodWait, methodStop, methodPowerOff:
		done, delivered := c.server.wantEnd(), false
		defer func() { done(delivered) }()
		defer func() { delivered = ctx.Err() != nil }()
	}
	paused := c.server.config.Container.paused()
	result, err := c.do(ctx, q)
	if f := c.server.config.Changed; f != nil && c.server.config.Container.paused() != paused {
		f()
	}
	answer(ch, gone, result, err)
}

// answer sends a channel's one answer and ends it.
func answer(ch ssh.Channel, gone <-chan struct{}, result any, err error) {
	var a callAnswer
	if err == nil && result != nil {
		a.Result, err = json.Marshal(result)
	}
	if err != nil {
		a.Error = remoteError(err)
	}
	b, err := json.Marshal(a)
	if err != nil {
		return
	}
	_, _ = ch.Write(b)
	_ = ch.CloseWrite()
	finish(ch, gone)
}

func (c *serverConn) do(ctx context.Context, q callRequest) (any, error) {
	container := c.server.config.Container
	if a := c.server.config.Applier; a != nil {
		switch q.Method {
		case methodStatus, methodTimeline:
		case methodPowerOff:
			a.End()
			return nil, nil
		default:
			return nil, fmt.Errorf("%w: this is a helper VM, not a container", ErrUnsupported)
		}
	}
	switch q.Method {
	case methodSignal:
		var p signalParams
		if err := decode("signal", q.Params, &p); err != nil {
			return nil, err
		}
		return nil, container.Signal(p.Signal)
	case methodResize:
		var p resizeParams
		if err := decode("resize", q.Params, &p); err != nil {
			return nil, err
		}
		return nil, container.Resize(p.Rows, p.Columns)
	case methodStop:
		var p stopParams
		if err := decode("stop", q.Params, &p); err != nil {
			return nil, err
		}
		if err := container.Stop(p.Signal, p.Grace); err != nil {
			return nil, err
		}
		return container.Wait(ctx)
	case methodWait:
		return container.Wait(ctx)
	case methodAuthorities:
		return nil, c.setAuthorities(q)
	case methodStatus:
		return container.Status(), nil
	case methodTimeline:
		return container.Timeline(), nil
	case methodExec, methodExecCreate, methodExecInspect, methodExecs, methodExecResize:
		return c.doExec(q)
	case methodPause, methodUnpause, methodTop, methodStats:
		return c.monitor(ctx, q)
	case methodMount, methodUnmount, methodGrow:
		return c.mounting(ctx, q)
	case methodLstat:
		return c.lstat(ctx, q)
	case methodHealth:
		if h := container.HealthStatus(); h != nil {
			return h, nil
		}
		return nil, fmt.Errorf("%w: the container has no health check", ErrUnsupported)
	}
	return nil, fmt.Errorf("%w: this tether knows no call %.60q", ErrUnsupported, q.Method)
}

func (c *serverConn) logs(ctx context.Context, n ssh.NewChannel) {
	var o LogOptions
	if err := decode("logs", n.ExtraData(), &o); err != nil {
		_ = n.Reject(ssh.Prohibited, err.Error())
		return
	}
	r := c.server.config.Output
	r.partials(0) // Whoever reads the log now sees everything up to now.
	r.flush()
	if err := r.sync(); err != nil {
		c.server.log.Warn("log", "error", err)
	}
	off, err := tailOffset(r.file, r.file.Start(), r.onDisk(), o)
	if err != nil {
		_ = n.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	if o.Follow {
		done := c.server.wantEnd()
		defer done(false)
	}
	ctx, ch, gone, cancel := accept(ctx, n, refuse)
	if ch == nil {
		return
	}
	defer cancel()
	defer ch.Close()
	tail := r.tail(ctx, off, o.Follow, o.Until)
	defer tail.close()
	l := NewLogReader(tail)
	l.keep = o.keep
	for {
		_, err := l.Next()
		if err == io.EOF && ctx.Err() == nil {
			_, _ = ch.SendRequest(requestEnd, false, nil)
		}
		if err != nil {
			break
		}
		line := l.line
		if !bytes.HasSuffix(line, []byte("\n")) {
			line = append(line[:len(line):len(line)], '\n')
		}
		if _, err := ch.Write(line); err != nil {
			return
		}
	}
	_ = ch.CloseWrite()
	finish(ch, gone)
}
