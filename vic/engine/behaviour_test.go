package engine_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/tether"
)

// What a process finds and does, one row for each thing that Docker documents or
// is known for (Docker's references of run, exec and create; execve(2), user
// lookup by the image's /etc/passwd and /etc/group). As many rows as can be share
// a VM.

// fact is a line that a main process wrote about itself.
type fact struct{ name, script, want string }

// mainScript writes every fact, told apart by their numbers.
func mainScript(facts []fact) string {
	var b strings.Builder
	for i, f := range facts {
		fmt.Fprintf(&b, "echo '<%d>'; { %s; } 2>&1; echo '</%d>'\n", i, f.script, i)
	}
	return b.String()
}

func checkFacts(t *testing.T, facts []fact, out string) {
	for i, f := range facts {
		t.Run(f.name, func(t *testing.T) {
			_, rest, ok := strings.Cut(out, fmt.Sprintf("<%d>\n", i))
			got, _, ok2 := strings.Cut(rest, fmt.Sprintf("</%d>\n", i))
			if got = strings.TrimSuffix(got, "\n"); !ok || !ok2 || got != f.want {
				t.Errorf("%s: got %q, want %q", f.script, got, f.want)
			}
		})
	}
}

// act is an exec and what is to come of it.
type act struct {
	name   string
	script string // for sh, where args is nil
	args   []string
	spec   tether.ExecSpec
	stdin  string
	after  string // what is on standard output before the input is sent
	out    string
	err    string // on standard error
	code   int
	failed string // a part of the reason where it cannot be started
}

func runActs(t *testing.T, vm *containervm.VM, acts []act) {
	c, err := vm.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, a := range acts {
		t.Run(a.name, func(t *testing.T) {
			e := a.spec
			if e.Args = a.args; e.Args == nil {
				e.Args = []string{"sh", "-c", a.script}
			}
			var out, errs buffer
			s := tether.Streams{Stdout: &out, Stderr: &errs}
			if a.stdin != "" {
				in, w := io.Pipe()
				s.Stdin = in
				go func() {
					out.wait(a.after, time.Minute)
					_, _ = io.WriteString(w, a.stdin)
					_ = w.Close()
				}()
				defer in.Close()
			}
			x, err := c.Exec(t.Context(), e, s)
			if err != nil {
				t.Fatal(err)
			}
			exit, err := x.Wait()
			if err != nil {
				t.Fatal(err)
			}
			if exit.Code != a.code || out.String() != a.out || errs.String() != a.err || (exit.Error != "") != (a.failed != "") || !strings.Contains(exit.Error, a.failed) {
				t.Errorf("got code %d, stdout %.300q, stderr %.300q, error %q", exit.Code, out.String(), errs.String(), exit.Error)
			}
		})
	}
}

// startMain runs a container whose main process writes facts, then "ready", and
// goes on with the rest of its script.
func startMain(t *testing.T, e *testlab.Env, image string, facts []fact, rest string, spec containervm.Spec) (*containervm.VM, string) {
	t.Helper()
	spec.Args = []string{"sh", "-c", mainScript(facts) + "echo ready\n" + rest, "name with blanks", "", "a  b"}
	vm, _, err := e.Engine.Run(t.Context(), engine.RunSpec{Image: image, Detach: true, Container: spec})
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		var b strings.Builder
		err := vm.Logs(t.Context(), tether.LogOptions{}, func(l tether.LogEntry) error { b.Write(l.Data); return nil })
		if err == nil && strings.HasSuffix(b.String(), "ready\n") {
			return vm, b.String()
		}
	}
	t.Fatal("the main process does not get ready")
	return nil, ""
}

func status(fields string) string {
	return "grep -E '^(" + fields + "):' /proc/self/status | tr '\\t' ' '"
}

func TestBehaviour(t *testing.T) {
	t.Parallel()
	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	t.Run("default", func(t *testing.T) { behaviourDefault(t, e, image) })
	t.Run("settings", func(t *testing.T) { behaviourSettings(t, e, image) })
	t.Run("terminal", func(t *testing.T) { behaviourTerminal(t, e, image) })
	t.Run("start", func(t *testing.T) { behaviourStart(t, e, image) })
}

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	dockerCaps  = "00000000a80425fb"
	noCaps      = "0000000000000000"
	allCaps     = "000001ffffffffff"
)

