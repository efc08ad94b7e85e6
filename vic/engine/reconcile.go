package engine

import (
	"context"
	"errors"
	"sync"

	"github.com/hashicorp/go-multierror"
	"golang.org/x/sync/semaphore"

	"github.com/vicsdk/vic-go/vic"
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
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		started []string
		errs    *multierror.Error
		slots   = semaphore.NewWeighted(startsAtOnce)
	)
	for i, vm := range vms {
		if !infos[i].ShouldRun() {
			continue
		}
		if err := slots.Acquire(ctx, 1); err != nil {
			break
		}
		wg.Go(func() {
			defer slots.Release(1)
			err := e.Start(ctx, vm, nil)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				started = append(started, vm.Name())
			case errors.Is(err, vic.ErrState), errors.Is(err, vic.ErrNotFound): // Somebody was faster.
			default:
				errs = multierror.Append(errs, err)
			}
		})
	}
	wg.Wait()
	return started, errors.Join(errs.ErrorOrNil(), ctx.Err())
}
