package lab

import (
	"maps"
	"sync"
)

// Counters tells what clients have asked of a lab, counted at the server.
type Counters struct {
	// Connections is the number of TCP connections accepted by the API.
	Connections int
	// Logins is the number of successful logins.
	Logins int
	// Requests counts SOAP requests by method, "PowerOnVM_Task".
	Requests map[string]int
	// Files counts requests for /folder by HTTP method.
	Files map[string]int
	// Tasks counts tasks by kind, "powerOn".
	Tasks map[string]int
	// LongPolls is the number of WaitForUpdatesEx requests, which Requests
	// counts too.
	LongPolls int
}

// Total returns the number of round trips: SOAP requests and file requests.
func (c Counters) Total() int {
	n := 0
	for _, v := range c.Requests {
		n += v
	}
	for _, v := range c.Files {
		n += v
	}
	return n
}

type counting struct {
	mu sync.Mutex
	c  Counters
}

func (c *counting) add(f func(*Counters)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.c.Requests == nil {
		c.c.Requests, c.c.Files, c.c.Tasks = map[string]int{}, map[string]int{}, map[string]int{}
	}
	f(&c.c)
}

func (c *counting) read(reset bool) Counters {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.c
	out.Requests, out.Files, out.Tasks = maps.Clone(out.Requests), maps.Clone(out.Files), maps.Clone(out.Tasks)
	if reset {
		c.c = Counters{}
	}
	return out
}

// Counters returns what has been counted since the start or the last reset.
func (l *Lab) Counters() Counters { return l.count.read(false) }

// ResetCounters returns what has been counted and starts again at zero.
func (l *Lab) ResetCounters() Counters { return l.count.read(true) }
