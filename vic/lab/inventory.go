package lab

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/simulator/vpx"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	datacenterName = "dc1"
	clusterName    = "cluster1"
)

// building is held by the lab that makes its inventory: the simulator has its licence,
// which it writes and reads meanwhile, in a variable of the package.
var building sync.Mutex

// build makes the inventory with the simulator's own API, before any of it is
// overridden.
func (l *Lab) build(ctx context.Context) error {
	building.Lock()
	defer building.Unlock()
	sctx := simulator.NewContext()
	l.reg = sctx.Map
	l.svc = simulator.New(simulator.NewServiceInstance(sctx, vpx.ServiceContent, vpx.RootFolder))
	l.session = sctx.Session
	l.session.UserName = l.opts.User

	c, err := vim25.NewClient(ctx, roundTripper{l.svc})
	if err != nil {
		return err
	}
	dc, err := object.NewRootFolder(c).CreateDatacenter(ctx, datacenterName)
	if err != nil {
		return fmt.Errorf("datacenter: %w", err)
	}
	l.dc = dc.Reference()
	folders, err := dc.Folders(ctx)
	if err != nil {
		return err
	}
	cluster, err := folders.HostFolder.CreateCluster(ctx, clusterName, types.ClusterConfigSpecEx{})
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	for i := range l.opts.Hosts {
		l.align(hostNumbers + 30*int64(i))
		t, err := cluster.AddHost(ctx, types.HostConnectSpec{HostName: fmt.Sprintf("host%d", i+1)}, true, nil, nil)
		if err == nil {
			err = t.Wait(ctx)
		}
		if err != nil {
			return fmt.Errorf("host%d: %w", i+1, err)
		}
	}
	hosts, err := find.NewFinder(c).HostSystemList(ctx, "/"+datacenterName+"/host/"+clusterName+"/*")
	if err != nil {
		return err
	}
	if err := l.buildDatastores(ctx, c, hosts); err != nil {
		return err
	}
	return l.buildNetworks(ctx, cluster.Reference(), hosts)
}

// A roundTripper hides the service's other methods from the client.
type roundTripper struct{ soap.RoundTripper }

func (l *Lab) buildDatastores(ctx context.Context, c *vim25.Client, hosts []*object.HostSystem) error {
	// In the order of their references, which only grow.
	for i, name := range l.places.Datastores {
		s := l.stores[name]
		if s == nil {
			continue // the lab had it once
		}
		l.align(datastoreNumbers + 2*int64(i))
		for _, h := range hosts {
			sys, err := h.ConfigManager().DatastoreSystem(ctx)
			if err != nil {
				return err
			}
			ds, err := sys.CreateLocalDatastore(ctx, name, s.dir)
			if err != nil {
				return fmt.Errorf("datastore %s: %w", name, err)
			}
			if s.ref.Value == "" { // the further hosts mount the first one's
				s.ref = ds.Reference()
			}
		}
		obj, ok := l.reg.Get(s.ref).(*simulator.Datastore)
		if !ok {
			return fmt.Errorf("datastore %s is not in the inventory", name)
		}
		obj.Capability.VmfsSparseSupported = types.NewBool(!s.native)
		obj.Capability.PerFileThinProvisioningSupported = true
		obj.Capability.UpitSupported = types.NewBool(false)
		obj.Summary.MultipleHostAccess = types.NewBool(len(hosts) > 1)
		obj.Summary.Url = s.dir // the simulator's key to its files
		if err := l.refreshDatastore(s); err != nil {
			return err
		}
	}
	return nil
}

// refreshDatastore notes what the filesystem has free.
func (l *Lab) refreshDatastore(s *store) error {
	capacity, free, err := s.space()
	if err != nil {
		return err
	}
	obj, ok := l.reg.Get(s.ref).(*simulator.Datastore)
	if !ok {
		return nil
	}
	l.sim.Lock()
	defer l.sim.Unlock()
	lc := l.context()
	lc.WithLock(obj, func() {
		old, _ := obj.Info.(*types.LocalDatastoreInfo)
		info := *old
		now := time.Now()
		info.FreeSpace, info.MaxFileSize, info.MaxVirtualDiskCapacity, info.Timestamp = free, 62<<40, 62<<40, &now
		lc.Update(obj, []types.PropertyChange{
			{Name: "info", Val: &info},
			{Name: "summary.capacity", Val: capacity},
			{Name: "summary.freeSpace", Val: free},
		})
	})
	return nil
}

// refreshAll corrects what the simulator has reckoned of the free space.
func (l *Lab) refreshAll() {
	for _, s := range l.stores {
		if err := l.refreshDatastore(s); err != nil {
			l.log.Warn("free space is not known", "datastore", s.name, "error", err)
		}
	}
}

