package containervm

import (
	"context"
	"errors"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
)

// giveUp is how long a carrier may be broken before those who follow a log are
// told; see backOff.
const giveUp = 2 * time.Minute

// backOff is the pause before the next of several tries: 100 ms, twice as long
// each time, at most five seconds.
func backOff(try int) time.Duration {
	return min(100*time.Millisecond<<min(try, 10), 5*time.Second)
}

// Logs calls f with the entries of the container's log, oldest first: through
// the tether while it runs, from its disk when it is off. With Follow it goes
// on until the process ends; a connection that is lost meanwhile is made again,
// for two minutes, and goes on behind the last entry. An error of f ends it and
// is returned.
func (v *VM) Logs(ctx context.Context, o tether.LogOptions, f func(tether.LogEntry) error) error {
	p := logPlace{o: o}
	var since time.Time // of the first of the tries in vain
	began := false
	for try := 0; ; try++ {
		moved := false
		err := v.readLogs(ctx, p.rest(), func(e tether.LogEntry) error {
			if p.had(e) {
				return nil
			}
			moved = true
			err := f(e)
			p.note(e)
			return err
		})
		broken := errors.As(err, new(*brokenLog))
		switch {
		case err == nil || ctx.Err() != nil || !o.Follow || !broken && (!began || moved):
			return err
		case moved || !began:
			try, since = 0, time.Now()
		case time.Since(since) > giveUp:
			return err
		}
		began = true
		v.c.Logger().Debug("reading a container's log again", "container", v.name, "reason", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(backOff(try)):
		}
	}
}

// brokenLog is an error of the connection over which a log came.
type brokenLog struct{ err error }

func (b *brokenLog) Error() string { return b.err.Error() }
func (b *brokenLog) Unwrap() error { return b.err }

// logPlace is a place in a log: the time of the last entry, and how many entries
// of that very time there were up to it.
type logPlace struct {
	o    tether.LogOptions
	last time.Time
	same int
	skip int
}

// rest chooses what is behind the place.
func (p *logPlace) rest() tether.LogOptions {
	o := p.o
	if !p.last.IsZero() {
		o.Since, o.Tail = p.last, 0
		p.skip = p.same
	}
	return o
}

// had tells of an entry that came by rest whether it is one before the place.
func (p *logPlace) had(e tether.LogEntry) bool {
	if p.skip > 0 && e.Time.Equal(p.last) {
		p.skip--
		return true
	}
	return false
}

func (p *logPlace) note(e tether.LogEntry) {
	if !e.Time.Equal(p.last) {
		p.last, p.same = e.Time, 0
	}
	p.same++
}
