package main_test

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// testRunning looks into a running container, and changes it.
func testRunning(t *testing.T, c *cli) {
	c.want(t, 0, "", "run", "-d", "-i", "--name", "busy", c.image, "sh", "-c", "echo before; read x; echo got $x; trap 'exit 3' TERM; while :; do sleep 0.1; done")
	defer c.run(t, nil, "rm", "-f", "busy")

	if out := c.want(t, 0, "", "exec", "-e", "A=b", "-w", "/tmp", "-u", "1000", "busy", "sh", "-c", "echo $A $(pwd) $(id -u)"); out != "b /tmp 1000\n" {
		t.Errorf("exec: %q", out)
	}
	if out, _, code := c.run(t, strings.NewReader("piped"), "exec", "-i", "busy", "cat"); out != "piped" || code != 0 {
		t.Errorf("exec -i: %q, exit code %d", out, code)
	}
	c.want(t, 9, "", "exec", "busy", "sh", "-c", "exit 9")
	c.want(t, 127, "no-such", "exec", "busy", "no-such")
	c.want(t, 2, "-d and -i", "exec", "-d", "-i", "busy", "true")
	c.want(t, 0, "", "exec", "-d", "busy", "true")
	c.want(t, 0, "sh -c echo before", "top", "busy")
	c.want(t, 0, "busy", "stats", "--no-stream", "busy")

	c.want(t, 0, "busy", "pause", "busy")
	c.want(t, 0, "(Paused)", "ps")
	c.want(t, 1, "paused", "exec", "busy", "true")
	c.want(t, 0, "busy", "unpause", "busy")

	// Who attaches now sees what comes now, and is heard.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	att := c.command(ctx, "attach", "busy")
	att.Stdin = strings.NewReader("it\n")
	var out bytes.Buffer
	att.Stdout, att.Stderr = &out, &out
	if err := att.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); !strings.Contains(c.want(t, 0, "", "logs", "busy"), "got it"); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("what an attacher typed does not arrive")
		}
	}
	c.want(t, 2, "nothing is to change", "update", "busy")
	c.want(t, 1, "stop it first", "update", "--cpus", "2", "busy")
	c.want(t, 0, "", "rename", "busy", "lazy")
	c.want(t, 0, "lazy", "stop", "-t", "60", "lazy")
	err := att.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || out.String() != "got it\n" {
		t.Errorf("attach: %v, output %q", err, out.String())
	}
	c.want(t, 0, "lazy", "update", "--cpus", "2", "-m", "512m", "lazy")
	c.want(t, 1, "not running", "exec", "lazy", "true")
	events := c.want(t, 0, "", "events", "--since", "10m", "--until", "0s", "-f", "container=lazy")
	for _, what := range []string{" start ", " die "} {
		if !strings.Contains(events, what) {
			t.Errorf("no%sin the events:\n%s", what, events)
		}
	}
	c.want(t, 0, "lazy", "rm", "lazy")
}
