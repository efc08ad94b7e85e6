package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// fields is a JSON object.
type fields = map[string]any

// qmp is a connection to QEMU's machine protocol (QEMU, docs/interop/qmp-spec.rst).
type qmp struct {
	conn *net.UnixConn
	gone chan struct{} // closed when the connection has ended

	mu      sync.Mutex
	n       int
	waiting map[int]chan qmpAnswer
	watches map[*qmpWatch]struct{}
	onEvent func(name string, data json.RawMessage)
}

type qmpAnswer struct {
	ret json.RawMessage
	err error
}

type qmpWatch struct {
	event string
	match func(json.RawMessage) bool
	hit   chan struct{}
}

var errQEMUGone = errors.New("QEMU has ended")

// openQMP waits for QEMU's greeting and enters command mode. onEvent is called
// for each event, from one goroutine.
func openQMP(ctx context.Context, conn *net.UnixConn, onEvent func(string, json.RawMessage)) (*qmp, error) {
	q := &qmp{conn: conn, gone: make(chan struct{}), waiting: map[int]chan qmpAnswer{}, watches: map[*qmpWatch]struct{}{}, onEvent: onEvent}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	r := bufio.NewReaderSize(conn, 64<<10)
	_, err := r.ReadSlice('\n')
	if !stop() || err != nil {
		return nil, fmt.Errorf("no greeting from QEMU: %w", err)
	}
	go q.read(r)
	_, err = q.do(ctx, "qmp_capabilities", nil)
	return q, err
}

func (q *qmp) read(r *bufio.Reader) {
	defer close(q.gone)
	d := json.NewDecoder(r)
	for {
		var m struct {
			ID     int
			Return json.RawMessage
			Error  *struct{ Desc string }
			Event  string
			Data   json.RawMessage
		}
		if d.Decode(&m) != nil {
			return
		}
		if m.Event != "" {
			q.event(m.Event, m.Data)
			continue
		}
		a := qmpAnswer{ret: m.Return}
		if m.Error != nil {
			a.err = errors.New(m.Error.Desc)
		}
		q.mu.Lock()
		ch := q.waiting[m.ID]
		delete(q.waiting, m.ID)
		q.mu.Unlock()
		if ch != nil {
			ch <- a
		}
	}
}

func (q *qmp) event(name string, data json.RawMessage) {
	q.mu.Lock()
	for w := range q.watches {
		if w.event == name && w.match(data) {
			close(w.hit)
			delete(q.watches, w)
		}
	}
	q.mu.Unlock()
	q.onEvent(name, data)
}

// expect watches for an event from now on. forget ends that.
func (q *qmp) expect(event string, match func(json.RawMessage) bool) (hit <-chan struct{}, forget func()) {
	w := &qmpWatch{event, match, make(chan struct{})}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.watches[w] = struct{}{}
	return w.hit, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.watches, w)
	}
}

// do runs a command.
func (q *qmp) do(ctx context.Context, cmd string, args any) (json.RawMessage, error) {
	return q.doWith(ctx, cmd, args, nil)
}

// doWith runs a command that takes an open file.
func (q *qmp) doWith(ctx context.Context, cmd string, args any, f *os.File) (json.RawMessage, error) {
	ch := make(chan qmpAnswer, 1)
	q.mu.Lock()
	q.n++
	id := q.n
	q.waiting[id] = ch
	m := fields{"execute": cmd, "id": id}
	if args != nil {
		m["arguments"] = args
	}
	b, err := json.Marshal(m)
	if err == nil {
		if oob := rights(f); oob == nil {
			_, err = q.conn.Write(append(b, '\n'))
		} else {
			_, _, err = q.conn.WriteMsgUnix(append(b, '\n'), oob, nil)
		}
	}
	if err != nil {
		delete(q.waiting, id)
	}
	q.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cmd, errQEMUGone)
	}
	select {
	case a := <-ch:
		if a.err != nil {
			return nil, fmt.Errorf("%s: %w", cmd, a.err)
		}
		return a.ret, nil
	case <-q.gone:
		return nil, fmt.Errorf("%s: %w", cmd, errQEMUGone)
	case <-ctx.Done():
		q.mu.Lock()
		delete(q.waiting, id)
		q.mu.Unlock()
		return nil, fmt.Errorf("%s: %w", cmd, ctx.Err())
	}
}

func (q *qmp) close() {
	_ = q.conn.Close()
	<-q.gone
}
