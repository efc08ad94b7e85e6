package lab

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// settled calls f while the simulator makes no VM: it has VMs in its inventory
// before they are whole, and writes to them without their lock.
func (l *Lab) settled(f func() soap.HasFault) soap.HasFault {
	l.sim.Lock()
	defer l.sim.Unlock()
	return f()
}

// RetrieveProperties is the simulator's.
func (h *collectorHandler) RetrieveProperties(ctx *simulator.Context, req *types.RetrieveProperties) soap.HasFault {
	pc := ctx.Session.Get(req.This).(*simulator.PropertyCollector) // dispatch has seen that there is one
	return h.lab.settled(func() soap.HasFault { return pc.RetrieveProperties(ctx, req) })
}

// RetrievePropertiesEx is the simulator's.
func (h *collectorHandler) RetrievePropertiesEx(ctx *simulator.Context, req *types.RetrievePropertiesEx) soap.HasFault {
	pc := ctx.Session.Get(req.This).(*simulator.PropertyCollector)
	return h.lab.settled(func() soap.HasFault { return pc.RetrievePropertiesEx(ctx, req) })
}

// searchHandler has the simulator search while it makes no VM: the simulator locks
// an object of its inventory by the object's own means, where it has some.
type searchHandler struct {
	base
	*simulator.SearchIndex
}

// Lock keeps VMs from being made.
func (h *searchHandler) Lock() { h.lab.sim.Lock() }

// Unlock lets VMs be made again.
func (h *searchHandler) Unlock() { h.lab.sim.Unlock() }
