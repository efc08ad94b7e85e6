package vsphere

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
)

// run waits for updates while there are watches.
func (w *Watcher) run() {
	defer w.wg.Done()
	failures, canceled := 0, 0
	for {
		w.mu.Lock()
		if w.shut || len(w.watches) == 0 {
			w.polling = false
			w.mu.Unlock()
			return
		}
		if n := w.renewal.epoch(); n != w.epoch {
			w.epoch, w.broken = n, true
			w.dead = nil // gone with the old login, as all filters are
			clear(w.filters)
			for x := range w.watches {
				x.filter = types.ManagedObjectReference{}
			}
		}
		broken := w.broken
		w.mu.Unlock()

		var err error
		if broken {
			err = w.restore()
		}
		if err == nil {
			var set *types.UpdateSet
			if set, err = w.wait(); err == nil {
				failures, canceled = 0, 0
				w.tell(set)
				continue
			}
		}
		w.mu.Lock()
		if w.shut || len(w.watches) == 0 || errors.Is(err, context.Canceled) { // or aborted to rest
			w.mu.Unlock()
			continue
		}
		pc := w.waitingOn()
		switch o, missing := goneObject(err); {
		case isFault[types.RequestCanceled](err) && canceled < 3:
			canceled++ // by nudge, or by somebody who uses the collector beside us
			w.mu.Unlock()
			continue
		case isFault[types.InvalidCollectorVersion](err), missing && o == pc && w.renewal == nil, isFault[types.NotAuthenticated](err):
			w.lost(pc)
		}
		failures++
		if failures > w.timing.tries {
			w.broken = true
			w.failAll(fmt.Errorf("wait for changes: %w", unavailable(err)))
			w.mu.Unlock()
			continue
		}
		first := failures == 1 && isFault[types.InvalidCollectorVersion](err)
		w.mu.Unlock()
		if !first {
			w.pause(failures)
		}
	}
}

func unavailable(err error) error {
	if err = Judge(err); vimFault(err) == nil {
		return fault.As(fault.ErrUnavailable, err)
	}
	return err
}

func (w *Watcher) pause(failures int) {
	t := time.NewTimer(min(w.timing.retry<<(failures-1), 10*time.Second))
	defer t.Stop()
	select {
	case <-t.C:
	case <-w.ctx.Done():
	}
}

// wait asks for what is new, once.
func (w *Watcher) wait() (*types.UpdateSet, error) {
	pc, err := w.collector(w.ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(w.ctx, w.timing.poll+w.timing.slack, errLate)
	defer cancel()
	w.mu.Lock()
	req := types.WaitForUpdatesEx{
		This: pc, Version: w.version,
		Options: &types.WaitOptions{MaxWaitSeconds: types.NewInt32(int32(max(1, w.timing.poll/time.Second)))},
	}
	w.abort = cancel
	w.round++
	w.mu.Unlock()
	res, err := methods.WaitForUpdatesEx(ctx, w.c, &req)
	w.mu.Lock()
	w.abort = nil
	if w.idle != nil {
		w.idle.Stop()
		w.idle = nil
	}
	w.mu.Unlock()
	if err != nil {
		if context.Cause(ctx) == errLate { //nolint:errorlint // the very value
			err = errLate
		}
		return nil, err
	}
	return res.Returnval, nil
}

// restore makes all filters anew, after which the state comes whole.
func (w *Watcher) restore() error {
	ctx, cancel := context.WithTimeout(w.ctx, CleanupTime)
	defer cancel()
	n := w.renewal.epoch()
	pc, err := w.collector(ctx)
	if err != nil {
		return err
	}
	w.mu.Lock()
	var todo []*Watch
	for x := range w.watches {
		todo = append(todo, x)
		delete(w.filters, x.filter)
		w.bury(x.filter)
		x.filter = types.ManagedObjectReference{}
	}
	clear(w.touched)
	w.version, w.partial = "", false
	w.mu.Unlock()
	for _, x := range todo {
		if err := w.remake(ctx, pc, x); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.renewal.epoch() == n {
		w.broken = false
	}
	return nil
}

// remake makes a watch's filter anew, without the objects that are gone.
func (w *Watcher) remake(ctx context.Context, pc types.ManagedObjectReference, x *Watch) error {
	for {
		w.mu.Lock()
		spec, err := x.spec, x.err
		w.mu.Unlock()
		if err != nil {
			return nil // it has ended
		}
		ref, err := createFilter(ctx, w.c, pc, &spec)
		w.mu.Lock()
		if o, missing := goneObject(err); missing && x.drop(o) {
			w.mu.Unlock()
			continue
		}
		_, open := w.watches[x]
		switch {
		case err != nil:
		case open:
			x.filter, x.renewed = ref, map[types.ManagedObjectReference]bool{}
			w.filters[ref] = x
		default:
			w.bury(ref)
		}
		w.mu.Unlock()
		return err
	}
}

// tell hands out an update set; nil is none.
func (w *Watcher) tell(set *types.UpdateSet) {
	if set == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	first := w.version == ""
	w.version = set.Version
	for _, u := range set.FilterSet {
		x := w.filters[u.Filter]
		if x == nil {
			if slices.Contains(w.dead, u.Filter) && slices.ContainsFunc(u.ObjectSet, stays) {
				w.sweepIn(w.timing.grace)
			}
			if w.opening > 0 {
				if w.early == nil {
					w.early = map[types.ManagedObjectReference][]types.PropertyFilterUpdate{}
				}
				w.early[u.Filter] = append(w.early[u.Filter], u)
			}
			continue
		}
		x.apply(u)
		w.touched[x] = struct{}{}
	}
	if first {
		for x := range w.watches {
			if x.renewed != nil {
				w.touched[x] = struct{}{}
			}
		}
	}
	w.partial = set.Truncated != nil && *set.Truncated
	if !w.partial {
		w.settle()
	}
}

// stays tells whether more may be told of an object.
func stays(u types.ObjectUpdate) bool { return u.Kind != types.ObjectUpdateKindLeave }

// settle lets those wait no longer whose wait is over, after a set that is
// complete. The caller has locked w.
func (w *Watcher) settle() {
	for x := range w.touched {
		delete(w.touched, x)
		x.settle()
	}
}
