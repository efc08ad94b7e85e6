//go:build amd64

package lab

import (
	"testing"
	"time"
)

func TestConstantTSC(t *testing.T) {
	for in, want := range map[string]bool{
		"": false,
		"flags\t\t: fpu tsc constant_tsc nonstop_tsc pni\n":                     true,
		"processor\t: 0\nflags\t\t: fpu tsc constant_tsc nonstop_tsc\n":         true,
		"flags\t\t: fpu tsc constant_tsc pni\n":                                 false,
		"flags\t\t: fpu tsc nonstop_tsc_s3 constant_tsc\nbugs\t: nonstop_tsc\n": false,
	} {
		if got := constantTSC(in); got != want {
			t.Errorf("%q: %v", in, got)
		}
	}
}

// TestHostTSC: the frequency agrees with the clock over a longer time.
func TestHostTSC(t *testing.T) {
	khz := hostTSC()
	if khz == 0 {
		t.Skip("no constant time stamp counter here, or none that could be measured")
	}
	began, first, _ := readTSC()
	time.Sleep(200 * time.Millisecond)
	ended, last, _ := readTSC()
	ms := float64(ended.Sub(began)) / float64(time.Millisecond)
	if got := float64(last-first) / float64(khz); got < ms*0.999 || got > ms*1.001 {
		t.Errorf("%d kHz: %.3f ms by the counter, %.3f by the clock", khz, got, ms)
	}
	t.Logf("%d kHz", khz)
}
