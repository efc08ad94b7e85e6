package lab

import (
	"os"
	"strings"
	"sync"
	"time"
)

// rdtsc reads the processor's time stamp counter.
func rdtsc() uint64

// hostTSC measures, once for a process, how fast the processor's time stamp counter
// counts, in kHz: as fast as the one that QEMU emulates (its helper_rdtsc reads the
// host's). It is 0 where the counter is not constant or could not be measured.
var hostTSC = sync.OnceValue(func() int {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !constantTSC(string(info)) {
		return 0
	}
	for range 5 {
		began, first, err1 := readTSC()
		time.Sleep(20 * time.Millisecond)
		ended, last, err2 := readTSC()
		d := ended.Sub(began)
		// One in ten thousand: the kernel's own aim is 1 in 2,000 (quick_pit_calibrate).
		if (err1+err2)*10_000 < d {
			return int(float64(last-first) / (float64(d) / float64(time.Millisecond)))
		}
	}
	return 0
})

// readTSC reads the counter beside the clock, and tells how far apart they may be.
func readTSC() (at time.Time, ticks uint64, apart time.Duration) {
	for range 10 {
		before := time.Now()
		c := rdtsc()
		d := time.Since(before)
		if ticks == 0 || d < apart {
			at, ticks, apart = before.Add(d/2), c, d
		}
	}
	return at, ticks, apart
}

// constantTSC tells from /proc/cpuinfo whether the counter counts alike at all times.
func constantTSC(cpuinfo string) bool {
	for line := range strings.Lines(cpuinfo) {
		if name, list, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "flags" {
			list = " " + strings.TrimSpace(list) + " "
			return strings.Contains(list, " constant_tsc ") && strings.Contains(list, " nonstop_tsc ")
		}
	}
	return false
}
