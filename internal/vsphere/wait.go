package vsphere

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/task"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
)

// CleanupTime bounds what is done after a context has ended: cancelling a task
// and undoing what was made.
const CleanupTime = 30 * time.Second

// Detached returns a context for cleaning up: it has ctx's values, not its
// end, and CleanupTime of its own.
func Detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), CleanupTime)
}

// Progress hears how far a task is, in percent.
type Progress func(percent int32)

// Wait waits for a task's end and returns its result, or its fault judged by
// Judge. Where ctx ends first, the task is cancelled on a detached context and
// followed to its end; if it came to a good end all the same, that counts. A
// task whose end could not be seen is fault.ErrUnknownOutcome.
func Wait(ctx context.Context, c *vim25.Client, ref types.ManagedObjectReference, p Progress) (any, error) {
	info, err := await(ctx, c, ref, p)
	if err == nil {
		return judgeTask(info)
	}
	if ctx.Err() == nil {
		// The connection failed, not the task: ask once more before giving up.
		dctx, cancel := Detached(ctx)
		defer cancel()
		if info, e := await(dctx, c, ref, nil); e == nil {
			return judgeTask(info)
		}
		return nil, fault.As(fault.ErrUnknownOutcome, fmt.Errorf("task %s: %w", ref.Value, Judge(err)))
	}
	dctx, cancel := Detached(ctx)
	defer cancel()
	_, _ = methods.CancelTask(dctx, c, &types.CancelTask{This: ref})
	info, e := await(dctx, c, ref, nil)
	if e != nil {
		return nil, fault.As(fault.ErrUnknownOutcome, fmt.Errorf("task %s after %w: %w", ref.Value, context.Cause(ctx), e))
	}
	if info.State == types.TaskInfoStateSuccess {
		return info.Result, nil
	}
	_, e = judgeTask(info)
	return nil, errors.Join(context.Cause(ctx), e)
}

func judgeTask(info *types.TaskInfo) (any, error) {
	if info.State == types.TaskInfoStateSuccess {
		return info.Result, nil
	}
	if info.Error == nil {
		return nil, fmt.Errorf("task %s failed without a fault", info.Key)
	}
	return nil, Judge(task.Error{LocalizedMethodFault: info.Error, Description: info.Description})
}

// await follows the parts of a task's info that count, rather than all of it.
func await(ctx context.Context, c *vim25.Client, ref types.ManagedObjectReference, p Progress) (*types.TaskInfo, error) {
	info := &types.TaskInfo{Key: ref.Value}
	parts := []string{"info.state", "info.progress", "info.error", "info.result"}
	err := Watch(ctx, c, ref, parts, func(set []types.PropertyChange) bool {
		for _, ch := range set {
			switch val := ch.Val.(type) {
			case types.TaskInfoState:
				info.State = val
			case types.LocalizedMethodFault:
				info.Error = &val
			case int32:
				if ch.Name == "info.progress" {
					info.Progress = val
				}
			}
			if ch.Name == "info.result" {
				info.Result = ch.Val
			}
		}
		if p != nil && info.State == types.TaskInfoStateRunning {
			p(info.Progress)
		}
		return info.State == types.TaskInfoStateSuccess || info.State == types.TaskInfoStateError
	})
	if err != nil {
		return nil, err
	}
	return info, nil
}

// Watch calls f with the named properties of an object, first as they are,
// then at each change, until f returns true, ctx ends or the object is gone,
// which is fault.ErrNotFound.
func Watch(ctx context.Context, c *vim25.Client, ref types.ManagedObjectReference, props []string, f func([]types.PropertyChange) bool) error {
	gone := false
	filter := new(property.WaitFilter).Add(ref, ref.Type, props)
	err := property.WaitForUpdates(ctx, property.DefaultCollector(c), filter, func(ups []types.ObjectUpdate) bool {
		for _, u := range ups {
			if u.Kind == types.ObjectUpdateKindLeave {
				gone = true
				return true
			}
			if f(u.ChangeSet) {
				return true
			}
		}
		return false
	})
	if gone {
		return fault.Of(fault.ErrNotFound, "%s %s is gone", ref.Type, ref.Value)
	}
	return Judge(err)
}

// Properties reads properties of one object into dst, a *mo type.
func Properties(ctx context.Context, c *vim25.Client, ref types.ManagedObjectReference, props []string, dst any) error {
	return Judge(property.DefaultCollector(c).RetrieveOne(ctx, ref, props, dst))
}

// Children reads properties of all objects of a kind that are children of a
// folder, in one round trip, page by page where they are many.
func Children[T any](ctx context.Context, c *vim25.Client, folder types.ManagedObjectReference, kind string, props []string) ([]T, error) {
	req := types.RetrieveProperties{SpecSet: []types.PropertyFilterSpec{{
		ObjectSet: []types.ObjectSpec{{
			Obj: folder, Skip: types.NewBool(true),
			SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: "Folder", Path: "childEntity"}},
		}},
		PropSet: []types.PropertySpec{{Type: kind, PathSet: props}},
	}}}
	res, err := property.DefaultCollector(c).RetrieveProperties(ctx, req)
	if err != nil {
		return nil, Judge(err)
	}
	var out []T
	if err := mo.LoadObjectContent(res.Returnval, &out); err != nil {
		return nil, Judge(err)
	}
	return out, nil
}
