package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// inventoryDir, below the lab's directory, has a file for each object of the
// inventory that clients made: REFERENCE.json, with the object in the wire form of
// vSphere's JSON API. custom.json has the custom fields, places.json what names
// the objects that Options make have had, last.json the highest number that a
// reference had, leases.json the addresses that DHCP gave.
const inventoryDir = "inventory"

// A journal keeps the inventory in files. Changes mark objects; flush writes the
// marked ones, each by one rename. It is called before anything of a change is
// told to anybody: before the answer to a request, the end of a task, the answer
// to a guest. So what a client or a guest knows is there after the end of the
// lab's process, however it comes. The end of the machine is another thing:
// nothing is forced out of the kernel's memory, no more than QEMU's writes to
// disks are.
type journal struct {
	lab   *Lab
	dir   string
	built map[types.ManagedObjectReference]bool // objects that Options make

	mu     sync.Mutex // held for moments only, also under objects' locks
	ready  bool
	marked map[types.ManagedObjectReference]bool
	last   int64 // the highest number of a reference

	writing sync.Mutex // held while files are written
	kept    int64      // the last that is written
	leases  map[string]map[string]string
}

// customFields is the mark of all custom fields and their values.
var customFields = types.ManagedObjectReference{Type: "CustomFieldsManager", Value: "CustomFieldsManager"}

func (j *journal) path(name string) string { return filepath.Join(j.dir, name+".json") }

// mark has an object written by the next flush. It may be called under any lock
// but the journal's.
func (j *journal) mark(ref types.ManagedObjectReference) {
	switch ref.Type {
	case "VirtualMachine", "VirtualMachineSnapshot", "Folder", "ResourcePool":
	case customFields.Type:
		ref = customFields
	default:
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.ready || j.built[ref] && ref != customFields {
		return
	}
	j.marked[ref] = true
	j.last = max(j.last, numberOf(ref))
}

// numberOf is the number in a reference's value, "vm-27".
func numberOf(ref types.ManagedObjectReference) int64 {
	n, _ := strconv.ParseInt(strings.TrimLeft(ref.Value[strings.LastIndexByte(ref.Value, '-')+1:], "vh"), 10, 64)
	return n
}

// flush writes what is marked. An error is in the lab's log, and what could not
// be written stays marked.
func (j *journal) flush() {
	j.mu.Lock()
	idle := len(j.marked) == 0
	j.mu.Unlock()
	// One that writes what concerns us may not have come to its end yet.
	j.writing.Lock()
	defer j.writing.Unlock()
	if idle {
		return
	}
	j.mu.Lock()
	marked, last := j.marked, j.last
	j.marked = map[types.ManagedObjectReference]bool{}
	j.mu.Unlock()
	var errs []error
	if last > j.kept {
		if err := j.write("last", last); err != nil {
			errs = append(errs, err)
		} else {
			j.kept = last
		}
	}
	for ref := range marked {
		if err := j.keep(ref); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", ref.Value, err))
			j.mark(ref)
		}
	}
	if err := j.keepLeases(); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		j.lab.log.Error("the inventory cannot be written: an end of the lab now would lose changes", "error", err)
	}
}

// keep writes one object, or removes its file where the object is gone.
func (j *journal) keep(ref types.ManagedObjectReference) error {
	l := j.lab
	if ref == customFields {
		return j.keepCustomFields()
	}
	obj := l.reg.Get(ref)
	if obj == nil {
		err := os.Remove(j.path(ref.Value))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	}
	// The simulator has VMs that it is making in the inventory before they are
	// whole, and does not lock them.
	l.sim.Lock()
	var b []byte
	var err error
	lc := l.context()
	lc.WithLock(obj, func() {
		switch o := obj.(type) {
		case *simulator.VirtualMachine:
			if o.Config == nil || o.Parent == nil || o.ResourcePool == nil || o.Runtime.Host == nil {
				return // it was not made after all
			}
			b, err = encodeObject(savedVM{VM: o.VirtualMachine, Lab: l.noted(ref)})
		case *simulator.VirtualMachineSnapshot:
			b, err = encodeObject(o.VirtualMachineSnapshot)
		case *simulator.Folder:
			b, err = encodeObject(o.Folder)
		case *simulator.ResourcePool:
			b, err = encodeObject(o.ResourcePool)
		}
	})
	l.sim.Unlock()
	if err != nil || b == nil {
		return err
	}
	return writeFile(j.path(ref.Value), b)
}

// write keeps a value of ours.
func (j *journal) write(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFile(j.path(name), b)
}

// read returns false where nothing was kept.
func (j *journal) read(name string, v any) (bool, error) {
	b, err := os.ReadFile(j.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return false, fmt.Errorf("inventory: %s: %w", j.path(name), err)
	}
	return true, nil
}

// A savedVM is a VM's file.
type savedVM struct {
	VM  mo.VirtualMachine `json:"vm"`
	Lab labState          `json:"lab"`
}

