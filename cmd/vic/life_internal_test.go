package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/tether"
)

func TestStatus(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, tt := range []struct {
		info containervm.Info
		want string
	}{
		{containervm.Info{State: containervm.Created}, "Created"},
		{containervm.Info{State: containervm.Running}, "Up, starting"},
		{containervm.Info{State: containervm.Running, Started: ago(200 * time.Millisecond)}, "Up Less than a second"},
		{containervm.Info{State: containervm.Running, Started: ago(time.Second)}, "Up 1 second"},
		{containervm.Info{State: containervm.Running, Started: ago(3 * time.Minute), Health: &tether.HealthStatus{State: tether.Healthy}}, "Up 3 minutes (healthy)"},
		{containervm.Info{State: containervm.Running, Started: ago(47 * time.Hour), Health: &tether.HealthStatus{State: tether.HealthStarting}}, "Up 47 hours (health: starting)"},
		{containervm.Info{State: containervm.Running, Started: ago(48 * time.Hour), Health: &tether.HealthStatus{State: tether.Unhealthy}}, "Up 2 days (unhealthy)"},
		{containervm.Info{State: containervm.Restarting, ExitCode: 1, Finished: ago(5 * time.Second)}, "Restarting (1) 5 seconds ago"},
		{containervm.Info{State: containervm.Exited, Known: true, Finished: ago(20 * 24 * time.Hour)}, "Exited (0) 2 weeks ago"},
		{containervm.Info{State: containervm.Exited, Known: true, ExitCode: 137, Finished: ago(800 * 24 * time.Hour)}, "Exited (137) 2 years ago"},
		{containervm.Info{State: containervm.Exited}, "Exited (code unknown)"},
		{containervm.Info{State: containervm.Suspended}, "Suspended"},
	} {
		if got := status(tt.info, now); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

func TestParseTime(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for s, want := range map[string]time.Time{
		"10m": now.Add(-10 * time.Minute), "2026-01-02T03:04:05.5Z": now.Add(time.Second / 2),
		"1767323045": now, "1767323045.25": now.Add(time.Second / 4), "2026-01-02": time.Date(2026, 1, 2, 0, 0, 0, 0, time.Local),
	} {
		if got, err := parseTime(s, now); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	if got, err := parseTime("yesterday", now); err == nil {
		t.Errorf("yesterday: %v", got)
	}
}

func TestLifeOptions(t *testing.T) {
	for s, want := range map[string]tether.Restart{
		"no": {Policy: "no"}, "always": {Policy: "always"}, "on-failure": {Policy: "on-failure"}, "on-failure:3": {Policy: "on-failure", MaxRetries: 3},
	} {
		if got, err := parseRestart(s); err != nil || got != want {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{"sometimes", "always:3", "on-failure:x", "on-failure:0", "on-failure:"} {
		if got, err := parseRestart(s); err == nil {
			t.Errorf("%s: %+v", s, got)
		}
	}
	got, err := parseLogOptions([]string{"max-size=10m", "max-file=3"})
	if d := cmp.Diff(tether.LogLimit{MaxBytes: 10 << 20, MaxFiles: 3}, got); err != nil || d != "" {
		t.Errorf("%s, %v", d, err)
	}
	for _, s := range []string{"max-file=3", "max-file=0", "max-size=much", "compress=true", "max-size"} {
		if got, err := parseLogOptions([]string{s}); err == nil {
			t.Errorf("%s: %+v", s, got)
		}
	}
}
