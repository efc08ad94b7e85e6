package bench_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/internal/testlab"
)

// A command is the program vic with a lab of its own in the background.
type command struct {
	vic   string
	image string
	env   []string
}

// newCommand builds the program, starts its lab and pulls the image.
func newCommand(b *testing.B, e *testlab.Env, image string) *command {
	b.Helper()
	dir := b.TempDir()
	c := &command{vic: filepath.Join(dir, "vic"), image: image, env: append(os.Environ(),
		"VIC_LAB="+filepath.Join(dir, "lab"), "VIC_PLAIN_HTTP="+e.Registry.Addr(), "VIC_BOOTSTRAP_ISO="+e.ISO, "VIC_TARGET=")}
	build := exec.CommandContext(b.Context(), "go", "build", "-o", c.vic, "github.com/vicsdk/vic-go/cmd/vic")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("build vic: %v\n%s", err, out)
	}
	b.Cleanup(func() {
		cmd := exec.Command(c.vic, "lab", "down")
		cmd.Env = c.env
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Errorf("vic lab down: %v\n%s", err, out)
		}
	})
	for _, args := range [][]string{{"lab", "up"}, {"create", "--memory", "256", "bench"}, {"pull", image}} {
		cmd := exec.CommandContext(b.Context(), c.vic, args...)
		cmd.Env = c.env
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("vic %v: %v\n%s", args, err, out)
		}
	}
	return c
}

// firstByte tells the time from the start of "vic run" to the first byte that
// it prints.
func (c *command) firstByte(b *testing.B) time.Duration {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), c.vic, "run", "--rm", c.image, "echo", "hello")
	cmd.Env, cmd.Stderr = c.env, os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		b.Fatalf("vic run: %v, %v", err, cmd.Wait())
	}
	first := time.Since(start)
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		b.Fatalf("vic run: %v", err)
	}
	return first
}
