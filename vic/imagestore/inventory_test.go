package imagestore_test

import (
	"testing"

	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"

	"github.com/vicsdk/vic-go/internal/testlab"
)

// inventory lists the names of all VMs.
func inventory(t *testing.T, e *testlab.Env) []string {
	t.Helper()
	vc := e.Client.Vim()
	v, err := view.NewManager(vc).CreateContainerView(t.Context(), vc.ServiceContent.RootFolder, []string{"VirtualMachine"}, true)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Destroy(t.Context())
	var vms []mo.VirtualMachine
	if err := v.Retrieve(t.Context(), []string{"VirtualMachine"}, []string{"name"}, &vms); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range vms {
		out = append(out, m.Name)
	}
	return out
}
