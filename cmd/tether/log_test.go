//go:build linux && amd64

package main_test

import (
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vicsdk/vic-go/vic/tether"
)

// TestBootFullDisk fills the container's disk, by root and to the last block: the
// log goes on, the tether answers, and both outlive a restart of the process and
// the end.
func TestBootFullDisk(t *testing.T) {
	script := `n=$(cat /dev/shm/n 2>/dev/null)
dd if=/dev/zero of=/fill bs=64k 2>/dev/null; dd if=/dev/zero of=/fill2 bs=512 2>/dev/null
echo x >/more 2>/dev/null; [ -s /more ] && echo there was room
echo full; i=0; while [ $i -lt 2000 ]; do echo "line $i of a full disk, and some more to make it long"; i=$((i+1)); done
read x; exit 3`
	// As images' disks are: no block is reserved.
	disk := makeDisk(t, nil, 64)
	if out, err := exec.Command("tune2fs", "-m", "0", disk).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	g := boot(t, bootOptions{disk: disk, config: func(c *tether.Config) {
		restart("on-failure", 1)(c)
		c.Process.OpenStdin, c.AwaitAttach = true, 0
	}}, "sh", "-c", script)
	ctx := testContext(t)
	c := g.dial(ctx)
	logs, err := c.Logs(ctx, tether.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	for run := 1; run <= 2; run++ {
		for i := -1; i < 2000; i++ {
			want := fmt.Sprintf("line %d of a full disk, and some more to make it long\n", i)
			if i < 0 {
				want = "full\n"
			}
			if e, err := logs.Next(); err != nil || string(e.Data) != want {
				t.Fatalf("run %d: %q, %v, not %q", run, e.Data, err, want)
			}
		}
		a, err := c.Attach(ctx, tether.AttachOptions{Streams: tether.Streams{Stdin: strings.NewReader("\n")}, Run: run})
		if err != nil {
			t.Fatal(err)
		}
		if exit, err := a.Wait(); err != nil || exit.Code != 3 {
			t.Fatalf("run %d: %+v, %v", run, exit, err)
		}
	}
	if e, err := logs.Next(); err != io.EOF {
		t.Errorf("%q, %v", e.Data, err)
	}
	g.off()
	if s := g.statusOnDisk(); s.State != tether.Exited || s.Restarts != 1 || s.ExitCode != 3 {
		t.Errorf("status on disk: %+v", s)
	}
	l := tether.NewLogReader(strings.NewReader(g.read(tether.LogPath)))
	n := 0
	for _, err := l.Next(); err == nil; _, err = l.Next() {
		n++
	}
	if n != 4002 || l.Skipped() != 0 {
		t.Errorf("%d entries on the disk, %d torn", n, l.Skipped())
	}
}

// TestBootFullDiskAndLog goes on writing when even the room that is kept is used
// up: the oldest of the log goes.
func TestBootFullDiskAndLog(t *testing.T) {
	const lines = 60000
	g := boot(t, bootOptions{config: func(c *tether.Config) { c.AwaitAttach = 0 }}, "sh", "-c", fmt.Sprintf(
		`dd if=/dev/zero of=/fill bs=64k 2>/dev/null; exec awk 'BEGIN { for (i = 0; i < %d; i++) printf "line %%06d of very many lines, each of them a hundred bytes long, so that they are some MB in all\n", i }'`, lines))
	g.status(ended)
	g.off()
	var names []string
	out, err := exec.Command("debugfs", "-R", "ls -p "+filepath.Dir(tether.LogPath), g.disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Split(line, "/"); len(f) > 5 {
			names = append(names, f[5])
		}
	}
	first, last, n := -1, -1, 0
	for _, name := range tether.LogNames(names) {
		l := tether.NewLogReader(strings.NewReader(g.read(filepath.Join(filepath.Dir(tether.LogPath), name))))
		for e, err := l.Next(); err == nil; e, err = l.Next() {
			var i int
			if _, err := fmt.Sscanf(string(e.Data), "line %d", &i); err != nil || n > 0 && i != last+1 {
				t.Fatalf("%q after %d in %s", e.Data, last, name)
			}
			if n++; first < 0 {
				first = i
			}
			last = i
		}
		if l.Skipped() != 0 {
			t.Errorf("%s: %d torn", name, l.Skipped())
		}
	}
	t.Logf("lines %d to %d in %v", first, last, tether.LogNames(names))
	if last != lines-1 || first == 0 || n < 5000 {
		t.Errorf("the log has lines %d to %d of %d", first, last, lines)
	}
}
