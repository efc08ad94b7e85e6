package engine

import (
	"context"
	"errors"
	"sync"

	"github.com/hashicorp/go-multierror"
	"golang.org/x/sync/semaphore"

	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
)

// startsAtOnce bounds the VMs that Reconcile powers on at a time.
const startsAtOnce = 8

// Reconcile powers on the VCH's containers whose VM is off and whose restart
// policy says that they run (containervm.Info.ShouldRun): what Docker's daemon
// does when it starts, for who serves a VCH to call when he does. Within a boot
// the guests follow their policies by themselves. It returns the names of those
// that were started, also with an error.
func (e *Engine) Reconcile(ctx context.Context) ([]string, error) {
	vms, infos, err := e.List(ctx)
	if err != nil {
		return nil, err
	}
	var off []*containervm.VM
	for i, vm := range vms {
		if infos[i].ShouldRun() {
			off = append(off, vm)
		}
	}
	return each(ctx, off, startsAtOnce, func(vm *containervm.VM) (bool, error) {
		err := e.Start(ctx, vm, nil)
		if errors.Is(err, vic.ErrState) {
			return false, nil // Somebody was faster.
		}
		return true, err
	})
}

// each calls do for containers, so many at once, and returns the names of those for
// which it told true. One that was deleted meanwhile is left out. Errors are gathered.
func each(ctx context.Context, vms []*containervm.VM, atOnce int64, do func(*containervm.VM) (bool, error)) ([]string, error) {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		names []string
		errs  *multierror.Error
		slots = semaphore.NewWeighted(atOnce)
	)
	for _, vm := range vms {
		if slots.Acquire(ctx, 1) != nil {
			break
		}
		wg.Go(func() {
			defer slots.Release(1)
			ok, err := do(vm)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, vic.ErrNotFound):
			case err != nil:
				errs = multierror.Append(errs, err)
			case ok:
				names = append(names, vm.Name())
			}
		})
	}
	wg.Wait()
	return names, errors.Join(errs.ErrorOrNil(), ctx.Err())
}
