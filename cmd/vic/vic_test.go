package main_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/testregistry"
)

// cli is a built vic with a lab, a VCH and an image of its own.
type cli struct {
	bin, dir, image string
	env             []string
}

// start builds vic, starts the lab in the background and makes a VCH.
func start(t *testing.T) *cli {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("no VM can be booted: %v", err)
	}
	dir := t.TempDir()
	c := &cli{bin: filepath.Join(dir, "vic"), dir: filepath.Join(dir, "lab")}
	if out, err := exec.Command("go", "build", "-o", c.bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	reg := testregistry.ForTest(t, nil)
	layout, err := testimage.Busybox(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if c.image, _, err = reg.Push(t.Context(), layout, "busybox:latest"); err != nil {
		t.Fatal(err)
	}
	c.env = append(os.Environ(), "VIC_LAB="+c.dir, "VIC_PLAIN_HTTP="+reg.Addr(), "VIC_TARGET=", "VIC_VCH=", "PASSED_ON=from here")
	c.want(t, 0, "the lab is up", "lab", "up")
	t.Cleanup(func() {
		c.want(t, 0, "the lab is down", "lab", "down")
		if left := processes(c.dir); len(left) > 0 {
			t.Errorf("left running: %v", left)
		}
	})
	c.want(t, 0, "", "create", "demo")
	return c
}

func processes(dir string) []string {
	var out []string
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range all {
		if b, err := os.ReadFile(p); err == nil && bytes.Contains(b, []byte(dir)) {
			out = append(out, string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
		}
	}
	return out
}

func (c *cli) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.bin, args...)
	cmd.Env = c.env
	return cmd
}

