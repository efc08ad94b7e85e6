//go:build linux && amd64

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A clock keeps the wall clock with the real-time clock, which goes on while the VM
// stands still: when it is suspended, moved, reverted to a snapshot or cloned. The
// kernel reads that at its start only, and nothing tells a guest that it stood still.
//
// What is kept is the difference of the real-time clock and the time since the
// kernel's start, as it was in the beginning: where it becomes another, the wall
// clock is put forward (or back) by as much. So a container that may set its clock
// (CAP_SYS_TIME) keeps what it has set.
type clock struct {
	log    *slog.Logger
	rtc    func() (time.Time, error)
	boot   func() time.Duration
	step   func(time.Duration) error
	reseed func(at time.Time) error
	pause  time.Duration // between two looks for the second's beginning

	mu   sync.Mutex
	base time.Time // the real-time clock at the kernel's start; zero: not known yet
}

const (
	clockEvery = 5 * time.Second // how often it is looked at the real-time clock
	// clockTurn bounds the wait for the real-time clock's next second.
	clockTurn = 1500 * time.Millisecond
)

func newClock(log *slog.Logger) *clock {
	return &clock{log: log, rtc: readRTC, boot: uptime, step: stepClock, reseed: reseed, pause: 5 * time.Millisecond}
}

// follow keeps the clock until ctx ends.
func (c *clock) follow(ctx context.Context) {
	t := time.NewTicker(clockEvery)
	defer t.Stop()
	for {
		base, err := c.turn()
		if err == nil {
			c.mu.Lock()
			c.base = base
			c.mu.Unlock()
			break
		}
		c.log.Warn("the clock is not kept yet", "reason", err)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
			return // There is no real-time clock, or no driver for it.
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			c.check()
		}
	}
}

// now is the time, looked after before: a controller's certificate is of the world's
// time, and not of that in which the VM stood still.
func (c *clock) now() time.Time {
	c.check()
	return time.Now()
}

// check steps the wall clock where the VM has stood still.
func (c *clock) check() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.base.IsZero() {
		return
	}
	at, err := c.rtc()
	if err != nil {
		return // Somebody else has it open, say; the next look will tell.
	}
	// It tells whole seconds that have begun, up to one second less than it is.
	gap := at.Add(-c.boot()).Sub(c.base)
	if gap > -2*time.Second && gap < time.Second {
		return
	}
	base, err := c.turn()
	if err == nil {
		gap = base.Sub(c.base)
		err = c.step(gap)
	}
	if err != nil {
		c.log.Error("the clock cannot be set", "off", gap, "error", err)
		return
	}
	c.base = base
	c.log.Info("the VM has stood still, or gone back: the clock is set", "by", gap.Round(time.Millisecond))
	// Another VM may have gone on from the same memory.
	if err := c.reseed(at); err != nil {
		c.log.Error("entropy", "error", err)
	}
}

// turn waits for the real-time clock's next second to begin, and returns what it
// showed when the kernel started, or would have.
func (c *clock) turn() (time.Time, error) {
	first, err := c.rtc()
	for start := c.boot(); err == nil; {
		before := c.boot()
		var at time.Time
		if at, err = c.rtc(); err == nil && !at.Equal(first) {
			return at.Add(-(before + c.boot()) / 2), nil
		}
		if c.boot()-start > clockTurn {
			return time.Time{}, errors.New("the real-time clock stands still")
		}
		time.Sleep(c.pause)
	}
	return time.Time{}, err
}

// readRTC reads the real-time clock, which shows UTC (rtc(4)). It is opened each
// time, because one at a time may have it open.
func readRTC() (time.Time, error) {
	fd, err := unix.Open("/dev/rtc0", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return time.Time{}, fmt.Errorf("/dev/rtc0: %w", err)
	}
	defer unix.Close(fd)
	t, err := unix.IoctlGetRTCTime(fd)
	if err != nil {
		return time.Time{}, fmt.Errorf("/dev/rtc0: %w", err)
	}
	return time.Date(int(t.Year)+1900, time.Month(t.Mon+1), int(t.Mday), int(t.Hour), int(t.Min), int(t.Sec), 0, time.UTC), nil
}

// stepClock puts the wall clock forward or back (clock_adjtime(2)).
func stepClock(by time.Duration) error {
	sec := by / time.Second
	nsec := by % time.Second
	if nsec < 0 {
		sec, nsec = sec-1, nsec+time.Second
	}
	_, err := unix.ClockAdjtime(unix.CLOCK_REALTIME, &unix.Timex{
		Modes: unix.ADJ_SETOFFSET | unix.ADJ_NANO, Time: unix.Timeval{Sec: int64(sec), Usec: int64(nsec)},
	})
	return err
}

// reseed has the kernel's random numbers begin anew (random(4)), from the times,
// which are another VM's not to the nanosecond, and from what the processor draws
// (drivers/char/random.c, extract_entropy). Where the hypervisor tells of a fork
// (VM generation ID), the kernel has done as much.
func reseed(at time.Time) error {
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := binary.LittleEndian.AppendUint64(nil, uint64(at.Unix()))
	b = binary.LittleEndian.AppendUint64(b, uint64(time.Now().UnixNano()))
	b = binary.LittleEndian.AppendUint64(b, uint64(uptime()))
	if _, err := f.Write(b); err != nil {
		return err
	}
	return unix.IoctlSetInt(int(f.Fd()), unix.RNDRESEEDCRNG, 0)
}
