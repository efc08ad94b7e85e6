package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/simulator/esx"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// folderHandler answers the methods of Folder.
type folderHandler struct{ base }

func (h *folderHandler) CreateVMTask(ctx *simulator.Context, req *types.CreateVM_Task) soap.HasFault {
	body := new(methods.CreateVM_TaskBody)
	ref, fault := h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "createVm"}, func(_ context.Context, t *task) (types.AnyType, types.BaseMethodFault) {
		return h.lab.createVM(detached(ctx), req)
	})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.CreateVM_TaskResponse{Returnval: ref}
	return body
}

func (l *Lab) createVM(ctx *simulator.Context, req *types.CreateVM_Task) (types.AnyType, types.BaseMethodFault) {
	f, ok := l.reg.Get(req.This).(*simulator.Folder)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: req.This}
	}
	c := &req.Config
	if fault := l.checkPlacement(f, req); fault != nil {
		return nil, fault
	}
	if fault := l.checkConfig(c); fault != nil {
		return nil, fault
	}
	// Two creations of one name are decided here, before either has an object.
	release, fault := l.claimName(req.This, c.Name)
	if fault != nil {
		return nil, fault
	}
	defer release()

	dir, made, fault := l.vmDirectory(c)
	if fault != nil {
		return nil, fault
	}
	defer l.refreshAll()
	p := &plan{lab: l, name: c.Name, dir: dir, keys: map[int32]int32{}, devices: devicesOf(copyDevices(esx.VirtualDevice))}
	fault = l.withFiles(func() types.BaseMethodFault { return p.apply(c.DeviceChange) })
	var ref types.AnyType
	if fault == nil {
		c.DeviceChange = p.changes
		if c.Uuid == "" {
			c.Uuid = uuid.NewString()
		}
		if c.InstanceUuid == "" {
			c.InstanceUuid = uuid.NewString()
		}
		if c.NumCPUs == 0 {
			c.NumCPUs = 1
		}
		if c.MemoryMB == 0 {
			c.MemoryMB = 32
		}
		ref, fault = l.inner(ctx, f, func() soap.HasFault { return f.CreateVMTask(ctx, req) })
	}
	if fault != nil {
		p.undo()
		if made {
			_ = dir.root.RemoveAll(dir.rel)
		}
		return nil, fault
	}
	return ref, nil
}

// checkPlacement sees that what the request refers to exists: the simulator
// takes it for granted.
func (l *Lab) checkPlacement(f *simulator.Folder, req *types.CreateVM_Task) types.BaseMethodFault {
	c := &req.Config
	vmFolder := false
	for _, t := range f.ChildType {
		vmFolder = vmFolder || t == "VirtualMachine"
	}
	if !vmFolder {
		return notSupported("VMs in a folder of other objects")
	}
	if c.Name == "" || len(c.Name) > 80 || strings.ContainsAny(c.Name, "/\\%\x00\n") {
		return say(&types.InvalidName{Name: c.Name}, "configSpec.name %q is not 1 to 80 characters without / \\ %%", c.Name)
	}
	if c.Files == nil || c.Files.VmPathName == "" {
		return say(&types.InvalidVmConfig{Property: "configSpec.files.vmPathName"}, "configSpec.files.vmPathName is missing: name a datastore")
	}
	if c.Files.LogDirectory != "" || c.Files.SnapshotDirectory != "" || c.Files.SuspendDirectory != "" {
		return notSupported("directories of a VM's files other than its own (configSpec.files)")
	}
	if _, ok := l.reg.Get(req.Pool).(*simulator.ResourcePool); !ok {
		return invalidArgument("pool", "%s is no resource pool", req.Pool.Value)
	}
	if req.Host != nil {
		if _, ok := l.reg.Get(*req.Host).(*simulator.HostSystem); !ok {
			return invalidArgument("host", "%s is no host", req.Host.Value)
		}
	}
	return nil
}

func (l *Lab) claimName(folder types.ManagedObjectReference, name string) (release func(), fault types.BaseMethodFault) {
	key := folder.Value + "\x00" + name
	l.mu.Lock()
	if l.claimed[key] {
		l.mu.Unlock()
		return nil, say(&types.DuplicateName{Name: name, Object: folder}, "the name %q already exists", name)
	}
	l.claimed[key] = true
	l.mu.Unlock()
	release = func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.claimed, key)
	}
	if ref, ok := l.sibling(folder, name); ok {
		release()
		return nil, say(&types.DuplicateName{Name: name, Object: ref}, "the name %q already exists", name)
	}
	return release, nil
}

