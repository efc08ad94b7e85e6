package containervm

import (
	"context"
	"time"

	"github.com/vmware/govmomi/performance"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// HostStats are what the host measures of a container's VM from outside. They are
// averages over Interval, not counters since the start, and of the whole VM: its
// kernel and the tether included, the guest's page cache as well.
type HostStats struct {
	// Time of the sample's end by the host's clock, and the time that it is of, 20
	// seconds on vSphere.
	Time     time.Time
	Interval time.Duration
	// CPUMHz and CPUPercent are the use of processors, the latter of all that the VM
	// has, at most 100.
	CPUMHz     int64
	CPUPercent float64
	// MemoryConsumed is the host's memory that the VM has, and MemoryActive what of it
	// the host takes for used; in bytes.
	MemoryConsumed int64
	MemoryActive   int64
	// Bytes in a second of all adapters and of all disks.
	NetworkReceived, NetworkSent int64
	DiskRead, DiskWritten        int64
	// Missing are the vSphere counters of the fields above that are 0 because the host
	// does not measure them.
	Missing []string
}

// realtimeInterval is vSphere's for samples of the present, in seconds.
const realtimeInterval = 20

// HostStats asks vSphere's PerformanceManager what the VM uses, for guests that do
// not answer (see Stats, which tells more, and of the container alone). A VM that is
// off is vic.ErrState, and one that has no sample yet, as in its first seconds,
// vic.ErrUnavailable.
func (v *VM) HostStats(ctx context.Context) (HostStats, error) {
	s, err := v.hostStats(ctx)
	return s, fault.Wrap("measure container from its host", v.Ref(), err)
}

func (v *VM) hostStats(ctx context.Context) (s HostStats, err error) {
	info, err := v.Inspect(ctx)
	if err != nil {
		return s, err
	}
	if !info.On() {
		return s, fault.Of(vic.ErrState, "it is %s, not running", info.State)
	}
	m := performance.NewManager(v.c.Vim())
	byName, err := m.CounterInfoByName(ctx)
	if err != nil {
		return s, vsphere.Judge(err)
	}
	there, err := m.AvailableMetric(ctx, v.ref, realtimeInterval)
	if err != nil {
		return s, vsphere.Judge(err)
	}
	available := map[int32]bool{}
	for _, id := range there {
		available[id.CounterId] = true
	}
	set := map[int32]func(int64){}
	spec := types.PerfQuerySpec{Entity: v.ref, MaxSample: 1, IntervalId: realtimeInterval}
	for _, c := range s.counters() {
		i, ok := byName[c.name]
		if !ok || !available[i.Key] {
			s.Missing = append(s.Missing, c.name)
			continue
		}
		set[i.Key] = c.set
		spec.MetricId = append(spec.MetricId, types.PerfMetricId{CounterId: i.Key})
	}
	if len(spec.MetricId) == 0 {
		return s, errNoSample()
	}
	res, err := m.Query(ctx, []types.PerfQuerySpec{spec})
	if err != nil {
		return s, vsphere.Judge(err)
	}
	for _, e := range res {
		metric, ok := e.(*types.PerfEntityMetric)
		if !ok || len(metric.SampleInfo) == 0 {
			continue
		}
		last := metric.SampleInfo[len(metric.SampleInfo)-1]
		s.Time, s.Interval = last.Timestamp, time.Duration(last.Interval)*time.Second
		for _, val := range metric.Value {
			series, ok := val.(*types.PerfMetricIntSeries)
			if ok && len(series.Value) > 0 && set[series.Id.CounterId] != nil {
				set[series.Id.CounterId](max(0, series.Value[len(series.Value)-1])) // -1 is none
			}
		}
	}
	if s.Time.IsZero() {
		return s, errNoSample()
	}
	return s, nil
}

func errNoSample() error {
	return fault.Of(vic.ErrUnavailable, "vSphere has no sample of it yet: hosts take one every 20 seconds")
}

type counterOf struct {
	name string
	set  func(int64)
}

// counters are vSphere's by name, and what their values mean (vSphere Web Services
// API, "Performance Counters": KB are 1024 bytes, percents come in hundredths).
func (s *HostStats) counters() []counterOf {
	kib := func(to *int64) func(int64) { return func(n int64) { *to = n << 10 } }
	return []counterOf{
		{"cpu.usagemhz.average", func(n int64) { s.CPUMHz = n }},
		{"cpu.usage.average", func(n int64) { s.CPUPercent = float64(n) / 100 }},
		{"mem.consumed.average", kib(&s.MemoryConsumed)},
		{"mem.active.average", kib(&s.MemoryActive)},
		{"net.received.average", kib(&s.NetworkReceived)},
		{"net.transmitted.average", kib(&s.NetworkSent)},
		{"disk.read.average", kib(&s.DiskRead)},
		{"disk.write.average", kib(&s.DiskWritten)},
	}
}
