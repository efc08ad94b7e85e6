// Command demo shows the main job on this machine, with the commands a person
// would type: a lab is started, an image is served by a real registry, a VCH
// is made, the image is pulled and run as a VM, and everything is deleted
// again. It fails if a step does not do what it should or if anything is left.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/testregistry"
)

func main() {
	vic := flag.String("vic", "bin/vic", "the vic command")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := demo(ctx, *vic)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type shell struct {
	vic string
	dir string
	env []string
}

func demo(ctx context.Context, vic string) (err error) {
	vic, err = filepath.Abs(vic)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "vic-demo-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	say("build an image of several layers from Debian packages, serve it from a registry")
	layout, err := testimage.Demo(ctx, "")
	if err != nil {
		return err
	}
	reg, err := testregistry.Start(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reg.Close()) }()
	image, _, err := reg.Push(ctx, layout, "demo:latest")
	if err != nil {
		return err
	}
	s := &shell{vic: vic, dir: filepath.Join(dir, "lab"), env: append(os.Environ(),
		"VIC_LAB="+filepath.Join(dir, "lab"), "VIC_PLAIN_HTTP="+reg.Addr(), "VIC_TARGET=")}
	return s.steps(ctx, image)
}

func (s *shell) steps(ctx context.Context, image string) (err error) {
	if _, err := s.run(ctx, 0, "lab", "up"); err != nil {
		return err
	}
	up := true
	defer func() {
		if up {
			_, e := s.run(context.WithoutCancel(ctx), 0, "lab", "down")
			err = errors.Join(err, e)
		}
	}()
	const script = `echo "hello from $(hostname), kernel $(uname -r)"; exit 7`
	var hello string
	for _, step := range []struct {
		code int
		out  *string
		args []string
	}{
		{0, nil, []string{"create", "demo"}},
		{0, nil, []string{"pull", image}},
		{0, nil, []string{"images"}},
		{7, &hello, []string{"run", "--name", "hello", "--entrypoint", "/bin/sh", image, "-c", script}},
		{0, nil, []string{"ps", "-a"}},
		{0, nil, []string{"logs", "hello"}},
		{0, nil, []string{"rm", "-v", "hello"}},
		{0, nil, []string{"rmi", image}},
		{0, nil, []string{"delete", "demo"}},
	} {
		out, err := s.run(ctx, step.code, step.args...)
		if err != nil {
			return err
		}
		if step.out != nil {
			*step.out = out
		}
	}
	if err := ownKernel(hello); err != nil {
		return err
	}
	left, err := files(filepath.Join(s.dir, "datastores"))
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("left on the datastore: %s", strings.Join(left, ", "))
	}
	up = false
	if _, err := s.run(ctx, 0, "lab", "down"); err != nil {
		return err
	}
	if ps := processes(s.dir); len(ps) > 0 {
		return fmt.Errorf("left running: %s", strings.Join(ps, "; "))
	}
	say("the process ran in a VM of its own and its exit code 7 came back; nothing is left on the datastore, no process runs")
	return nil
}

// ownKernel makes sure that the process saw another kernel than this machine's.
func ownKernel(out string) error {
	var u syscall.Utsname
	if err := syscall.Uname(&u); err != nil {
		return err
	}
	var host strings.Builder
	for _, c := range u.Release {
		if c == 0 {
			break
		}
		host.WriteByte(byte(c))
	}
	_, kernel, ok := strings.Cut(strings.TrimSpace(out), ", kernel ")
	if !ok || kernel == "" || kernel == host.String() {
		return fmt.Errorf("the container printed %q: no kernel of its own", out)
	}
	return nil
}

func say(text string) { fmt.Printf("\n# %s\n", text) }

// run prints a command, runs it, passes its output through, and wants a code.
func (s *shell) run(ctx context.Context, code int, args ...string) (string, error) {
	fmt.Printf("\n$ vic %s\n", strings.Join(args, " "))
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, s.vic, args...)
	cmd.Env = s.env
	cmd.Stdout = io.MultiWriter(os.Stdout, &out)
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	start := time.Now()
	err := cmd.Run()
	fmt.Printf("  [%.1f s, exit code %d]\n", time.Since(start).Seconds(), cmd.ProcessState.ExitCode())
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return "", err
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		return "", fmt.Errorf("vic %s: exit code %d, not %d", args[0], got, code)
	}
	return out.String(), nil
}

// files lists all regular files below a directory.
func files(dir string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, p)
		}
		return err
	})
	return out, err
}

// processes lists those whose command line names a directory, this one
// excepted.
func processes(dir string) []string {
	var out []string
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range all {
		b, err := os.ReadFile(p)
		if err == nil && bytes.Contains(b, []byte(dir)) && p != fmt.Sprintf("/proc/%d/cmdline", os.Getpid()) {
			out = append(out, p+": "+string(bytes.ReplaceAll(b[:min(len(b), 80)], []byte{0}, []byte{' '})))
		}
	}
	return out
}
