package main_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// ticker counts on its standard output, and ends by a trap.
const ticker = `trap 'exit 3' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done`

// A controller that is killed at any moment leaves containers that are right:
// there or gone, unharmed, their logs whole, and nothing beside them.
//
// VIC_SOAK=1 does a hundred rounds.
func TestKilledController(t *testing.T) {
	rounds := 6
	if os.Getenv("VIC_SOAK") == "1" {
		rounds = 100
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("VIC_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("VIC_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	c := start(t)
	c.want(t, 0, "", "run", "--rm", c.image, "true") // the image is there
	before := c.directories(t)

	k := &kills{cli: c, t: t, took: map[string]time.Duration{}}
	ops := []string{"run", "start", "attach", "exec", "logs", "stop", "rm"}
	for i := range rounds {
		op := ops[i%len(ops)]
		t.Run(fmt.Sprintf("%d %s", i, op), func(t *testing.T) {
			k.t = t
			k.round(op, rnd)
		})
	}
	k.t = t
	c.run(t, nil, "rm", "-f", "c")
	c.want(t, 0, "", "gc")
	if after := c.directories(t); after != before {
		t.Errorf("the datastore has other directories than before:\n%s\nbefore:\n%s", after, before)
	}
	c.want(t, 0, "", "run", "--rm", c.image, "true")
}

// kills is a campaign against one container.
type kills struct {
	*cli
	t    *testing.T
	took map[string]time.Duration // how long an operation takes that is left alone
}

// round prepares the container, kills vic in the middle of an operation on it,
// and checks what is left.
func (k *kills) round(op string, rnd *rand.Rand) {
	t := k.t
	switch op {
	case "run":
		k.run(t, nil, "rm", "-f", "c")
	case "start":
		k.up()
		k.want(t, 0, "c", "stop", "-t", "30", "c")
	default:
		k.up()
	}
	args := map[string][]string{
		"run":    {"run", "-d", "--name", "c", k.image, "sh", "-c", ticker},
		"start":  {"start", "c"},
		"attach": {"attach", "c"},
		"exec":   {"exec", "c", "sh", "-c", "echo a; sleep 0.2; echo b"},
		"logs":   {"logs", "-f", "c"},
		"stop":   {"stop", "-t", "30", "c"},
		"rm":     {"rm", "-f", "c"},
	}[op]
	// The moment is drawn from as long as the operation has been seen to take.
	long := k.took[op]
	if long == 0 {
		long = 3 * time.Second
	}
	at := time.Duration(rnd.Int64N(int64(long)))
	cmd := k.command(context.Background(), args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatalf("left alone for %v it failed: %v\n%s", at, err, out.Bytes())
		}
		k.took[op] = time.Since(begin)
	case <-time.After(at):
		_ = cmd.Process.Kill()
		<-ended
	}
	t.Logf("%s after %v", op, at)
	k.check(op)
}

// up has the container running and counting.
func (k *kills) up() {
	t := k.t
	switch state := k.state(); state {
	case "":
		k.want(t, 0, "", "run", "-d", "--name", "c", k.image, "sh", "-c", ticker)
	case "running":
	default:
		k.want(t, 0, "c", "start", "c")
	}
	k.counts()
}

// state is "" for a container that is not there.
func (k *kills) state() string {
	k.t.Helper()
	out, errOut, code := k.run(k.t, nil, "inspect", "c")
	if code == 3 { // not found
		return ""
	}
	if code != 0 {
		k.t.Fatalf("inspect: %s", errOut)
	}
	_, rest, _ := strings.Cut(out, `"State": "`)
	state, _, _ := strings.Cut(rest, `"`)
	return state
}

// counts waits until a running container has counted on.
func (k *kills) counts() {
	t := k.t
	t.Helper()
	first := -1
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		out, _, code := k.run(t, nil, "logs", "-n", "1", "c")
		if n, err := strconv.Atoi(strings.TrimSpace(out)); code == 0 && err == nil {
			if first >= 0 && n != first {
				return
			}
			first = n
		}
		if time.Now().After(end) {
			t.Fatalf("it does not count on; the last line is %q", out)
		}
	}
}

// check sees that the container is as the operation's beginning or its end has
// it, and that what it wrote is whole.
func (k *kills) check(op string) {
	t := k.t
	state := k.state()
	switch op {
	case "run":
		if state == "" {
			break
		}
		if state == "created" {
			// The killed one may have asked vSphere to start it at that moment.
			if _, errOut, code := k.run(t, nil, "start", "c"); code != 0 && k.state() != "running" {
				t.Fatalf("it cannot be started: %s", errOut)
			}
		}
		k.counts()
	case "start":
		if state != "running" && state != "exited" {
			t.Fatalf("it is %q", state)
		}
		if state == "running" {
			k.counts()
		}
	case "attach", "exec", "logs":
		if state != "running" {
			t.Fatalf("it is %q", state)
		}
		k.counts()
	case "stop":
		// Asked for or not, it ends or it goes on.
		if state != "running" && state != "exited" {
			t.Fatalf("it is %q", state)
		}
		k.want(t, 0, "c", "stop", "-t", "30", "c")
		k.want(t, 0, `"ExitCode": 3`, "inspect", "c")
	case "rm":
		if state == "" {
			break
		}
		k.want(t, 0, "", "rm", "-f", "c")
		if state := k.state(); state != "" {
			t.Fatalf("deleted again, it is %q", state)
		}
	}
	if k.state() != "" {
		k.whole()
	}
}

// whole sees that the log has every line of each run.
func (k *kills) whole() {
	t := k.t
	t.Helper()
	out := k.want(t, 0, "", "logs", "c")
	last := -1
	for i, line := range strings.Split(strings.TrimSuffix(out, "\n"), "\n") {
		if line == "" && out == "" {
			break
		}
		n, err := strconv.Atoi(line)
		if err != nil || n != 0 && n != last+1 {
			t.Fatalf("line %d of the log is %q after %d", i, line, last)
		}
		last = n
	}
}

// directories lists what lies on the datastore beside the image store.
func (c *cli) directories(t *testing.T) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(c.dir, "datastores", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n")
}
