package lab_test

import (
	"slices"
	"testing"

	"github.com/vmware/govmomi/performance"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/vic/lab"
)

// What the lab does not measure it does not tell. That figures of a VM that QEMU
// runs are real ones is a test of package engine.
func TestPerfRefuses(t *testing.T) {
	c := login(t, start(t, lab.Options{NoQEMU: true}))
	ctx := t.Context()
	vm := c.mustCreate(spec("idle"))
	tk, err := vm.PowerOn(ctx)
	ok(t, done(t, tk, err))
	m := performance.NewManager(c.Client.Client)
	names := must(m.CounterInfoByName(ctx))(t)
	ids := must(m.AvailableMetric(ctx, vm.Reference(), 20))(t)
	if len(ids) != 0 {
		t.Errorf("of a VM without a process: %v", ids)
	}
	spec := types.PerfQuerySpec{Entity: vm.Reference(), IntervalId: 20, MetricId: []types.PerfMetricId{{CounterId: names["cpu.usage.average"].Key}}}
	query := func(change func(*types.PerfQuerySpec)) error {
		s := spec
		s.MetricId = slices.Clone(s.MetricId)
		change(&s)
		_, err := m.Query(ctx, []types.PerfQuerySpec{s})
		return err
	}
	res := must(m.Query(ctx, []types.PerfQuerySpec{spec}))(t)
	if e, ok := res[0].(*types.PerfEntityMetric); !ok || len(e.SampleInfo)+len(e.Value) != 0 {
		t.Errorf("samples of a VM without a process: %+v", res[0])
	}
	wantFault(t, query(func(s *types.PerfQuerySpec) { s.IntervalId = 300 }), &types.NotSupported{})
	wantFault(t, query(func(s *types.PerfQuerySpec) { s.Format = "csv" }), &types.NotSupported{})
	wantFault(t, query(func(s *types.PerfQuerySpec) { s.MetricId[0].CounterId = names["net.received.average"].Key }), &types.InvalidArgument{})
	wantFault(t, query(func(s *types.PerfQuerySpec) { s.MetricId[0].Instance = "0" }), &types.InvalidArgument{})
	wantFault(t, query(func(s *types.PerfQuerySpec) { s.Entity.Value = "vm-none" }), &types.ManagedObjectNotFound{})
}
