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

// searchHandler has the simulator search where there is something settled to
// find.
type searchHandler struct {
	base
	index *simulator.SearchIndex
}

func (h *searchHandler) FindByUuid(ctx *simulator.Context, req *types.FindByUuid) soap.HasFault {
	return h.lab.settled(func() soap.HasFault { return h.index.FindByUuid(ctx, req) })
}

func (h *searchHandler) FindAllByUuid(ctx *simulator.Context, req *types.FindAllByUuid) soap.HasFault {
	return h.lab.settled(func() soap.HasFault { return h.index.FindAllByUuid(ctx, req) })
}

func (h *searchHandler) FindByDatastorePath(ctx *simulator.Context, req *types.FindByDatastorePath) soap.HasFault {
	return h.lab.settled(func() soap.HasFault { return h.index.FindByDatastorePath(ctx, req) })
}

func (h *searchHandler) FindByInventoryPath(ctx *simulator.Context, req *types.FindByInventoryPath) soap.HasFault {
	return h.lab.settled(func() soap.HasFault { return h.index.FindByInventoryPath(ctx, req) })
}

func (h *searchHandler) FindChild(ctx *simulator.Context, req *types.FindChild) soap.HasFault {
	return h.lab.settled(func() soap.HasFault { return h.index.FindChild(ctx, req) })
}

func (h *searchHandler) FindByDnsName(ctx *simulator.Context, req *types.FindByDnsName) soap.HasFault {
	return h.lab.settled(func() soap.HasFault { return h.index.FindByDnsName(ctx, req) })
}

func (h *searchHandler) FindAllByDnsName(ctx *simulator.Context, req *types.FindAllByDnsName) soap.HasFault {
	return h.lab.settled(func() soap.HasFault { return h.index.FindAllByDnsName(ctx, req) })
}

func (h *searchHandler) FindByIp(ctx *simulator.Context, req *types.FindByIp) soap.HasFault {
	return h.lab.settled(func() soap.HasFault { return h.index.FindByIp(ctx, req) })
}

func (h *searchHandler) FindAllByIp(ctx *simulator.Context, req *types.FindAllByIp) soap.HasFault {
	return h.lab.settled(func() soap.HasFault { return h.index.FindAllByIp(ctx, req) })
}