// vmDirectory settles where the VM's files go and makes the directory. With
// "[datastore]" it is one of the VM's name; a path of a .vmx file says it all.
func (l *Lab) vmDirectory(c *types.VirtualMachineConfigSpec) (dir location, made bool, fault types.BaseMethodFault) {
	p, fault := l.resolve(c.Files.VmPathName)
	if fault != nil {
		return p, false, fault
	}
	if path.Ext(p.rel) == ".vmx" {
		if p.exists() {
			return p, false, fileExists(p.String())
		}
		dir = p.parent()
		if dir.rel == "." {
			return p, false, invalidArgument("configSpec.files.vmPathName", "%s is not in a directory of its own", p)
		}
		err := dir.root.Mkdir(dir.rel, 0o700)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return p, false, fileFault(dir.String(), err)
		}
		if err != nil {
			rotateLog(dir)
		}
		c.Files.VmPathName = p.String()
		return dir, err == nil, nil
	}
	if p.rel != "." {
		return p, false, invalidArgument("configSpec.files.vmPathName", "%s is neither a datastore nor a .vmx file", p)
	}
	name := strings.Map(func(r rune) rune {
		if r < ' ' || strings.ContainsRune(`"*:<>?|`, r) {
			return '_'
		}
		return r
	}, c.Name)
	if strings.HasPrefix(name, ".") {
		name = "_" + name[1:]
	}
	for n := 0; n < 1000; n++ {
		dir = location{p.store, name}
		if n > 0 {
			dir.rel = fmt.Sprintf("%s_%d", name, n)
		}
		err := dir.root.Mkdir(dir.rel, 0o700)
		if err == nil {
			c.Files.VmPathName = (&object.DatastorePath{Datastore: p.name, Path: dir.rel + "/" + name + ".vmx"}).String()
			return dir, true, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return p, false, fileFault(dir.String(), err)
		}
	}
	return p, false, fileExists(dir.String())
}

// rotateLog makes way for a new vmware.log, keeping the old one beside it.
func rotateLog(dir location) {
	name := path.Join(dir.rel, "vmware.log")
	for n := 1; n < 1000; n++ {
		old := path.Join(dir.rel, fmt.Sprintf("vmware-%d.log", n))
		if _, err := dir.root.Lstat(old); errors.Is(err, fs.ErrNotExist) {
			_ = dir.root.Rename(name, old)
			return
		}
	}
	_ = dir.root.Remove(name)
}

func (h *folderHandler) MoveIntoFolderTask(ctx *simulator.Context, req *types.MoveIntoFolder_Task) soap.HasFault {
	body := new(methods.MoveIntoFolder_TaskBody)
	f, ok := h.lab.reg.Get(req.This).(*simulator.Folder)
	if !ok {
		body.Fault_ = soapFault(&types.ManagedObjectNotFound{Obj: req.This})
		return body
	}
	ref, fault := h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "moveIntoFolder"}, func(context.Context, *task) (types.AnyType, types.BaseMethodFault) {
		for _, r := range req.List {
			var name string
			lc := h.lab.context()
			switch o := h.lab.reg.Get(r).(type) {
			case *simulator.VirtualMachine:
				lc.WithLock(o, func() { name = o.Name })
			case *simulator.Folder:
				if h.lab.within(req.This, r) {
					return nil, invalidArgument("list", "folder %s would lie in itself", r.Value)
				}
				lc.WithLock(o, func() { name = o.Name })
			default:
				return nil, notSupported("moving %s into a folder", r.Value)
			}
			if _, dup := h.lab.sibling(req.This, name); dup {
				return nil, say(&types.DuplicateName{Name: name, Object: r}, "the name %q already exists", name)
			}
		}
		c := detached(ctx)
		return h.lab.inner(c, f, func() soap.HasFault { return f.MoveIntoFolderTask(c, req) })
	})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.MoveIntoFolder_TaskResponse{Returnval: ref}
	return body
}

// within tells whether ref is root or lies below it.
func (l *Lab) within(ref, root types.ManagedObjectReference) bool {
	for {
		if ref == root {
			return true
		}
		f, ok := l.reg.Get(ref).(*simulator.Folder)
		if !ok || f.Parent == nil {
			return false
		}
		ref = *f.Parent
	}
}