// A labState is what the lab itself has to know of a VM after a restart.
type labState struct {
	// BootKeys are the keys of extraConfig at power-on, in order.
	BootKeys []string `json:"bootKeys,omitempty"`
	// Shape is that of the VM's QEMU, since its power-on.
	Shape shape `json:"shape"`
	// State is the file of a suspended VM's state.
	State string `json:"state,omitempty"`
	// Snapshots are the VM's, and SnapshotID the last number that one got. Deltas
	// are the disks that were made for snapshots.
	Snapshots  []savedSnapshot `json:"snapshots,omitempty"`
	SnapshotID int32           `json:"snapshotId,omitempty"`
	Deltas     []string        `json:"deltas,omitempty"`
}

func encodeObject(v any) ([]byte, error) {
	var b bytes.Buffer
	err := types.NewJSONEncoder(&b).Encode(v)
	return b.Bytes(), err
}

func decodeObject(b []byte, v any) error {
	return types.NewJSONDecoder(bytes.NewReader(b)).Decode(v)
}

// noted is a copy of what the lab knows of a VM.
func (l *Lab) noted(ref types.ManagedObjectReference) labState {
	l.mu.Lock()
	m := l.machines[ref]
	l.mu.Unlock()
	if m == nil {
		return labState{}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.noted
}

// note changes what is to be known of a VM after a restart. What s has of slices
// and maps is not changed but replaced.
func (l *Lab) note(m *machine, change func(s *labState)) {
	m.mu.Lock()
	change(&m.noted)
	m.mu.Unlock()
	l.journal.mark(m.ref)
}

// A savedFields is the file of the custom fields.
type savedFields struct {
	Defs   []types.CustomFieldDef
	Values []savedValue
}

type savedValue struct {
	Entity types.ManagedObjectReference
	Key    int32
	Value  string
}

func (j *journal) keepCustomFields() error {
	l := j.lab
	var s savedFields
	lc := l.context()
	cfm := l.reg.CustomFieldsManager()
	lc.WithLock(cfm, func() { s.Defs = slices.Clone(cfm.Field) })
	l.sim.Lock()
	for _, e := range l.reg.All("") {
		lc := l.context()
		lc.WithLock(e, func() {
			for _, v := range e.Entity().CustomValue {
				if x, ok := v.(*types.CustomFieldStringValue); ok {
					s.Values = append(s.Values, savedValue{e.Reference(), x.Key, x.Value})
				}
			}
		})
	}
	l.sim.Unlock()
	return j.write("custom", s)
}

// keepLeases writes the addresses that DHCP gave, where they have changed. A
// guest tells of its address after it has it, and is answered after this.
func (j *journal) keepLeases() error {
	now := map[string]map[string]string{}
	for name, n := range j.lab.nets {
		mine := n.pool.Leases()
		maps.DeleteFunc(mine, func(_, mac string) bool {
			return !strings.Contains(mac, ":") || mac == net.HardwareAddr(n.segment.gateway[:]).String()
		})
		if len(mine) > 0 {
			now[name] = mine
		}
	}
	if maps.EqualFunc(now, j.leases, maps.Equal[map[string]string, map[string]string]) {
		return nil
	}
	if err := j.write("leases", now); err != nil {
		return err
	}
	j.leases = now
	return nil
}

// touched are the objects that a request changes without the simulator's telling
// anybody.
type touched struct {
	mu   sync.Mutex
	refs []types.ManagedObjectReference
}

type touchedKey struct{}

// quiet are the methods that change objects so.
var quiet = set(`AddCustomFieldDef RemoveCustomFieldDef RenameCustomFieldDef SetField setCustomValue SetCustomValue UpdateConfig`)

// touch notes what a request is about to change.
func touch(ctx context.Context, m *simulator.Method) {
	t, ok := ctx.Value(touchedKey{}).(*touched)
	if !ok || !quiet[m.Name] {
		return
	}
	ref := m.This
	if m.Name != "UpdateConfig" {
		ref = customFields
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refs = append(t.refs, ref)
}

// durably serves a request whose answer goes out when the journal has what it
// tells of.
func (l *Lab) durably(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t := new(touched)
		h.ServeHTTP(&durableWriter{ResponseWriter: w, lab: l, t: t}, r.WithContext(context.WithValue(r.Context(), touchedKey{}, t)))
	})
}

type durableWriter struct {
	http.ResponseWriter
	lab *Lab
	t   *touched
}

// flush is called for the header and again for the body, which is encoded
// between the two.
func (w *durableWriter) flush() {
	w.t.mu.Lock()
	for _, ref := range w.t.refs {
		w.lab.journal.mark(ref)
	}
	w.t.refs = nil
	w.t.mu.Unlock()
	w.lab.journal.flush()
}

func (w *durableWriter) WriteHeader(code int) {
	w.flush()
	w.ResponseWriter.WriteHeader(code)
}

func (w *durableWriter) Write(p []byte) (int, error) {
	w.flush()
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *durableWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
