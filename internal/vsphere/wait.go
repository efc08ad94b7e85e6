package vsphere

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/task"
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

// Outlive returns a context that ends CleanupTime after ctx does: for a request
// that changes something, whose answer must be heard once it was sent. Cut off
// in the middle, nobody would know of what it made.
func Outlive(ctx context.Context) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-out.Done():
		case <-time.After(CleanupTime):
			cancel(context.Cause(ctx))
		}
	})
	return out, func() { stop(); cancel(nil) }
}

// Begin makes the request that begins a task, unless ctx has ended, and hears
// its answer even if ctx ends meanwhile; Wait then cancels the task. Errors are
// judged.
func Begin(ctx context.Context, request func(context.Context) (*object.Task, error)) (types.ManagedObjectReference, error) {
	if ctx.Err() != nil {
		return types.ManagedObjectReference{}, context.Cause(ctx)
	}
	octx, cancel := Outlive(ctx)
	defer cancel()
	for pause := 50 * time.Millisecond; ; pause *= 2 {
		t, err := request(octx)
		if err == nil {
			return t.Reference(), nil
		}
		if !isFault[types.TaskInProgress](err) || pause > busyPause {
			return types.ManagedObjectReference{}, Judge(err)
		}
		select {
		case <-ctx.Done():
			return types.ManagedObjectReference{}, Judge(err)
		case <-time.After(pause):
		}
	}
}

// busyPause is the longest pause before an object that is busy with another task, such
// as one that a process which has been killed began, is asked again; all of them take
// some six seconds.
const busyPause = 3200 * time.Millisecond

// Do is Begin and Wait.
func Do(ctx context.Context, s *Session, request func(context.Context) (*object.Task, error)) error {
	ref, err := Begin(ctx, request)
	if err != nil {
		return err
	}
	_, err = Wait(ctx, s, ref, nil)
	return err
}

// Progress hears how far a task is, in percent.
type Progress func(percent int32)

// Wait waits for a task's end and returns its result, or its fault judged by
// Judge. Where ctx ends first, the task is cancelled on a detached context and
// followed to its end; if it came to a good end all the same, that counts. A
// task whose end could not be seen is fault.ErrUnknownOutcome.
func Wait(ctx context.Context, s *Session, ref types.ManagedObjectReference, p Progress) (any, error) {
	info, err := await(ctx, s, ref, p)
	return conclude(ctx, s, ref, info, err)
}

// WaitIn is Wait for a task that a watch follows (see TaskProperties). The
// caller's hold on the watch stays.
func WaitIn(ctx context.Context, s *Session, x *Watch, ref types.ManagedObjectReference) (any, error) {
	var info *types.TaskInfo
	err := x.Wait(ctx, func(st State) (done bool, err error) {
		info, done, err = taskInfo(st, ref)
		return done, err
	})
	return conclude(ctx, s, ref, info, err)
}

// WaitResult is Wait for a task that must have a result.
func WaitResult(ctx context.Context, s *Session, ref types.ManagedObjectReference) (any, error) {
	res, err := Wait(ctx, s, ref, nil)
	if err != nil || res != nil {
		return res, err
	}
	// The state may be told of before the result is. ctx may have ended.
	dctx, cancel := Detached(ctx)
	defer cancel()
	var t mo.Task
	if err := Properties(dctx, s, ref, []string{"info.result"}, &t); err != nil {
		return nil, fault.As(fault.ErrUnknownOutcome, fmt.Errorf("result of task %s: %w", ref.Value, err))
	}
	return t.Info.Result, nil
}

