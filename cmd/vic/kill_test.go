package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestLabKilled kills the lab with ten containers, of which some run, and starts
// it again: containers, volumes, images and logs are as before, and what ran runs
// on.
func TestLabKilled(t *testing.T) {
	c := start(t)
	const all, running = 10, 3
	name := func(i int) string { return fmt.Sprintf("c%d", i) }
	c.want(t, 0, "data", "volume", "create", "data")
	for i := range all {
		args := []string{"run", "-d", "--name", name(i), "-m", "192m"}
		script := fmt.Sprintf("echo out %d; exit %d", i, i)
		if i < running {
			script = fmt.Sprintf("echo out %d; while :; do sleep 1; done", i)
		}
		if i == 0 {
			args, script = append(args, "-v", "data:/data"), "echo kept > /data/f; sync; "+script
		}
		c.want(t, 0, "", append(args, c.image, "sh", "-c", script)...)
		// One after the other: guests that boot side by side without hardware
		// virtualisation starve each other.
		want := fmt.Sprintf("Exited (%d)", i)
		for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
			s, _, code := c.run(t, nil, "logs", name(i))
			if code == 0 && s != "" && (i < running || strings.Contains(c.want(t, 0, "", "ps", "-a"), want)) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s does not come up: %s", name(i), c.want(t, 0, "", "inspect", name(i)))
			}
		}
	}
	// states are what vic inspect says of each, and logs of each.
	states := func() (out []string) {
		t.Helper()
		for i := range all {
			out = append(out, c.want(t, 0, "", "inspect", name(i)))
		}
		return out
	}
	logs := func() (out []string) {
		t.Helper()
		for i := range all {
			for end := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
				s, errOut, code := c.run(t, nil, "logs", name(i))
				if code == 0 && s != "" {
					out = append(out, s)
					break
				}
				if time.Now().After(end) {
					t.Fatalf("no log of %s: exit code %d, %q %s\n%s", name(i), code, s, errOut, c.want(t, 0, "", "ps", "-a"))
				}
			}
		}
		return out
	}
	beforeLogs := logs()
	before, images, volumes := states(), c.want(t, 0, "", "images"), c.want(t, 0, "data", "volume", "ls")
	qemus := func() (out []string) {
		for _, p := range processes(c.dir) {
			if strings.Contains(p, "qemu-system") {
				out = append(out, p)
			}
		}
		return out
	}
	machines := qemus()
	if len(machines) != running {
		t.Fatalf("%d QEMUs, want %d", len(machines), running)
	}
	pid := labPID(t, c)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if _, _, code := c.run(t, nil, "lab", "status"); code != 0 {
			break
		}
	}
	c.want(t, 0, "the lab is up", "lab", "up")
	same := func(what string, a, b []string) {
		t.Helper()
		for i := range a {
			if a[i] != b[i] {
				t.Errorf("%s of %s before:\n%s\nand after:\n%s", what, name(i), a[i], b[i])
			}
		}
	}
	if now := qemus(); strings.Join(now, "\n") != strings.Join(machines, "\n") {
		t.Errorf("QEMUs before %v, after %v", machines, now)
	}
	same("state", before, states())
	same("log", beforeLogs, logs())
	if a := c.want(t, 0, "", "images"); a != images {
		t.Errorf("images before:\n%s\nafter:\n%s", images, a)
	}
	if a := c.want(t, 0, "", "volume", "ls"); a != volumes {
		t.Errorf("volumes before:\n%s\nafter:\n%s", volumes, a)
	}
	// All can be worked with: those that run, those that do not, and the volume.
	c.want(t, 0, name(1), "stop", "-t", "1", name(1))
	c.want(t, 0, name(0), "rm", "-f", name(0))
	out, errOut, code := c.run(t, nil, "run", "--rm", "-v", "data:/data", c.image, "cat", "/data/f")
	if out != "kept\n" || code != 0 {
		t.Errorf("the volume: exit code %d, %q, %s", code, out, errOut)
	}
	ev := c.want(t, 0, "", "events", "--since", "10m", "--until", "0s", "--filter", "container="+name(1))
	if !strings.Contains(ev, "container die") || strings.Contains(ev, "name="+name(2)+",") {
		t.Errorf("events:\n%s", ev)
	}
	for i := 1; i < all; i++ {
		c.want(t, 0, name(i), "rm", "-f", name(i))
	}
	if left := qemus(); len(left) > 0 {
		t.Errorf("left running: %v", left)
	}
}

// labPID is the process of the lab in the background.
func labPID(t *testing.T, c *cli) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.dir, "lab.json"))
	var s struct{ PID int }
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil || s.PID == 0 {
		t.Fatalf("lab.json: %v", err)
	}
	return s.PID
}
