package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/simulator/vpx"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// perfHandler answers the methods of PerformanceManager for VMs that run. What it
// tells is what this machine measures of the VM's QEMU; counters of what it does not
// measure are not available, where the simulator would make figures up.
type perfHandler struct{ base }

// realtime is the interval of vSphere's samples of the present, in seconds, the only
// ones that the lab has.
const realtime = 20

// A reading is what a process has used by a time.
type reading struct {
	at  time.Time
	cpu time.Duration
	rss int64 // bytes
}

// perfCounters are what the lab measures: a VM's use of processors and of memory.
var perfCounters = map[string]func(from, to reading, mhz, cpus int64) int64{
	"cpu.usagemhz.average": func(a, b reading, mhz, _ int64) int64 {
		return int64(float64(b.cpu-a.cpu) / float64(b.at.Sub(a.at)) * float64(mhz))
	},
	// Hundredths of a percent of all of the VM's processors.
	"cpu.usage.average": func(a, b reading, _, cpus int64) int64 {
		return int64(float64(b.cpu-a.cpu) / float64(b.at.Sub(a.at)) / float64(cpus) * 10000)
	},
	"mem.consumed.average": func(_, b reading, _, _ int64) int64 { return b.rss >> 10 },
}

// counters finds the names of what is measured by their keys.
func (h *perfHandler) counters() map[int32]string {
	pm, ok := h.lab.reg.Get(*vpx.ServiceContent.PerfManager).(*simulator.PerformanceManager)
	out := map[int32]string{}
	if !ok {
		return out
	}
	for i := range pm.PerfCounter {
		c := &pm.PerfCounter[i]
		if _, ok := perfCounters[c.Name()]; ok {
			out[c.Key] = c.Name()
		}
	}
	return out
}

// QueryAvailablePerfMetric tells what a VM that runs is measured by.
func (h *perfHandler) QueryAvailablePerfMetric(_ *simulator.Context, req *types.QueryAvailablePerfMetric) soap.HasFault {
	body := &methods.QueryAvailablePerfMetricBody{Res: new(types.QueryAvailablePerfMetricResponse)}
	if req.IntervalId != 0 && req.IntervalId != realtime {
		return body // Nothing is kept of the past.
	}
	m, _, fault := h.lab.machine(req.Entity)
	if fault != nil {
		body.Res, body.Fault_ = nil, soapFault(fault)
		return body
	}
	if h.lab.pidOf(m) != 0 {
		for key := range h.counters() {
			body.Res.Returnval = append(body.Res.Returnval, types.PerfMetricId{CounterId: key})
		}
	}
	return body
}

// QueryPerf gives one sample of each VM, of this moment: an average since some 20
// seconds ago, or since the first query of it, or else since its QEMU began. The
// sample's interval tells of how many seconds it is.
func (h *perfHandler) QueryPerf(_ *simulator.Context, req *types.QueryPerf) soap.HasFault {
	body := &methods.QueryPerfBody{Res: new(types.QueryPerfResponse)}
	names := h.counters()
	for i := range req.QuerySpec {
		metric, fault := h.sample(&req.QuerySpec[i], names)
		if fault != nil {
			body.Res, body.Fault_ = nil, soapFault(fault)
			return body
		}
		body.Res.Returnval = append(body.Res.Returnval, metric)
	}
	return body
}

func (h *perfHandler) sample(q *types.PerfQuerySpec, names map[int32]string) (*types.PerfEntityMetric, types.BaseMethodFault) {
	switch {
	case q.IntervalId != 0 && q.IntervalId != realtime:
		return nil, notSupported("samples of %d seconds (querySpec.intervalId): there are those of the present, %d", q.IntervalId, realtime)
	case q.StartTime != nil || q.EndTime != nil:
		return nil, notSupported("samples of the past (querySpec.startTime, endTime)")
	case q.Format != "" && q.Format != string(types.PerfFormatNormal):
		return nil, notSupported("samples in the format %q", q.Format)
	}
	m, vm, fault := h.lab.machine(q.Entity)
	if fault != nil {
		return nil, fault
	}
	for _, id := range q.MetricId {
		if _, ok := names[id.CounterId]; !ok || id.Instance != "" {
			return nil, invalidArgument("querySpec.metricId", "counter %d, instance %q, is not available", id.CounterId, id.Instance)
		}
	}
	out := &types.PerfEntityMetric{PerfEntityMetricBase: types.PerfEntityMetricBase{Entity: q.Entity}}
	pid := h.lab.pidOf(m)
	if pid == 0 {
		return out, nil
	}
	now, born, err := read(pid)
	if err != nil {
		return out, nil // It has just ended.
	}
	from := m.readings.since(pid, now, born)
	s := h.lab.look(vm)
	mhz := int64(0)
	if host, ok := h.lab.reg.Get(s.host).(*simulator.HostSystem); ok {
		mhz = int64(host.Summary.Hardware.CpuMhz)
	}
	out.SampleInfo = []types.PerfSampleInfo{{Timestamp: now.at, Interval: int32(max(1, now.at.Sub(from.at).Round(time.Second)/time.Second))}}
	for _, id := range q.MetricId {
		out.Value = append(out.Value, &types.PerfMetricIntSeries{
			PerfMetricSeries: types.PerfMetricSeries{Id: id},
			Value:            []int64{perfCounters[names[id.CounterId]](from, now, mhz, int64(max(1, s.config.Hardware.NumCPU)))},
		})
	}
	return out, nil
}

// pidOf is the process of a VM's QEMU, or 0.
func (l *Lab) pidOf(m *machine) int {
	m.power.Lock()
	defer m.power.Unlock()
	if !m.on || m.q == nil {
		return 0
	}
	return m.q.pid
}

// since returns where a sample begins that ends now, and keeps what later ones begin
// with.
func (r *readings) since(pid int, now, born reading) reading {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pid != pid {
		r.pid, r.all = pid, []reading{born}
	}
	for len(r.all) > 1 && now.at.Sub(r.all[1].at) >= realtime*time.Second {
		r.all = r.all[1:]
	}
	from := r.all[0]
	if now.at.Sub(r.all[len(r.all)-1].at) >= time.Second {
		r.all = append(r.all, now)
	}
	return from
}

// ticks are the units of /proc/PID/stat in a second (proc(5), sysconf(_SC_CLK_TCK),
// which is 100 on Linux).
const ticks = 100

// read reads what a process has used, and when it began with nothing (proc(5)).
func read(pid int) (now, born reading, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return now, born, err
	}
	up, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return now, born, err
	}
	now.at = time.Now()
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	u := strings.Fields(string(up))
	if len(f) < 22 || len(u) == 0 {
		return now, born, errors.New("strange /proc/PID/stat or /proc/uptime")
	}
	// utime, stime, starttime and rss: fields 14, 15, 22 and 24, and f begins with 3.
	var n [4]int64
	for i, at := range []int{11, 12, 19, 21} {
		v, e := strconv.ParseInt(f[at], 10, 64)
		n[i], err = v, errors.Join(err, e)
	}
	seconds, e := strconv.ParseFloat(u[0], 64)
	if err = errors.Join(err, e); err != nil {
		return now, born, err
	}
	now.cpu = time.Duration(n[0]+n[1]) * (time.Second / ticks)
	now.rss = n[3] * int64(os.Getpagesize())
	age := time.Duration(seconds*float64(time.Second)) - time.Duration(n[2])*(time.Second/ticks)
	born.at = now.at.Add(-max(age, time.Second/ticks))
	return now, born, nil
}
