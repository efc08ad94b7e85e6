package lab

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// poolHandler answers the methods of ResourcePool that the simulator is wrong in: its
// pools share one summary, which is a variable of its package, so that the last one's
// name would be that of all.
type poolHandler struct{ base }

func (h *poolHandler) CreateResourcePool(ctx *simulator.Context, req *types.CreateResourcePool) soap.HasFault {
	body := new(methods.CreateResourcePoolBody)
	refuse := func(f types.BaseMethodFault) soap.HasFault {
		body.Fault_ = soapFault(f)
		return body
	}
	parent, ok := h.lab.reg.Get(req.This).(*simulator.ResourcePool)
	if !ok {
		return refuse(&types.ManagedObjectNotFound{Obj: req.This})
	}
	if f := badAllocation("cpuAllocation", req.Spec.CpuAllocation); f != nil {
		return refuse(f)
	}
	if f := badAllocation("memoryAllocation", req.Spec.MemoryAllocation); f != nil {
		return refuse(f)
	}
	ctx.WithLock(parent, func() {
		if e := ctx.Map.FindByName(req.Name, parent.ResourcePool.ResourcePool); e != nil {
			_ = refuse(&types.DuplicateName{Name: req.Name, Object: e.Reference()})
			return
		}
		child := simulator.NewResourcePool(ctx)
		child.Name, child.Owner = req.Name, parent.Owner
		sum := types.ResourcePoolSummary{}
		if s := child.Summary.GetResourcePoolSummary(); s != nil {
			sum = *s
		}
		sum.Name = req.Name
		sum.Config.CpuAllocation, sum.Config.MemoryAllocation = req.Spec.CpuAllocation, req.Spec.MemoryAllocation
		child.Summary = &sum
		child.Config.CpuAllocation, child.Config.MemoryAllocation = req.Spec.CpuAllocation, req.Spec.MemoryAllocation
		child.Config.Entity = req.Spec.Entity
		ctx.Map.PutEntity(parent, ctx.Map.NewEntity(child))
		parent.ResourcePool.ResourcePool = append(parent.ResourcePool.ResourcePool, child.Self)
		body.Res = &types.CreateResourcePoolResponse{Returnval: child.Self}
	})
	return body
}

// badAllocation refuses what does not say all (API reference, ResourceConfigSpec: on
// creation every value must be given).
func badAllocation(name string, a types.ResourceAllocationInfo) types.BaseMethodFault {
	switch {
	case a.Reservation == nil || *a.Reservation < 0,
		a.Limit == nil || *a.Limit < -1,
		a.ExpandableReservation == nil,
		a.Shares == nil || a.Shares.Level == types.SharesLevelCustom && a.Shares.Shares < 0,
		a.OverheadLimit != nil:
		return &types.InvalidArgument{InvalidProperty: "spec." + name}
	}
	return nil
}