// buildNetworks makes the port groups of the options, and no others.
func (l *Lab) buildNetworks(ctx context.Context, cluster types.ManagedObjectReference, hosts []*object.HostSystem) error {
	const vswitch = "vSwitch0"
	sys, err := hosts[0].ConfigManager().NetworkSystem(ctx)
	if err != nil {
		return err
	}
	dc, ok := l.reg.Get(l.dc).(*simulator.Datacenter)
	if !ok {
		return fmt.Errorf("no datacenter in the inventory")
	}
	for i, name := range l.places.Networks {
		if l.nets[name] == nil || l.networkNamed(dc, name) != nil {
			continue // the simulator makes "VM Network" with a datacenter
		}
		l.align(networkNumbers + int64(i))
		if err := sys.AddPortGroup(ctx, types.HostPortGroupSpec{Name: name, VswitchName: vswitch}); err != nil {
			return fmt.Errorf("network %q: %w", name, err)
		}
	}
	for _, ref := range slices.Clone(dc.Network) {
		o, ok := l.reg.Get(ref).(*mo.Network)
		if ok && l.nets[o.Name] == nil {
			dc.Network = slices.DeleteFunc(dc.Network, func(r types.ManagedObjectReference) bool { return r == ref })
			if f, ok := l.reg.Get(*o.Parent).(*simulator.Folder); ok {
				f.ChildEntity = slices.DeleteFunc(f.ChildEntity, func(r types.ManagedObjectReference) bool { return r == ref })
			}
			l.reg.Remove(l.context(), ref)
		}
	}
	var refs []types.ManagedObjectReference
	for _, n := range l.opts.Networks {
		o := l.networkNamed(dc, n.Name)
		if o == nil {
			return fmt.Errorf("network %q is not in the inventory", n.Name)
		}
		refs = append(refs, o.Self)
		l.networkNames[o.Self] = n.Name
		o.Summary = &types.NetworkSummary{Network: &o.Self, Name: n.Name, Accessible: true}
		o.Host = nil
		for _, h := range hosts {
			o.Host = append(o.Host, h.Reference())
		}
	}
	dc.Network = slices.Clone(refs)
	for _, h := range hosts {
		l.set(l.reg.Get(h.Reference()), types.PropertyChange{Name: "network", Val: slices.Clone(refs)})
	}
	l.set(l.reg.Get(cluster), types.PropertyChange{Name: "network", Val: slices.Clone(refs)})
	return nil
}

func (l *Lab) networkNamed(dc *simulator.Datacenter, name string) *mo.Network {
	for _, ref := range dc.Network {
		if o, ok := l.reg.Get(ref).(*mo.Network); ok && o.Name == name {
			return o
		}
	}
	return nil
}

// takeOver sends the requests that the simulator would only pretend to do to
// the lab's own objects.
func (l *Lab) takeOver() {
	l.override("SessionManager", &sessionHandler{l.newBase("session")})
	l.override("PropertyCollector", &collectorHandler{l.newBase("collector")})
	l.override("SearchIndex", &searchHandler{l.newBase("search"), l.reg.SearchIndex()})
	l.override("Task", &taskHandler{l.newBase("task")})
	l.override("FileManager", &fileHandler{l.newBase("file")})
	l.override("VirtualDiskManager", &diskHandler{l.newBase("disk")})
	l.override("HostDatastoreBrowser", &browserHandler{l.newBase("browser")})
	l.override("Datastore", &datastoreHandler{l.newBase("datastore")})
	l.override("Datacenter", &datacenterHandler{l.newBase("datacenter")})
	l.override("Folder", &folderHandler{l.newBase("folder")})
	l.override("ResourcePool", &poolHandler{l.newBase("pool")})
	l.override("PerformanceManager", &perfHandler{l.newBase("perf")})
	l.override("VirtualMachine", &vmHandler{l.newBase("vm")})
	l.override("VirtualMachineSnapshot", &snapshotHandler{l.newBase("snapshot")})
	l.reg.AddHandler(&observer{l.newBase("observer")})
	l.reg.Handler = l.dispatch
	l.reg.Cookie = l.sessions.cookie

	// The simulator's own watch of idle sessions keeps a goroutine for each
	// login; the lab's does without.
	om := l.reg.OptionManager()
	om.Setting = slices.DeleteFunc(om.Setting, func(o types.BaseOptionValue) bool {
		return o.GetOptionValue().Key == "config.vmacore.soap.sessionTimeout"
	})
}

// datastoreHandler answers the methods of Datastore.
type datastoreHandler struct{ base }

func (h *datastoreHandler) refresh(ref types.ManagedObjectReference) types.BaseMethodFault {
	for _, s := range h.lab.stores {
		if s.ref == ref {
			if err := h.lab.refreshDatastore(s); err != nil {
				return say(&types.HostConfigFault{}, "datastore %s: %v", s.name, err)
			}
			return nil
		}
	}
	return &types.ManagedObjectNotFound{Obj: ref}
}

func (h *datastoreHandler) RefreshDatastore(_ *simulator.Context, req *types.RefreshDatastore) soap.HasFault {
	body := new(methods.RefreshDatastoreBody)
	if fault := h.refresh(req.This); fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = new(types.RefreshDatastoreResponse)
	return body
}

func (h *datastoreHandler) RefreshDatastoreStorageInfo(_ *simulator.Context, req *types.RefreshDatastoreStorageInfo) soap.HasFault {
	body := new(methods.RefreshDatastoreStorageInfoBody)
	if fault := h.refresh(req.This); fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = new(types.RefreshDatastoreStorageInfoResponse)
	return body
}

// DestroyTask refuses: datastores are the lab's own.
func (h *datastoreHandler) DestroyTask(*simulator.Context, *types.Destroy_Task) soap.HasFault {
	return &methods.Destroy_TaskBody{Fault_: soapFault(notSupported("destroying datastores"))}
}

// RenameTask refuses: a datastore's name is its directory's.
func (h *datastoreHandler) RenameTask(*simulator.Context, *types.Rename_Task) soap.HasFault {
	return &methods.Rename_TaskBody{Fault_: soapFault(notSupported("renaming datastores"))}
}

// DestroyTask refuses: there is one datacenter.
func (h *datacenterHandler) DestroyTask(*simulator.Context, *types.Destroy_Task) soap.HasFault {
	return &methods.Destroy_TaskBody{Fault_: soapFault(notSupported("destroying its datacenter"))}
}

// RenameTask refuses: paths of files name the datacenter.
func (h *datacenterHandler) RenameTask(*simulator.Context, *types.Rename_Task) soap.HasFault {
	return &methods.Rename_TaskBody{Fault_: soapFault(notSupported("renaming its datacenter"))}
}