func behaviourDefault(t *testing.T, e *testlab.Env, image string) {
	facts := []fact{
		{"arguments arrive as they are", `echo "$# [$0] [$1] [$2]"`, "2 [name with blanks] [] [a  b]"},
		{"PATH is the image's", "echo $PATH", defaultPath},
		{"HOSTNAME is set", "echo $HOSTNAME", "box"},
		{"HOME is the user's", "echo $HOME", "/root"},
		{"no TERM without a terminal", "echo ${TERM-unset}", "unset"},
		{"a variable set twice has the last value", "echo $A", "3"},
		{"a variable may be empty", `echo "[${E-unset}]"`, "[]"},
		{"the value of a variable may hold =", "echo $Q", "x=y=z"},
		{"the working directory is made", "pwd", "/made/deep"},
		{"it is root's with mode 755", "stat -c '%u %g %a' /made/deep", "0 0 755"},
		{"root by default", "id -u; id -g", "0\n0"},
		{"effective capabilities are Docker's default", status("CapEff"), "CapEff: " + dockerCaps},
		{"so are the permitted ones", status("CapPrm"), "CapPrm: " + dockerCaps},
		{"so is the bounding set", status("CapBnd"), "CapBnd: " + dockerCaps},
		{"nothing is inheritable", status("CapInh"), "CapInh: " + noCaps},
		{"nothing is ambient", status("CapAmb"), "CapAmb: " + noCaps},
		{"privileges may be gained", status("NoNewPrivs"), "NoNewPrivs: 0"},
		{"no signal is ignored", status("SigIgn"), "SigIgn: " + noCaps},
		{"no signal is blocked", status("SigBlk"), "SigBlk: " + noCaps},
		{"many files may be open", "ulimit -n", "1048576"},
		{"any number of processes", "ulimit -u", "unlimited"},
		{"umask", "umask", "0022"},
		{"OOM score", "cat /proc/self/oom_score_adj", "0"},
		{"host name", "hostname", "box"},
		{"/etc/hostname", "cat /etc/hostname", "box"},
		{"localhost in /etc/hosts", "grep -c '^127.0.0.1.localhost' /etc/hosts", "1"},
		{"its own name in /etc/hosts", "grep -cw box /etc/hosts", "1"},
		{"a name server", "grep -c ^nameserver /etc/resolv.conf", "1"},
		{"standard input at its end", "cat; echo end", "end"},
		{"standard output is no terminal", "tty", "not a tty"},
		{"/dev/stdout can be opened again", "echo again >/dev/stdout", "again"},
		{"/dev/fd", "readlink /dev/fd", "/proc/self/fd"},
		{"/dev/null takes and gives nothing", "echo x >/dev/null; wc -c </dev/null", "0"},
		{"/dev/full is full", "echo x 2>/dev/null >/dev/full || echo full", "full"},
		{"no disks in /dev", "ls /dev | grep -c '^sd'", "0"},
		{"ports below 1024 are anybody's", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "0"},
		{"anybody may ping", "cat /proc/sys/net/ipv4/ping_group_range | tr '\\t' ' '", "0 2147483647"},
		{"the loopback interface is up", "cat /sys/class/net/lo/flags", "0x9"},
		{"the agent is not to be seen", "cat /proc/*/comm | grep -c '^tether$'", "0"},
		{"a session of its own", "[ $(cut -d' ' -f6 /proc/$$/stat) = $$ ] && echo leader", "leader"},
	}
	vm, out := startMain(t, e, image, facts, `trap 'echo got usr1' USR1; trap 'echo got hup; exit 42' HUP; while :; do sleep 0.05; done`, containervm.Spec{
		Name: "behaviour", Hostname: "box", Dir: "/made/deep", Env: []string{"A=1", "E=", "Q=x=y=z", "A=3"}, StopSignal: "SIGHUP",
	})
	checkFacts(t, facts, out)
	var changes []imagestore.Change
	big := strings.Repeat("0123456789abcde\n", 16<<10)
	const files = `
echo 'app:x:1000:1001::/home/app:/bin/sh' >>/etc/passwd
echo 'app:x:1001:
extra:x:1002:app
more:x:1003:root,app' >>/etc/group
mkdir -p /t/bin; cd /t
echo 'not a program' >text; printf '#!/bin/sh\necho script $1\n' >script; printf '#!/none\n' >lost; echo 'echo plain' >plain; chmod 755 script lost plain
cp script bin/mine; cp text bin/found; mkdir /t/later; cp script /t/later/found`
	user := func(u string) tether.ExecSpec { return tether.ExecSpec{User: u} }
	const who = "id -u; id -g; id -G; echo $HOME"
	runActs(t, vm, []act{
		{name: "exec: changes are seen by the next one", script: files},
		{name: "exec: exit code 0", args: []string{"true"}},
		{name: "exec: exit code 1", args: []string{"false"}, code: 1},
		{name: "exec: exit code 255", script: "exit 255", code: 255},
		{name: "exec: ended by SIGTERM is 143", script: "kill -TERM $$", code: 143},
		{name: "exec: ended by SIGKILL is 137", script: "kill -KILL $$", code: 137},
		{name: "exec: ended by SIGSEGV is 139", script: "kill -SEGV $$", code: 139},
		{name: "exec: a missing program is 127", args: []string{"nowhere"}, code: 127, failed: `"nowhere": executable file not found in $PATH`},
		{name: "exec: a missing path is 127", args: []string{"/no/where"}, code: 127, failed: "no such file or directory"},
		{name: "exec: a missing interpreter is 127", args: []string{"/t/lost"}, code: 127, failed: "no such file or directory"},
		{name: "exec: a directory is 126", args: []string{"/etc"}, code: 126, failed: "is a directory"},
		{name: "exec: what is not executable is 126", args: []string{"/t/text"}, code: 126, failed: "permission denied"},
		{name: "exec: no format of a program is 126", args: []string{"/t/plain"}, code: 126, failed: "exec format error"},
		{name: "exec: a script by its interpreter", args: []string{"/t/script", "x"}, out: "script x\n"},
		{name: "exec: a path from the working directory", args: []string{"./script"}, spec: tether.ExecSpec{Dir: "/t"}, out: "script\n"},
		{name: "exec: looked up in the PATH it is given", args: []string{"mine"}, spec: tether.ExecSpec{Env: []string{"PATH=/t/bin:/bin"}}, out: "script\n"},
		{name: "exec: the PATH goes on past what cannot be run", args: []string{"found"}, spec: tether.ExecSpec{Env: []string{"PATH=/t/bin:/t/later:/bin"}}, out: "script\n"},
		{name: "exec: no shell takes its arguments apart", args: []string{"echo", "$HOME", "a;b", "*"}, out: "$HOME a;b *\n"},
		{name: "exec: the main process's directory", script: "pwd", out: "/made/deep\n"},
		{name: "exec: a directory of its own", script: "pwd", spec: tether.ExecSpec{Dir: "/t/bin"}, out: "/t/bin\n"},
		{name: "exec: a missing directory is not made", script: "pwd", spec: tether.ExecSpec{Dir: "/t/none"}, code: 126, failed: "no such file or directory"},
		{name: "exec: the main process's environment", script: "echo $A $Q $HOSTNAME", out: "3 x=y=z box\n"},
		{name: "exec: a variable of its own", script: "echo $A $B", spec: tether.ExecSpec{Env: []string{"B=new"}}, out: "3 new\n"},
		{name: "exec: its variables win", script: "echo $A", spec: tether.ExecSpec{Env: []string{"A=exec"}}, out: "exec\n"},
		{name: "exec: its variables are nobody else's", script: "echo $A ${B-unset}", out: "3 unset\n"},
		{name: "exec: user by name", script: who, spec: user("app"), out: "1000\n1001\n1001 1002 1003\n/home/app\n"},
		{name: "exec: user by number", script: who, spec: user("1000"), out: "1000\n1001\n1001 1002 1003\n/home/app\n"},
		{name: "exec: user and group by name", script: who, spec: user("app:extra"), out: "1000\n1002\n1002\n/home/app\n"},
		{name: "exec: user by name, group by number", script: who, spec: user("app:7"), out: "1000\n7\n7\n/home/app\n"},
		{name: "exec: user and group by number", script: who, spec: user("5:6"), out: "5\n6\n6\n/\n"},
		{name: "exec: a number nobody has", script: who, spec: user("4711"), out: "4711\n0\n0\n/\n"},
		{name: "exec: root is a member, too", script: who, spec: user("root"), out: "0\n0\n0 1003\n/root\n"},
		{name: "exec: an unknown user is 126", args: []string{"true"}, spec: user("nobody-knows"), code: 126, failed: `no user "nobody-knows"`},
		{name: "exec: an unknown group is 126", args: []string{"true"}, spec: user("app:nobody-knows"), code: 126, failed: `no group "nobody-knows"`},
		{name: "exec: other users have no capabilities", script: status("CapEff"), spec: user("app"), out: "CapEff: " + noCaps + "\n"},
		{name: "exec: their bounding set is the container's", script: status("CapBnd"), spec: user("app"), out: "CapBnd: " + dockerCaps + "\n"},
		{name: "exec: others may not write root's files", script: "(echo >/t/text) 2>/dev/null || echo denied", spec: user("app"), out: "denied\n"},
		{name: "exec: others may open /dev/stderr", script: "echo x >/dev/stderr", spec: user("app"), err: "x\n"},
		{name: "exec: privileged has all capabilities", script: status("CapEff"), spec: tether.ExecSpec{Privileged: true}, out: "CapEff: " + allCaps + "\n"},
		{name: "exec: privileged is that one alone", script: status("CapEff"), out: "CapEff: " + dockerCaps + "\n"},
		{name: "exec: no descriptors beyond the three and its own", args: []string{"ls", "/proc/self/fd"}, out: "0\n1\n2\n3\n"},
		{name: "exec: both streams apart", script: "echo out; echo err >&2", out: "out\n", err: "err\n"},
		{name: "exec: no standard input is its end", script: "cat; echo end", out: "end\n"},
		{name: "exec: standard input and its end", script: "cat; echo end", stdin: "in", out: "inend\n"},
		{name: "exec: output after the input's end", script: "wc -c; sleep 0.2; echo late", stdin: "12345", out: "5\nlate\n"},
		{name: "exec: a process that does not read its input", args: []string{"true"}, stdin: big},
		{name: "exec: much there and back", args: []string{"cat"}, stdin: big, out: big},
		{name: "exec: bytes that are no text", script: "cat", stdin: "\x00\xff\x1b\x80", out: "\x00\xff\x1b\x80"},
		{name: "exec: in the container's cgroup", script: "cat /proc/self/cgroup", out: "0::/container\n"},
		{name: "exec: sees the container's processes", script: "grep -l usr1 /proc/[0-9]*/cmdline 2>/dev/null | wc -l | tr -d ' ' >/t/n; [ $(cat /t/n) -ge 1 ] && echo seen", out: "seen\n"},
		{name: "exec: orphans are reaped", script: "for i in 1 2 3; do (sleep 0.1 &); done; sleep 0.6; grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null; true"},
		{name: "exec: what it leaves behind goes on", script: "(sleep 0.5; echo done >/t/left) >/dev/null 2>&1 &"},
		{name: "exec: and is found later", script: "sleep 1; cat /t/left", out: "done\n"},
		{name: "exec: does not wait for ever for what holds its output", script: "sleep 30 & echo now", out: "now\n"},
		{name: "exec: a terminal has no standard error", script: "echo err >&2", spec: tether.ExecSpec{TTY: true}, out: "err\r\n"},
		{name: "exec: a terminal's size", script: "stty size", spec: tether.ExecSpec{TTY: true, Rows: 40, Columns: 120}, out: "40 120\r\n"},
		{name: "exec: a terminal's TERM", script: "echo $TERM", spec: tether.ExecSpec{TTY: true}, out: "xterm\r\n"},
		{name: "exec: TERM given is kept", script: "echo $TERM", spec: tether.ExecSpec{TTY: true, Env: []string{"TERM=vt100"}}, out: "vt100\r\n"},
		{name: "exec: a terminal's input comes back", script: "read x; echo got $x", stdin: "key\n", spec: tether.ExecSpec{TTY: true}, out: "key\r\ngot key\r\n"},
		{name: "exec: Ctrl-C in a terminal", script: "trap 'exit 9' INT; echo ready; while :; do sleep 0.05; done", stdin: "\x03", after: "ready\r\n", spec: tether.ExecSpec{TTY: true}, out: "ready\r\n^C", code: 9},
		{name: "exec: Ctrl-D in a terminal", script: "cat; echo end", stdin: "\x04", spec: tether.ExecSpec{TTY: true}, out: "end\r\n"},
		{name: "exec: files beside the main process's", script: "echo x >/made/deep/mine; ls", out: "mine\n"},
	})
	t.Run("exec: detached, inspected while it runs and after its end", func(t *testing.T) { behaviourDetached(t, vm) })
	t.Run("exec: refused while paused", func(t *testing.T) {
		if err := vm.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		if info, err := vm.Inspect(t.Context()); err != nil || !info.Paused || info.State != containervm.Running {
			t.Errorf("inspect: %+v, %v", info, err)
		}
		if _, err := vm.ExecDetached(t.Context(), tether.ExecSpec{Args: []string{"true"}}); !errors.Is(err, vic.ErrState) || !strings.Contains(err.Error(), "paused") {
			t.Errorf("got %v", err)
		}
		if err := vm.Unpause(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("files: out of a running container and in again", func(t *testing.T) {
		var b bytes.Buffer
		if err := e.Engine.CopyOut(t.Context(), "behaviour", "/t/text", &b, nil); err != nil {
			t.Fatal(err)
		}
		if err := e.Engine.CopyIn(t.Context(), "behaviour", "/made", &b, nil); err != nil {
			t.Fatal(err)
		}
		if i, err := e.Engine.StatPath(t.Context(), "behaviour", "/made/text"); err != nil || i.Size != 14 {
			t.Errorf("%+v, %v", i, err)
		}
		if _, err := e.Engine.StatPath(t.Context(), "behaviour", "/none"); !errors.Is(err, vic.ErrNotFound) {
			t.Errorf("nothing: %v", err)
		}
	})
	t.Run("changes: of a running container, as of the stopped one", func(t *testing.T) {
		runActs(t, vm, []act{{name: "some", script: `mkdir -p /new/in; echo x >/new/in/f; echo y >>/etc/group; rm /sbin/fdisk; rm -r /var/log; chmod 700 /home; ln -sf /t /bin/way; touch /usr/bin/awk`}})
		var err error
		if changes, err = e.Engine.Changes(t.Context(), "behaviour"); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"A /new", "A /new/in/f", "C /etc", "C /etc/group", "D /sbin/fdisk", "D /var/log", "C /home", "A /bin/way", "C /bin"} {
			if !slices.Contains(changes, imagestore.Change{Kind: want[:1], Path: want[2:]}) {
				t.Errorf("%s is missing in %v", want, changes)
			}
		}
	})
	t.Run("kill: a signal that is handled", func(t *testing.T) {
		if err := vm.Kill(t.Context(), "SIGUSR1"); err != nil {
			t.Fatal(err)
		}
		waitLog(t, vm, out+"got usr1\n")
	})
	t.Run("stop: its own signal, and the code of its handler", func(t *testing.T) {
		if err := vm.Stop(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if info, err := vm.Inspect(t.Context()); err != nil || info.ExitCode != 42 || !info.Known {
			t.Errorf("%+v, %v", info, err)
		}
	})
	t.Run("changes: the same when it is off", func(t *testing.T) {
		off, err := e.Engine.Changes(t.Context(), "behaviour")
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(off, changes); d != "" {
			t.Errorf("off -, while it ran +: %s", d)
		}
	})
	t.Run("exec: refused after the end", func(t *testing.T) {
		if _, err := vm.Exec(t.Context(), tether.ExecSpec{Args: []string{"true"}}, tether.Streams{}); !errors.Is(err, vic.ErrState) {
			t.Errorf("got %v", err)
		}
	})
}

func behaviourDetached(t *testing.T, vm *containervm.VM) {
	ctx := t.Context()
	i, err := vm.ExecDetached(ctx, tether.ExecSpec{Args: []string{"sh", "-c", "while [ ! -e /t/go ]; do sleep 0.05; done; exit 9"}})
	if err != nil || i.State != tether.ExecRunning || i.PID <= 1 || len(i.ID) != 64 {
		t.Fatalf("%+v, %v", i, err)
	}
	all, err := vm.Top(ctx)
	found := false
	for _, p := range all {
		found = found || p.PID == i.PID && strings.Contains(p.Command, "/t/go")
	}
	if err != nil || !found {
		t.Errorf("process %d is not in the list %+v, %v", i.PID, all, err)
	}
	if _, err := vm.ExecDetached(ctx, tether.ExecSpec{Args: []string{"touch", "/t/go"}}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); i.State == tether.ExecRunning && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if i, err = vm.InspectExec(ctx, i.ID); err != nil {
			t.Fatal(err)
		}
	}
	if i.State != tether.ExecEnded || i.Exit.Code != 9 || i.PID != 0 {
		t.Errorf("%+v", i)
	}
	if i, err := vm.ExecDetached(ctx, tether.ExecSpec{Args: []string{"nowhere"}}); err != nil || i.Exit.Code != 127 || i.State != tether.ExecEnded {
		t.Errorf("a missing program: %+v, %v", i, err)
	}
	if _, err := vm.InspectExec(ctx, tether.NewExecID()); !errors.Is(err, vic.ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
}

func behaviourSettings(t *testing.T, e *testlab.Env, image string) {
	facts := []fact{
		{"user by name", "id -u; id -g", "65534\n65534"},
		{"further groups by name and number", "id -G", "65534 5 4711"},
		{"soft limit", "ulimit -Sn", "100"},
		{"hard limit", "ulimit -Hn", "200"},
		{"no limit, for an ordinary user", "ulimit -l", "unlimited"},
		{"limits that are not named stay", "ulimit -u", "unlimited"},
		{"no new privileges", status("NoNewPrivs"), "NoNewPrivs: 1"},
		{"OOM score", "cat /proc/self/oom_score_adj", "500"},
		{"kernel parameter of the network", "cat /proc/sys/net/core/somaxconn", "321"},
		{"kernel parameter of the whole kernel", "cat /proc/sys/kernel/msgmax", "12345"},
		{"domain name", "cat /proc/sys/kernel/domainname", "example.org"},
		{"full name in /etc/hosts", "grep -c 'box.example.org box$' /etc/hosts", "1"},
		{"the host name stays short", "hostname", "box"},
		{"further hosts", "grep 192.0.2.9 /etc/hosts | tr '\\t' ' '", "192.0.2.9 db"},
		{"further hosts, IPv6", "grep 2001:db8 /etc/hosts | tr '\\t' ' '", "2001:db8::9 db6"},
		{"resolver", "cat /etc/resolv.conf", "search a.example b.example\nnameserver 192.0.2.53\noptions ndots:3 rotate"},
	}
	vm, out := startMain(t, e, image, facts, "exec sleep 1000", containervm.Spec{
		Hostname: "box", User: "nobody", Settings: tether.Settings{
			CapAdd: []string{"NET_ADMIN"}, CapDrop: []string{"mknod", "CAP_CHOWN"}, NoNewPrivileges: true, OOMScoreAdj: 500,
			Ulimits:  []tether.Ulimit{{Name: "nofile", Soft: 100, Hard: 200}, {Name: "memlock", Soft: -1, Hard: -1}},
			GroupAdd: []string{"tty", "4711"}, Sysctls: map[string]string{"net.core.somaxconn": "321", "kernel.msgmax": "12345"},
			Domainname: "example.org",
			ExtraHosts: []tether.ExtraHost{{Name: "db", Address: netip.MustParseAddr("192.0.2.9")}, {Name: "db6", Address: netip.MustParseAddr("2001:db8::9")}},
			DNS:        []netip.Addr{netip.MustParseAddr("192.0.2.53")}, DNSSearch: []string{"a.example", "b.example"}, DNSOptions: []string{"ndots:3", "rotate"},
		},
	})
	checkFacts(t, facts, out)
	root := tether.ExecSpec{User: "root"}
	runActs(t, vm, []act{
		{name: "exec: capabilities added and dropped", script: status("CapEff"), spec: root, out: "CapEff: 00000000a00435fa\n"},
		{name: "exec: a dropped capability is missed", script: "chown 5 /tmp 2>/dev/null || echo denied", spec: root, out: "denied\n"},
		{name: "exec: an added one is there", script: "ip link set lo mtu 1400 && cat /sys/class/net/lo/mtu", spec: root, out: "1400\n"},
		{name: "exec: limits hold for it", script: "ulimit -Sn; ulimit -Hn", out: "100\n200\n"},
		{name: "exec: the main process's user and groups", script: "id -u; id -G", out: "65534\n65534 5 4711\n"},
		{name: "exec: further groups of another user", script: "id -G", spec: root, out: "0 5 4711\n"},
		{name: "exec: OOM score", script: "cat /proc/self/oom_score_adj", out: "500\n"},
		{name: "exec: no new privileges", script: status("NoNewPrivs"), out: "NoNewPrivs: 1\n"},
		{name: "exec: none for a privileged one either", script: status("NoNewPrivs|CapEff"), spec: tether.ExecSpec{User: "root", Privileged: true}, out: "CapEff: " + allCaps + "\nNoNewPrivs: 1\n"},
	})
	if err := vm.Delete(t.Context(), true); err != nil {
		t.Error(err)
	}
}

func behaviourTerminal(t *testing.T, e *testlab.Env, image string) {
	var out, errs bytes.Buffer
	in, keys := io.Pipe()
	go func() { _, _ = io.WriteString(keys, "typed\n\x04") }()
	_, exit, err := e.Engine.Run(t.Context(), engine.RunSpec{
		Image: image, Remove: true, Streams: tether.Streams{Stdin: in, Stdout: &out, Stderr: &errs},
		Container: containervm.Spec{TTY: true, OpenStdin: true, Rows: 31, Columns: 99, User: "nobody",
			Args: []string{"sh", "-c", "read x; cat; echo size $(stty size); echo term $TERM; tty; echo oops >&2; [ -w $(tty) ] && echo mine; kill -HUP $$"}},
	})
	_ = keys.Close()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"input comes back": "typed\r\n", "size": "size 31 99\r\n", "TERM": "term xterm\r\n", "a terminal": "/dev/pts/0\r\n",
		"standard error is the terminal": "oops\r\n", "it belongs to the user": "mine\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%q is not in %q", want, out.String())
			}
		})
	}
	t.Run("nothing on standard error", func(t *testing.T) {
		if errs.Len() > 0 {
			t.Errorf("%q", errs.String())
		}
	})
	t.Run("ended by SIGHUP is 129", func(t *testing.T) {
		if exit.Code != 129 || exit.Signal != "SIGHUP" {
			t.Errorf("%+v", exit)
		}
	})
}

