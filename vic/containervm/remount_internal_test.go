package containervm

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

// changed is the hardware after a planned change, as vSphere would have it.
func (st *hardware) changed(t *testing.T, spec *types.VirtualMachineConfigSpec) *hardware {
	t.Helper()
	out := *st
	out.info.config = spec.ExtraConfig[0].GetOptionValue().Value.(string)
	if sum := spec.ExtraConfig[1].GetOptionValue(); sum.Key != keyConfigSum || sum.Value != configSum(out.info.config) {
		t.Errorf("the sum is %v", sum)
	}
	out.config = tether.Config{}
	if err := json.Unmarshal([]byte(out.info.config), &out.config); err != nil {
		t.Fatal(err)
	}
	out.devices = append(object.VirtualDeviceList{}, st.devices...)
	for _, c := range spec.DeviceChange {
		s := c.GetVirtualDeviceConfigSpec()
		if s.FileOperation != "" {
			t.Errorf("a file operation %q", s.FileOperation)
		}
		if s.Operation == types.VirtualDeviceConfigSpecOperationAdd {
			out.devices = append(out.devices, s.Device)
			continue
		}
		kept := object.VirtualDeviceList{}
		for _, d := range out.devices {
			if d != s.Device {
				kept = append(kept, d)
			}
		}
		out.devices = kept
	}
	return &out
}

func TestPlannedMounts(t *testing.T) {
	c := tether.Config{Version: 1, ID: "x", Process: tether.Process{Args: []string{"sh"}}}
	doc, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(doc), "{", `{"later":{"a":1},`, 1)
	st := &hardware{config: c, controller: 1000, devices: object.VirtualDeviceList{vsphere.Disk(2000, 1000, 0, "[ds] c/c.vmdk", "[ds] image.vmdk", 1<<30)}}
	st.info.config = text
	volume := func(n int) *Mount {
		return &Mount{Target: fmt.Sprintf("/v%d", n), Volume: fmt.Sprint(n), Disk: vic.Disk{Path: fmt.Sprintf("[ds] v%d.vmdk", n)}}
	}
	attach := func(m *Mount) {
		t.Helper()
		_, spec, err := st.attach(m)
		if err != nil {
			t.Fatal(err)
		}
		st = st.changed(t, spec)
	}
	detach := func(target string) {
		t.Helper()
		spec, err := st.detach(target)
		if err != nil {
			t.Fatal(err)
		}
		st = st.changed(t, spec)
	}
	units := func() (out []int32) {
		for _, d := range st.devices[1:] {
			out = append(out, *d.GetVirtualDevice().UnitNumber)
		}
		return out
	}
	for n := range maxDisks {
		attach(volume(n))
	}
	if d := cmp.Diff([]int32{1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15}, units()); d != "" {
		t.Error(d)
	}
	if _, _, err := st.attach(volume(maxDisks)); !errors.Is(err, vic.ErrUnsupported) {
		t.Errorf("one disk more than there is room for: %v", err)
	}
	// A second target takes no further unit, and keeps the disk.
	again := volume(4)
	again.Target = "/again"
	attach(again)
	detach("/v4")
	detach("/v2")
	if d := cmp.Diff([]int32{1, 2, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15}, units()); d != "" {
		t.Error(d)
	}
	attach(volume(20))
	if got := st.config.Mounts[len(st.config.Mounts)-1].Volume.Unit; got != 3 {
		t.Errorf("a unit that has become free is not taken, but %d", got)
	}
	if _, spec, err := st.attach(volume(20)); spec != nil || err != nil {
		t.Errorf("the same again: %v, %v", spec, err)
	}
	ro := volume(20)
	ro.ReadOnly = true
	if _, _, err := st.attach(ro); !errors.Is(err, vic.ErrConflict) {
		t.Errorf("the same, but read-only: %v", err)
	}
	for range maxDisks {
		detach(st.config.Mounts[0].Target)
	}
	if len(st.devices) != 1 || st.info.config != `{"authority":"","hostname":"","id":"x","later":{"a":1},"process":{"args":["sh"]},"root":{"unit":0},"stop":{},"version":1}` {
		t.Errorf("%d devices, configuration %s", len(st.devices), st.info.config)
	}
	if spec, err := st.detach("/v1"); spec != nil || err != nil {
		t.Errorf("what is not there: %v, %v", spec, err)
	}
}
