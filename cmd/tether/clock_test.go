//go:build linux && amd64

package main

import (
	"errors"
	"io"
	"testing"
	"time"
)

// A VM that stands still finds its clock put right, whatever the container has set
// it to, to a few milliseconds, by a clock that tells whole seconds.
func TestClock(t *testing.T) {
	epoch := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var world, boot, wall time.Duration // since epoch, since the kernel's start, as the guest has it
	pass := func(d time.Duration) { world, boot, wall = world+d, boot+d, wall+d }
	world = 700 * time.Millisecond
	var broken error
	reseeds := 0
	c := &clock{
		log: newConsole(io.Discard),
		rtc: func() (time.Time, error) {
			pass(time.Millisecond)
			return epoch.Add(world).Truncate(time.Second), broken
		},
		boot: func() time.Duration { return boot },
		step: func(d time.Duration) error { wall += d; return nil },
		reseed: func(time.Time) error {
			reseeds++
			return nil
		},
	}
	off := func(want time.Duration) {
		t.Helper()
		if d := world - wall - want; d.Abs() > 3*time.Millisecond {
			t.Errorf("the guest's clock is %v behind, want %v", world-wall, want)
		}
	}
	c.check() // It is not known yet what to keep.
	wall = world
	var err error
	if c.base, err = c.turn(); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		pass(777 * time.Millisecond)
		c.check()
	}
	off(0)
	if reseeds != 0 {
		t.Errorf("%d steps of a VM that never stood still", reseeds)
	}
	for i, still := range []time.Duration{3 * time.Second, 90 * time.Minute, -48 * time.Hour, 400 * 24 * time.Hour} {
		world += still
		c.check()
		off(0)
		if reseeds != i+1 {
			t.Errorf("after %v: %d times seeded anew", still, reseeds)
		}
	}
	// What the container has set stays.
	wall -= time.Hour
	c.check()
	off(time.Hour)
	world += time.Minute
	c.check()
	off(time.Hour)
	// A clock that runs fast is followed when it is two seconds ahead.
	wall += time.Hour
	for range 50 {
		world += 100 * time.Millisecond
		pass(time.Second)
		c.check()
	}
	if d := (world - wall).Abs(); d > 2100*time.Millisecond {
		t.Errorf("it has drifted by %v", d)
	}
	broken = errors.New("busy")
	world += time.Hour
	c.check()
	broken = nil
	c.check()
	if d := (world - wall).Abs(); d > 2100*time.Millisecond {
		t.Errorf("after a look that failed it is off by %v", d)
	}
	// Time passes by the looks alone, and the clock tells always the same.
	c.rtc = func() (time.Time, error) { pass(time.Millisecond); return epoch, nil }
	if _, err := c.turn(); err == nil {
		t.Error("a clock that stands still")
	}
}