// run runs vic and returns standard output, standard error and the exit code.
func (c *cli) run(t *testing.T, stdin io.Reader, args ...string) (string, string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := c.command(ctx, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// want runs vic and checks its exit code and that its output has a text.
func (c *cli) want(t *testing.T, code int, text string, args ...string) string {
	t.Helper()
	out, errOut, got := c.run(t, nil, args...)
	if got != code || !strings.Contains(out+errOut, text) {
		t.Fatalf("vic %s: exit code %d (want %d), want %q in\n%s%s", strings.Join(args, " "), got, code, text, out, errOut)
	}
	return out
}

func TestCommands(t *testing.T) {
	c := start(t)
	t.Run("pipe through cat", func(t *testing.T) {
		out, errOut, code := c.run(t, strings.NewReader("hello\n"), "run", "-i", "--rm", c.image, "cat")
		if out != "hello\n" || code != 0 {
			t.Errorf("exit code %d, output %q, %s", code, out, errOut)
		}
	})
	t.Run("killed", func(t *testing.T) { c.want(t, 137, "", "run", "--rm", c.image, "sh", "-c", "kill -9 $$") })
	t.Run("missing command", func(t *testing.T) {
		c.want(t, 127, "no-such-command", "run", "--rm", c.image, "no-such-command")
	})
	t.Run("options", func(t *testing.T) {
		out := c.want(t, 0, "", "run", "--rm", "-e", "A=1,2", "-e", "PASSED_ON", "-w", "/tmp", "-u", "1000:1000", "--cpus", "2", "-m", "300m", c.image,
			"sh", "-c", `echo "$A|$PASSED_ON|$(pwd)|$(id -u):$(id -g)|$(nproc)|$(awk '/MemTotal/{print ($2>200000 && $2<310000)}' /proc/meminfo)"`)
		if out != "1,2|from here|/tmp|1000:1000|2|1\n" {
			t.Errorf("got %q", out)
		}
	})
	t.Run("restarts, health, kill, wait, restart", func(t *testing.T) {
		c.want(t, 2, "exclude", "run", "--rm", "--restart", "always", c.image, "true")
		c.want(t, 0, "", "run", "-d", "--name", "life", "--restart", "on-failure:5", "--log-opt", "max-size=1k", "--log-opt", "max-file=2",
			"--health-cmd", "echo fine", "--health-interval", "300ms", c.image,
			"sh", "-c", "n=$(cat /n 2>/dev/null)x; echo $n >/n; echo run $n; [ $n = x ] && exit 9; exec sleep 1000")
		healthy := func() {
			t.Helper()
			for end := time.Now().Add(time.Minute); !strings.Contains(c.want(t, 0, "", "ps"), "(healthy)"); time.Sleep(200 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("not healthy")
				}
			}
		}
		// A slow first run may have been found healthy, too.
		for end := time.Now().Add(time.Minute); !strings.Contains(c.want(t, 0, "", "inspect", "life"), `"Restarts": 1`); time.Sleep(200 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("not started again")
			}
		}
		healthy()
		c.want(t, 0, `"state": "healthy"`, "inspect", "life")
		if out := c.want(t, 0, "", "logs", "--since", "1h", "--until", "0s", "life"); out != "run x\nrun xx\n" {
			t.Errorf("logs: %q", out)
		}
		c.want(t, 0, "life", "restart", "-t", "0", "life")
		healthy()
		c.want(t, 0, "life", "kill", "-s", "KILL", "life")
		if out := c.want(t, 0, "", "wait", "life"); out != "137\n" {
			t.Errorf("wait: %q", out)
		}
		c.want(t, 0, "", "reconcile")
		c.want(t, 0, "life", "rm", "-f", "life")
	})
	t.Run("detached, ps, logs, stop with a trap, rm", func(t *testing.T) {
		c.want(t, 0, "", "run", "-d", "--name", "web", c.image, "sh", "-c", "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done")
		for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
			if out, _, code := c.run(t, nil, "logs", "web"); code == 0 && out == "up\n" {
				break
			}
			if time.Now().After(end) {
				t.Fatal("the container did not come up")
			}
		}
		c.want(t, 0, "Up ", "ps")
		c.want(t, 0, `"Name": "web"`, "inspect", "web")
		c.want(t, 0, "process", "inspect", "--timeline", "web")
		c.want(t, 1, "running", "rm", "web")
		begin := time.Now()
		c.want(t, 0, "web", "stop", "-t", "30", "web")
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("stop took %v of the 30 s that the trap had", took)
		}
		c.want(t, 0, "Exited (5)", "ps", "-a")
		if out := c.want(t, 0, "", "logs", "web"); out != "up\nbye\n" {
			t.Errorf("logs: %q", out)
		}
		c.want(t, 0, "web", "rm", "web")
		c.want(t, 3, "no such container", "rm", "web")
	})
	t.Run("images go out and in", func(t *testing.T) { testImagesOutAndIn(t, c) })
	t.Run("cp and diff", func(t *testing.T) { testCopy(t, c) })
	t.Run("volumes", func(t *testing.T) { testVolumes(t, c) })
	t.Run("running", func(t *testing.T) { testRunning(t, c) })
	t.Run("terminal", func(t *testing.T) { testTerminal(t, c) })
	t.Run("wrong usage", func(t *testing.T) {
		c.want(t, 2, "usage: vic run", "run")
		c.want(t, 2, "--memory", "run", "-m", "lots", c.image)
		c.want(t, 125, "image name", "run", "UPPER//case")
		c.want(t, 4, "taken", "create", "demo")
		c.want(t, 2, "Name", "create", "no/slash")
	})
	t.Run("images", func(t *testing.T) { testImages(t, c) })
	c.want(t, 0, "", "delete", "--force", "--images", "demo")
	if out := c.want(t, 0, "", "ls"); strings.Contains(out, "demo") {
		t.Errorf("still there: %s", out)
	}
}

