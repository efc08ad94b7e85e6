package vsphere_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
)

func TestChooseDatacenter(t *testing.T) {
	one := vsphere.Entities{}
	vsphere.NewEntity("Datacenters", one, "Folder", "root", "")
	vsphere.NewEntity("dc1", one, "Datacenter", "d1", "root")
	many := vsphere.Entities{}
	vsphere.NewEntity("Datacenters", many, "Folder", "root", "")
	vsphere.NewEntity("eu", many, "Folder", "f1", "root")
	vsphere.NewEntity("north", many, "Folder", "f2", "f1")
	vsphere.NewEntity("dc1", many, "Datacenter", "d1", "root")
	vsphere.NewEntity("dc1", many, "Datacenter", "d2", "f2")
	vsphere.NewEntity("dc2", many, "Datacenter", "d3", "f1")
	for _, c := range []struct {
		in   vsphere.Entities
		name string
		path string
		kind error
		text string
	}{
		{in: one, path: "/dc1"},
		{in: one, name: "dc1", path: "/dc1"},
		{in: one, name: "/dc1", path: "/dc1"},
		{in: one, name: "./dc1", path: "/dc1"},
		{in: one, name: "dc*", path: "/dc1"},
		{in: one, name: "Datacenter:d1", path: "/dc1"},
		{in: one, name: "dc9", kind: fault.ErrNotFound, text: "datacenter 'dc9' not found; there are /dc1"},
		{in: vsphere.Entities{}, kind: fault.ErrNotFound, text: "no default datacenter found"},
		{in: many, kind: fault.ErrInvalid, text: "default datacenter resolves to multiple instances, please specify: there are /dc1, /eu/dc2, /eu/north/dc1"},
		{in: many, name: "dc1", kind: fault.ErrInvalid, text: "path 'dc1' resolves to multiple datacenters"},
		{in: many, name: "dc2", path: "/eu/dc2"},
		{in: many, name: "/dc1", path: "/dc1"},
		{in: many, name: "eu/north/dc1", path: "/eu/north/dc1"},
		{in: many, name: "/eu/*", path: "/eu/dc2"},
		{in: many, name: "[", kind: fault.ErrNotFound, text: "'['"},
	} {
		got, err := vsphere.Choose(c.in, c.name)
		if got != c.path || !errors.Is(err, c.kind) || err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("%q: got %q, %v; want %q, %v with %q", c.name, got, err, c.path, c.kind, c.text)
		}
	}
}
