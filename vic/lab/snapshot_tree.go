package lab

import (
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// snapshots returns copies of a VM's tree of snapshots and of the reference of the
// current one, nil without snapshots.
func (l *Lab) snapshots(vm *simulator.VirtualMachine) (tree []types.VirtualMachineSnapshotTree, current *types.ManagedObjectReference) {
	lc := l.context()
	lc.WithLock(vm, func() {
		if vm.Snapshot == nil {
			return
		}
		tree = cloneTree(vm.Snapshot.RootSnapshotList)
		if vm.Snapshot.CurrentSnapshot != nil {
			c := *vm.Snapshot.CurrentSnapshot
			current = &c
		}
	})
	return tree, current
}

func cloneTree(tree []types.VirtualMachineSnapshotTree) []types.VirtualMachineSnapshotTree {
	out := slices.Clone(tree)
	for i := range out {
		out[i].ChildSnapshotList = cloneTree(out[i].ChildSnapshotList)
	}
	return out
}

// setSnapshots makes a tree the VM's, and the snapshots' objects agree with it.
func (l *Lab) setSnapshots(vm *simulator.VirtualMachine, tree []types.VirtualMachineSnapshotTree, current *types.ManagedObjectReference) {
	var roots []types.ManagedObjectReference
	for _, s := range tree {
		roots = append(roots, s.Snapshot)
	}
	info := &types.VirtualMachineSnapshotInfo{CurrentSnapshot: current, RootSnapshotList: tree}
	if len(tree) == 0 {
		l.set(vm, types.PropertyChange{Name: "snapshot", Val: nil}, types.PropertyChange{Name: "rootSnapshot", Val: nil})
	} else {
		l.set(vm, types.PropertyChange{Name: "snapshot", Val: info}, types.PropertyChange{Name: "rootSnapshot", Val: roots})
	}
	eachSnapshot(tree, func(s *types.VirtualMachineSnapshotTree) {
		obj, ok := l.reg.Get(s.Snapshot).(*simulator.VirtualMachineSnapshot)
		if !ok {
			return
		}
		var kids []types.ManagedObjectReference
		for _, k := range s.ChildSnapshotList {
			kids = append(kids, k.Snapshot)
		}
		l.set(obj, types.PropertyChange{Name: "childSnapshot", Val: kids})
	})
}

func eachSnapshot(tree []types.VirtualMachineSnapshotTree, f func(*types.VirtualMachineSnapshotTree)) {
	for i := range tree {
		f(&tree[i])
		eachSnapshot(tree[i].ChildSnapshotList, f)
	}
}

// inTree calls f with the list that has a snapshot, and where. To replace the
// list of the roots, top is that list.
func inTree(tree []types.VirtualMachineSnapshotTree, ref types.ManagedObjectReference, f func(list *[]types.VirtualMachineSnapshotTree, i int), top ...*[]types.VirtualMachineSnapshotTree) bool {
	list := &tree
	if len(top) == 1 {
		list = top[0]
	}
	for i := range *list {
		if (*list)[i].Snapshot == ref {
			f(list, i)
			return true
		}
		if inTree(nil, ref, f, &(*list)[i].ChildSnapshotList) {
			return true
		}
	}
	return false
}

// parentOf returns a snapshot's parent, nil for a root.
func parentOf(tree []types.VirtualMachineSnapshotTree, ref types.ManagedObjectReference) *types.ManagedObjectReference {
	var out *types.ManagedObjectReference
	eachSnapshot(tree, func(s *types.VirtualMachineSnapshotTree) {
		for _, k := range s.ChildSnapshotList {
			if k.Snapshot == ref {
				p := s.Snapshot
				out = &p
			}
		}
	})
	return out
}

// depthOf is how many snapshots lie from a root to ref.
func depthOf(tree []types.VirtualMachineSnapshotTree, ref *types.ManagedObjectReference) int {
	n := 0
	for ref != nil {
		n++
		ref = parentOf(tree, *ref)
	}
	return n
}

// below returns a snapshot and all in its subtree, the deepest first.
func below(tree []types.VirtualMachineSnapshotTree, ref types.ManagedObjectReference) []types.ManagedObjectReference {
	var out []types.ManagedObjectReference
	inTree(tree, ref, func(list *[]types.VirtualMachineSnapshotTree, i int) {
		eachSnapshot((*list)[i:i+1], func(s *types.VirtualMachineSnapshotTree) { out = append(out, s.Snapshot) })
	})
	slices.Reverse(out)
	return out
}
