//go:build linux && amd64

package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vicsdk/vic-go/bootiso/modlist"
	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/sys/unix"
)

func TestLoadModulesInOrder(t *testing.T) {
	list := []modlist.Module{
		{File: "a"}, {File: "b", Needs: []string{"a"}}, {File: "c", Needs: []string{"a"}},
		{File: "d", Needs: []string{"b", "c"}}, {File: "late", Late: true, Needs: []string{"d"}},
	}
	var (
		mu     sync.Mutex
		loaded []string
	)
	load := func(m modlist.Module) error {
		mu.Lock()
		defer mu.Unlock()
		for _, need := range m.Needs {
			if !slices.Contains(loaded, need) {
				t.Errorf("%s loaded before %s", m.File, need)
			}
		}
		loaded = append(loaded, m.File)
		if m.File == "c" {
			return unix.ENOEXEC
		}
		return nil
	}
	if err := loadModules(list, false, load); !errors.Is(err, unix.ENOEXEC) || !strings.Contains(err.Error(), "module c") {
		t.Errorf("early: %v", err)
	}
	if slices.Contains(loaded, "late") || len(loaded) != 4 {
		t.Errorf("early: %v", loaded)
	}
	if err := loadModules(list, true, load); err != nil || len(loaded) != 5 {
		t.Errorf("late: %v, %v", loaded, err)
	}
}

func TestSCSIHosts(t *testing.T) {
	sys := t.TempDir()
	for host, driver := range map[string]string{"host0": "ahci", "host2": "vmw_pvscsi", "host10": "vmw_pvscsi", "host1": "ahci", "hostile": "x"} {
		dir := filepath.Join(sys, "class/scsi_host", host)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "proc_name"), []byte(driver+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]int{2, 10, 0, 1}, scsiHosts(sys)); diff != "" {
		t.Error(diff)
	}
	if err := os.MkdirAll(filepath.Join(sys, "class/scsi_device/2:0:5:0/device/block/sdc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := scsiDisk(sys, 2, 5); got != "sdc" {
		t.Errorf("disk %q", got)
	}
	if got := scsiDisk(sys, 2, 6); got != "" {
		t.Errorf("disk %q", got)
	}
}

func TestIsPowerButton(t *testing.T) {
	event := func(command byte, class string) []byte {
		b := make([]byte, 16+4+4+20+15+8)
		b[18] = 1
		b[22] = command
		copy(b[24:44], class)
		return b
	}
	message := event(1, "button/power")
	if !isPowerButton(message) {
		t.Error("not seen")
	}
	for name, b := range map[string][]byte{
		"lid": event(1, "button/lid"), "longer": event(1, "button/powerful"), "short": message[:30], "nothing": nil,
	} {
		if isPowerButton(b) {
			t.Errorf("%s is taken for the power button", name)
		}
	}
}

func TestEnvironment(t *testing.T) {
	got := environment(tether.Process{Env: []string{"HOME=/mine", "A=b"}, TTY: true}, "/home/app", "host")
	want := []string{"HOME=/mine", "A=b", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=host", "TERM=xterm"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFindProgram(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"bin/run": 0o755, "bin/text": 0o644, "sbin/text": 0o755} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"PATH=" + dir + "/bin:sbin"}
	for _, tt := range []struct {
		name, want string
		code       int
	}{
		{"run", dir + "/bin/run", 0},
		{"text", dir + "/sbin/text", 0}, // The one that cannot be run is passed over.
		{"bin/run", dir + "/bin/run", 0},
		{"none", "", codeNotFound},
		{"./none", "", codeNotFound},
		{"bin/run/x", "", codeNotFound},
		{"./bin", "", codeCannotRun},
		{"bin/text", "", codeCannotRun},
	} {
		got, err := findProgram(tt.name, dir, env)
		var s *startError
		code := 0
		if errors.As(err, &s) {
			code = s.code
		}
		if got != tt.want || code != tt.code {
			t.Errorf("%s: %q, %d (%v)", tt.name, got, code, err)
		}
	}
}

func TestStartErrors(t *testing.T) {
	for err, want := range map[error]int{
		syscall.ENOENT: codeNotFound, syscall.EACCES: codeCannotRun, syscall.ENOEXEC: codeCannotRun,
		syscall.ENOMEM: codeSetup, &os.PathError{Op: "stat", Path: "/x", Err: syscall.ENOTDIR}: codeNotFound,
	} {
		var s *startError
		if e := runError("prog", err); !errors.As(e, &s) || s.code != want || !strings.Contains(e.Error(), "prog") {
			t.Errorf("%v: %v", err, e)
		}
	}
}

func TestWriteStatus(t *testing.T) {
	name := filepath.Join(t.TempDir(), "status.json")
	for _, doc := range []string{`{"exitCode":1}`, `{"exitCode":2}`} {
		if err := writeStatus(name, []byte(doc)); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(name)
	if err != nil || !strings.Contains(string(b), `"exitCode":2`) {
		t.Errorf("%s, %v", b, err)
	}
	if left, _ := filepath.Glob(name + ".*"); left != nil {
		t.Errorf("left behind: %v", left)
	}
}