func behaviourStart(t *testing.T, e *testlab.Env, image string) {
	for _, c := range []struct {
		name string
		spec containervm.Spec
		code int
		why  string
	}{
		{"a missing program is 127", containervm.Spec{Args: []string{"nowhere"}}, 127, `"nowhere": executable file not found in $PATH`},
		{"a directory is 126", containervm.Spec{Args: []string{"/etc"}}, 126, "is a directory"},
		{"an unknown user is 125", containervm.Spec{Args: []string{"true"}, User: "nobody-knows"}, 125, `no user "nobody-knows"`},
		{"an unknown further group is 125", containervm.Spec{Args: []string{"true"}, Settings: tether.Settings{GroupAdd: []string{"nobody-knows"}}}, 125, `groupAdd[0]: the container's /etc/group has no group`},
		{"an unknown kernel parameter is 125", containervm.Spec{Args: []string{"true"}, Settings: tether.Settings{Sysctls: map[string]string{"kernel.no_such": "1"}}}, 125, "settings.sysctls: kernel.no_such: the VM's kernel has no such parameter"},
		{"a limit above the kernel's is 125", containervm.Spec{Args: []string{"true"}, Settings: tether.Settings{Ulimits: []tether.Ulimit{{Name: "nofile", Soft: 1, Hard: 1 << 40}}}}, 125, "settings.ulimits[0].nofile"},
		{"signals end the main process as any", containervm.Spec{Args: []string{"sh", "-c", "kill -TERM $$"}}, 143, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := do(t, e, image, nil, c.spec)
			if r.exit.Code != c.code || !strings.Contains(r.exit.Error, c.why) || (r.exit.Error == "") != (c.why == "") {
				t.Errorf("got %+v", r)
			}
		})
	}
	t.Run("privileged has all capabilities and the VM's devices", func(t *testing.T) {
		r := do(t, e, image, nil, containervm.Spec{Args: []string{"sh", "-c", status("CapEff") + "; [ -b /dev/sda ] && echo disk"}, Settings: tether.Settings{Privileged: true, CapDrop: []string{"ALL"}}})
		if r.out != "CapEff: "+allCaps+"\ndisk\n" {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("what cannot be right is refused before there is a VM", func(t *testing.T) {
		_, err := e.Engine.Create(t.Context(), engine.RunSpec{Image: image, Container: containervm.Spec{Settings: tether.Settings{CapAdd: []string{"FLY"}}}})
		if !errors.Is(err, vic.ErrInvalid) || !strings.Contains(err.Error(), "settings.capAdd[0]") {
			t.Errorf("got %v", err)
		}
	})
}