// conclude judges a wait's end, whichever way it came.
func conclude(ctx context.Context, s *Session, ref types.ManagedObjectReference, info *types.TaskInfo, err error) (any, error) {
	if err == nil {
		return judgeTask(ctx, s, info)
	}
	if ctx.Err() == nil {
		// The connection failed, not the task: ask once more before giving up.
		dctx, cancel := Detached(ctx)
		defer cancel()
		if info, e := await(dctx, s, ref, nil); e == nil {
			return judgeTask(dctx, s, info)
		}
		return nil, fault.As(fault.ErrUnknownOutcome, fmt.Errorf("task %s: %w", ref.Value, Judge(err)))
	}
	dctx, cancel := Detached(ctx)
	defer cancel()
	_, _ = methods.CancelTask(dctx, s.Vim, &types.CancelTask{This: ref})
	info, e := await(dctx, s, ref, nil)
	if e != nil {
		return nil, fault.As(fault.ErrUnknownOutcome, fmt.Errorf("task %s after %w: %w", ref.Value, context.Cause(ctx), e))
	}
	if info.State == types.TaskInfoStateSuccess {
		return info.Result, nil
	}
	_, e = judgeTask(dctx, s, info)
	return nil, errors.Join(context.Cause(ctx), e)
}

func judgeTask(ctx context.Context, s *Session, info *types.TaskInfo) (any, error) {
	if info.State == types.TaskInfoStateSuccess {
		return info.Result, nil
	}
	if info.Error == nil { // the state may be told of before the fault is
		var t mo.Task
		if err := Properties(ctx, s, info.Task, []string{"info.error"}, &t); err == nil {
			info.Error = t.Info.Error
		}
	}
	if info.Error == nil {
		return nil, fmt.Errorf("task %s failed without a fault", info.Key)
	}
	return nil, Judge(task.Error{LocalizedMethodFault: info.Error, Description: info.Description})
}

// TaskProperties are the parts of a task's info that count, for a filter that
// follows one.
func TaskProperties() []string { return []string{"info.state", "info.error", "info.result"} }

// taskInfo makes the info of a task out of a watch's state and tells whether it
// has ended.
func taskInfo(s State, ref types.ManagedObjectReference) (*types.TaskInfo, bool, error) {
	info := &types.TaskInfo{Key: ref.Value, Task: ref, Result: s.Get(ref, "info.result")}
	info.State, _ = s.Get(ref, "info.state").(types.TaskInfoState)
	info.Progress, _ = s.Get(ref, "info.progress").(int32)
	if e, ok := s.Get(ref, "info.error").(types.LocalizedMethodFault); ok {
		info.Error = &e
	}
	if info.State == types.TaskInfoStateSuccess || info.State == types.TaskInfoStateError {
		return info, true, nil
	}
	return info, false, s.Err(ref)
}

// await follows a task to its end.
func await(ctx context.Context, s *Session, ref types.ManagedObjectReference, p Progress) (*types.TaskInfo, error) {
	props := TaskProperties()
	if p != nil {
		props = append(props, "info.progress")
	}
	x, err := s.Watcher.Open(ctx, One(ref, props...))
	if err != nil {
		return nil, err
	}
	if p == nil {
		return lastInfo(ctx, x, ref)
	}
	told := int32(-1)
	for {
		var info *types.TaskInfo
		ended := false
		err := x.Wait(ctx, func(st State) (bool, error) {
			var err error
			info, ended, err = taskInfo(st, ref)
			return ended || info.State == types.TaskInfoStateRunning && info.Progress != told, err
		})
		if err != nil || ended {
			x.release(0)
			return info, err
		}
		told = info.Progress
		p(told)
	}
}

func lastInfo(ctx context.Context, x *Watch, ref types.ManagedObjectReference) (info *types.TaskInfo, err error) {
	err = x.LastWait(ctx, func(st State) (done bool, err error) {
		info, done, err = taskInfo(st, ref)
		return done, err
	})
	return info, err
}

// One is a filter of one object.
func One(ref types.ManagedObjectReference, props ...string) types.PropertyFilterSpec {
	return types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: ref}},
		PropSet:   []types.PropertySpec{{Type: ref.Type, PathSet: props}},
	}
}
