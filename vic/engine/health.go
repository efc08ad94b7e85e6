package engine

import (
	"slices"
	"strings"
	"time"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/tether"
)

// A HealthSpec changes an image's health check as Docker's options do. Zero
// fields leave what the image says, and Docker's defaults where it says nothing.
type HealthSpec struct {
	// Test in Docker's form: CMD and a program with arguments, CMD-SHELL and a
	// command for the image's shell, or NONE, which turns the image's check off.
	Test                                          []string
	Interval, Timeout, StartPeriod, StartInterval time.Duration
	Retries                                       int
}

func (s *HealthSpec) isZero() bool {
	return len(s.Test) == 0 && s.Interval == 0 && s.Timeout == 0 && s.StartPeriod == 0 && s.StartInterval == 0 && s.Retries == 0
}

// healthOf makes the health check of a container out of its image's and what the
// caller changes. Nil means none.
func healthOf(img imagestore.DockerConfig, s HealthSpec) (*tether.Health, error) {
	var h imagestore.Healthcheck
	if img.Healthcheck != nil {
		h = *img.Healthcheck
	}
	if len(s.Test) > 0 {
		h.Test = s.Test
	}
	for _, d := range []struct {
		name   string
		given  time.Duration
		target *time.Duration
	}{
		{"Interval", s.Interval, &h.Interval}, {"Timeout", s.Timeout, &h.Timeout},
		{"StartPeriod", s.StartPeriod, &h.StartPeriod}, {"StartInterval", s.StartInterval, &h.StartInterval},
	} {
		if d.given != 0 {
			*d.target = d.given
		}
		if *d.target != 0 && *d.target < time.Millisecond {
			return nil, fault.Of(vic.ErrInvalid, "Health.%s: %v is less than a millisecond", d.name, *d.target)
		}
	}
	if s.Retries != 0 {
		h.Retries = s.Retries
	}
	if h.Retries < 0 {
		return nil, fault.Of(vic.ErrInvalid, "Health.Retries: %d is negative", h.Retries)
	}
	given := s.Interval != 0 || s.Timeout != 0 || s.StartPeriod != 0 || s.StartInterval != 0 || s.Retries != 0
	t := &tether.Health{
		Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries,
	}
	switch kind := strings.Join(h.Test[:min(1, len(h.Test))], ""); {
	case kind == "NONE" && given:
		return nil, fault.Of(vic.ErrInvalid, "Health: times and retries of a check that is turned off")
	case kind == "" && given:
		return nil, fault.Of(vic.ErrInvalid, "Health.Test: missing: times and retries are given, and neither the image nor the caller names a command")
	case kind == "NONE", kind == "":
		return nil, nil
	case kind == "CMD" && len(h.Test) > 1 && h.Test[1] != "":
		t.Args = h.Test[1:]
	case kind == "CMD-SHELL" && len(h.Test) == 2 && h.Test[1] != "":
		shell := img.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		t.Args = slices.Concat(shell, h.Test[1:])
	default:
		return nil, fault.Of(vic.ErrInvalid, "Health.Test: %.80q: want CMD and a program, CMD-SHELL and one command, or NONE", h.Test)
	}
	return t, nil
}
