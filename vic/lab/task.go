package lab

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// keptTasks is how many finished tasks stay in the inventory.
const keptTasks = 1000

// tasks runs tasks as vCenter does: beside the request that asked for them and
// without holding any object's lock.
type tasks struct {
	lab *Lab
	ctx context.Context // ends when the lab closes
	end context.CancelFunc
	wg  sync.WaitGroup
	n   atomic.Int64

	mu      sync.Mutex
	closed  bool
	running map[types.ManagedObjectReference]*task
	done    []types.ManagedObjectReference
}

// A task is one that runs.
type task struct {
	*tasks
	obj        *simulator.Task
	cancel     context.CancelFunc
	cancelable bool
}

// A work is what a task does. Its context ends with the task's cancellation.
type work func(ctx context.Context, t *task) (types.AnyType, types.BaseMethodFault)

type taskSpec struct {
	entity     types.ManagedObjectReference
	kind       string   // "powerOn"
	vm         *machine // taken for the task's length, so that a VM has one task at a time
	cancelable bool
}

// start makes a task and runs it. It fails where the VM is busy or the lab is
// closing.
func (ts *tasks) start(ctx *simulator.Context, s taskSpec, f work) (types.ManagedObjectReference, types.BaseMethodFault) {
	var none types.ManagedObjectReference
	if s.vm != nil {
		if by, ok := s.vm.take(s.kind); !ok {
			return none, say(&types.TaskInProgress{Task: by}, "the VM is busy with another task")
		}
	}
	ts.mu.Lock()
	if ts.closed {
		ts.mu.Unlock()
		if s.vm != nil {
			s.vm.give()
		}
		return none, say(&types.HostCommunication{}, "the lab is closing")
	}
	ts.wg.Add(1)
	ts.mu.Unlock()
	ts.lab.count.add(func(c *Counters) { c.Tasks[s.kind]++ })

	obj := simulator.CreateTask(s.entity, s.kind, nil)
	obj.Self = types.ManagedObjectReference{Type: "Task", Value: fmt.Sprintf("task-v%d", ts.n.Add(1))}
	obj.Info.Key, obj.Info.Task = obj.Self.Value, obj.Self
	obj.Info.Cancelable = s.cancelable
	obj.Info.State = types.TaskInfoStateRunning
	now := time.Now()
	obj.Info.StartTime = &now
	if ctx.Session != nil {
		obj.Info.Reason = &types.TaskReasonUser{UserName: ctx.Session.UserName}
	}
	if e, ok := ts.lab.reg.Get(s.entity).(mo.Entity); ok {
		obj.Info.EntityName = e.Entity().Name
	}
	wctx, cancel := context.WithCancel(ts.ctx)
	t := &task{ts, obj, cancel, s.cancelable}
	ts.mu.Lock()
	ts.running[obj.Self] = t
	ts.mu.Unlock()
	if s.vm != nil {
		s.vm.setTask(obj.Self)
	}
	// The simulator notes the task on its entity, which readers see under the
	// entity's lock.
	lc := ts.lab.context()
	lc.WithLock(s.entity, func() { lc.Map.Put(obj) })

	if s.vm != nil {
		// As vCenter does when a task is begun.
		if vm, ok := ts.lab.reg.Get(s.entity).(*simulator.VirtualMachine); ok {
			e := ts.lab.vmEvent(s.entity, ts.lab.look(vm))
			ts.lab.post(&types.TaskEvent{Event: e.Event, Info: obj.Info})
		}
	}
	go func() {
		defer ts.wg.Done()
		defer cancel()
		res, fault := t.do(wctx, f)
		if s.vm != nil {
			s.vm.give()
		}
		t.finish(res, fault)
	}()
	return obj.Self, nil
}

func (t *task) do(ctx context.Context, f work) (res types.AnyType, fault types.BaseMethodFault) {
	defer func() {
		if p := recover(); p != nil {
			t.lab.log.Error("a task failed badly", "task", t.obj.Info.DescriptionId, "panic", p, "stack", string(debug.Stack()))
			fault = say(&types.SystemError{Reason: "internal error"}, "internal error of the lab: %v", p)
		}
	}()
	return f(ctx, t)
}

// progress reports how far the task is, in percent.
func (t *task) progress(p int32) {
	t.update(types.PropertyChange{Name: "info.progress", Val: p})
}

func (t *task) update(c ...types.PropertyChange) {
	lc := t.lab.context()
	lc.Map.AtomicUpdate(lc, t.obj, c)
}

func (t *task) finish(res types.AnyType, fault types.BaseMethodFault) {
	c := []types.PropertyChange{{Name: "info.completeTime", Val: time.Now()}}
	if fault != nil {
		if _, ok := fault.(*types.RequestCanceled); ok {
			c = append(c, types.PropertyChange{Name: "info.cancelled", Val: true})
		}
		c = append(c,
			types.PropertyChange{Name: "info.error", Val: types.LocalizedMethodFault{Fault: fault, LocalizedMessage: words(fault)}},
			types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateError})
		t.lab.log.Info("task failed", "task", t.obj.Info.DescriptionId, "entity", t.obj.Info.EntityName, "why", words(fault))
	} else {
		c = append(c,
			types.PropertyChange{Name: "info.progress", Val: int32(100)},
			types.PropertyChange{Name: "info.result", Val: res},
			types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateSuccess})
	}
	t.lab.journal.flush()
	t.update(c...)
	t.mu.Lock()
	delete(t.running, t.obj.Self)
	t.done = append(t.done, t.obj.Self)
	var old []types.ManagedObjectReference
	if n := len(t.done) - keptTasks; n > 0 {
		old = slices.Clone(t.done[:n])
		t.done = slices.Delete(t.done, 0, n)
	}
	t.mu.Unlock()
	for _, ref := range old {
		t.forget(ref)
	}
}

// forget takes a task of long ago out of the inventory.
func (ts *tasks) forget(ref types.ManagedObjectReference) {
	lc := ts.lab.context()
	obj, ok := lc.Map.Get(ref).(*simulator.Task)
	if !ok {
		return
	}
	if e, ok := lc.Map.Get(*obj.Info.Entity).(mo.Entity); ok {
		lc.WithLock(e, func() {
			recent := e.Entity().RecentTask
			if i := slices.Index(recent, ref); i >= 0 {
				keep := append(slices.Clone(recent[:i]), recent[i+1:]...)
				lc.Update(e, []types.PropertyChange{{Name: "recentTask", Val: keep}})
			}
		})
	}
	lc.Map.Remove(lc, ref)
}

// close cancels what runs and waits for its end.
func (ts *tasks) close() {
	ts.mu.Lock()
	ts.closed = true
	ts.mu.Unlock()
	ts.end()
	ts.wg.Wait()
}

// taskHandler answers the methods of Task.
type taskHandler struct{ base }

func (h *taskHandler) CancelTask(_ *simulator.Context, req *types.CancelTask) soap.HasFault {
	ts := &h.lab.tasks
	ts.mu.Lock()
	t := ts.running[req.This]
	ts.mu.Unlock()
	body := new(methods.CancelTaskBody)
	switch {
	case t == nil:
		body.Fault_ = soapFault(say(&types.InvalidState{}, "the task has ended"))
	case !t.cancelable:
		body.Fault_ = soapFault(say(&types.NotSupported{}, "the task cannot be cancelled"))
	default:
		t.cancel()
		body.Res = new(types.CancelTaskResponse)
	}
	return body
}

func canceled() types.BaseMethodFault {
	return say(&types.RequestCanceled{}, "the task was cancelled by a user")
}