// testImagesOutAndIn takes an image through all that can be done with it.
func testImagesOutAndIn(t *testing.T, c *cli) {
	addr, _, _ := strings.Cut(c.image, "/")
	dir := t.TempDir()
	file := filepath.Join(dir, "archive.tar")
	c.want(t, 0, "", "run", "--name", "work", c.image, "sh", "-c", "echo made here >/made")
	c.want(t, 0, addr+"/made:v1 sha256:", "commit", "-m", "by hand", "-c", `CMD ["cat", "/made"]`, "work", addr+"/made:v1")
	c.want(t, 2, "EVN", "commit", "-c", "EVN a=b", "work", addr+"/made:v2")
	c.want(t, 0, "by hand", "history", addr+"/made:v1")
	c.want(t, 0, "sha256:", "push", addr+"/made:v1")
	c.want(t, 0, "other/made:v1 sha256:", "push", "--as", addr+"/other/made:v1", addr+"/made:v1")
	c.want(t, 0, "copy/made:v1 sha256:", "push", "--copy", "--as", addr+"/copy/made:v1", addr+"/made:v1")
	c.want(t, 2, "--copy", "push", "--copy", addr+"/made:v1")
	c.want(t, 0, "", "tag", addr+"/made:v1", "made")
	c.want(t, 0, "docker.io/library/made:latest", "images")
	for _, format := range []string{"docker-archive", "oci-archive"} {
		c.want(t, 0, "", "save", "--format", format, "-o", file, "made", addr+"/made:v1")
		c.want(t, 0, "", "rmi", "made")
		if out := c.want(t, 0, "", "load", "-i", file); !strings.Contains(out, "docker.io/library/made:latest") || !strings.Contains(out, addr+"/made:v1") {
			t.Errorf("%s: loaded %q", format, out)
		}
	}
	if out := c.want(t, 0, "", "run", "--rm", "made"); out != "made here\n" {
		t.Errorf("run: %q", out)
	}
	c.want(t, 0, "", "export", "-o", file, "work")
	if out, err := exec.Command("tar", "-xOf", file, "made").Output(); err != nil || string(out) != "made here\n" {
		t.Errorf("export: %q, %v", out, err)
	}
	c.want(t, 0, "flat:v1 sha256:", "import", "-c", "CMD cat /made", "-c", "ENV PATH=/bin", file, addr+"/flat:v1")
	if out := c.want(t, 0, "", "run", "--rm", addr+"/flat:v1"); out != "made here\n" {
		t.Errorf("run: %q", out)
	}
	if out, _, code := c.run(t, nil, "save", "made"); code != 0 || !strings.Contains(out, "manifest.json") {
		t.Errorf("save to standard output: exit code %d", code)
	}
	c.want(t, 3, "", "save", "-o", filepath.Join(dir, "none.tar"), "no-such-image")
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("files: %v, %v", left, err)
	}
	c.want(t, 0, "", "rm", "work")
	c.want(t, 0, "untagged", "rmi", addr+"/flat:v1")
	c.want(t, 0, "untagged", "rmi", "made")
	c.want(t, 0, "untagged", "rmi", addr+"/made:v1")
	c.want(t, 0, "deleted", "prune")
}

// testTerminal runs vic on a terminal of its own: the window's size arrives at
// the start and after a change, and Ctrl-C interrupts the process in the guest.
func testTerminal(t *testing.T, c *cli) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := c.command(ctx, "run", "-it", "--rm", c.image, "sh", "-c", `stty size; trap 'stty size' WINCH; trap 'echo got it; exit 42' INT; echo ready; while :; do sleep 0.2; done`)
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 31, Cols: 97})
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	var mu sync.Mutex
	var screen bytes.Buffer
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := tty.Read(b)
			mu.Lock()
			screen.Write(b[:n])
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	wait := func(text string) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			mu.Lock()
			s := screen.String()
			mu.Unlock()
			if strings.Contains(s, text) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%q did not appear; the screen shows %q", text, s)
			}
		}
	}
	wait("31 97\r\n")
	wait("ready\r\n")
	if err := pty.Setsize(tty, &pty.Winsize{Rows: 40, Cols: 120}); err != nil {
		t.Fatal(err)
	}
	wait("40 120\r\n")
	if _, err := tty.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	wait("got it\r\n")
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 42 {
		t.Errorf("vic ended with %v, not with 42", err)
	}
}

// A signal that ends vic run without a terminal goes to the container's
// process, whose exit code comes back.
func TestSignalIsPassedOn(t *testing.T) {
	c := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := c.command(ctx, "run", "--rm", c.image, "sh", "-c", "trap 'echo term; exit 9' TERM; echo ready; while :; do sleep 0.2; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 6)
	if _, err := io.ReadFull(out, b); err != nil || string(b) != "ready\n" {
		t.Fatalf("%q, %v", b, err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(out)
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 9 || string(rest) != "term\n" {
		t.Errorf("%v, output %q", err, rest)
	}
}
