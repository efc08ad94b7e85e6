package containervm

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

func goodSpec() Spec {
	return Spec{
		Name: "web", Owner: vic.Owner{
			ID: "1", Name: "v", Pool: vic.Ref{ID: "p"}, Folder: vic.Ref{ID: "f"}, Datastore: vic.Ref{Name: "ds"},
			NIC: vic.NIC{Network: vic.Ref{ID: "n", Name: "net"}}, CPUs: 1, MemoryMB: 512,
		},
		Root:  vic.Disk{Path: "[ds] x.vmdk", Bytes: 1 << 30},
		Image: ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"a", "b"}, Env: []string{"A=1", "B=2"}, WorkingDir: "/w", User: "u", StopSignal: "SIGINT"},
	}
}

func TestConfigMergesImageAndSpec(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Spec)
		args   []string
		env    []string
		dir    string
		user   string
	}{
		{"image alone", func(*Spec) {}, []string{"/entry", "a", "b"}, []string{"A=1", "B=2"}, "/w", "u"},
		{"arguments replace the command", func(s *Spec) { s.Args = []string{"c"} }, []string{"/entry", "c"}, []string{"A=1", "B=2"}, "/w", "u"},
		{"no arguments at all", func(s *Spec) { s.Args = []string{} }, []string{"/entry"}, []string{"A=1", "B=2"}, "/w", "u"},
		{"an entry point drops the image's command", func(s *Spec) { s.Entrypoint = []string{"/e"} }, []string{"/e"}, []string{"A=1", "B=2"}, "/w", "u"},
		{"both", func(s *Spec) { s.Entrypoint, s.Args = []string{"/e"}, []string{"x"} }, []string{"/e", "x"}, []string{"A=1", "B=2"}, "/w", "u"},
		{"environment in place", func(s *Spec) { s.Env = []string{"C=3", "A=9", "C=4"} }, []string{"/entry", "a", "b"}, []string{"A=9", "B=2", "C=4"}, "/w", "u"},
		{"directory and user", func(s *Spec) { s.Dir, s.User = "rel/ative", "0:0" }, []string{"/entry", "a", "b"}, []string{"A=1", "B=2"}, "/rel/ative", "0:0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := goodSpec()
			c.change(&s)
			if err := s.complete(); err != nil {
				t.Fatal(err)
			}
			cfg, err := s.config()
			if err != nil {
				t.Fatal(err)
			}
			p := cfg.Process
			if d := cmp.Diff([]any{c.args, c.env, c.dir, c.user}, []any{p.Args, p.Env, p.Dir, p.User}); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestSpecRefused(t *testing.T) {
	for _, c := range []struct {
		text   string
		change func(*Spec)
	}{
		{"Name", func(s *Spec) { s.Name = "a/b" }},
		{"Name", func(s *Spec) { s.Name = "" }},
		{"ID", func(s *Spec) { s.ID = "xyz" }},
		{"Owner", func(s *Spec) { s.Owner.Pool = vic.Ref{} }},
		{"Root", func(s *Spec) { s.Root = vic.Disk{} }},
		{"CPUs", func(s *Spec) { s.CPUs = -1 }},
		{"MemoryMB", func(s *Spec) { s.MemoryMB = 63 }},
		{"multiple of 4", func(s *Spec) { s.MemoryMB = 513 }},
		{"process.args", func(s *Spec) { s.Image = ocispec.ImageConfig{} }},
		{"process.args[1]", func(s *Spec) { s.Args = []string{"a\x00b"} }},
		{"process.env[2]", func(s *Spec) { s.Env = []string{"novalue"} }},
		{"NICs: 11", func(s *Spec) { s.NICs = make([]vic.NIC, 11) }},
		{"NICs[0]", func(s *Spec) { s.NICs = []vic.NIC{{}} }},
		{"60 KiB", func(s *Spec) { s.Args = []string{strings.Repeat("x", 70<<10)} }},
	} {
		s := goodSpec()
		c.change(&s)
		err := s.complete()
		if err == nil {
			var cfg *tether.Config
			if cfg, err = s.config(); err == nil {
				_, err = s.vm(cfg)
			}
		}
		if err == nil || !strings.Contains(err.Error(), c.text) || !errors.Is(err, vic.ErrInvalid) && !errors.Is(err, vic.ErrUnsupported) {
			t.Errorf("%s: got %v", c.text, err)
		}
	}
}

// FuzzSpec: what is accepted makes a VM whose guest reads the same.
func FuzzSpec(f *testing.F) {
	f.Add("web", "/entry", "a", "A=1", "/w", "root", "SIGTERM", int32(1), int64(512), "00:50:56:00:00:01")
	f.Add("x", "", "sh", "PATH=/bin", "", "1000:1000", "", int32(0), int64(0), "")
	f.Fuzz(func(t *testing.T, name, entry, arg, env, dir, user, signal string, cpus int32, memory int64, mac string) {
		s := goodSpec()
		s.Name, s.Args, s.Env, s.Dir, s.User, s.StopSignal, s.CPUs, s.MemoryMB = name, []string{arg}, []string{env}, dir, user, signal, cpus, memory
		if entry != "" {
			s.Entrypoint = []string{entry}
		}
		s.NICs = []vic.NIC{{Network: vic.Ref{ID: "n", Name: "net"}, MAC: mac}}
		if s.complete() != nil {
			return
		}
		cfg, err := s.config()
		if err != nil {
			return
		}
		vm, err := s.vm(cfg)
		if err != nil {
			return
		}
		if vm.NumCPUs < 1 || vm.NumCPUs > 128 || vm.MemoryMB < 64 || vm.MemoryMB%4 != 0 || strings.ContainsAny(vm.Name, "/\\%") || len(vm.Name) > 80 {
			t.Fatalf("accepted %d CPUs, %d MB, name %q", vm.NumCPUs, vm.MemoryMB, vm.Name)
		}
		for _, o := range vm.ExtraConfig {
			kv := o.GetOptionValue()
			if kv.Key != tether.ConfigKey {
				continue
			}
			got, err := tether.ParseConfig([]byte(kv.Value.(string)))
			if err != nil {
				t.Fatalf("the guest refuses what was accepted: %v", err)
			}
			var same tether.Config
			b, _ := json.Marshal(cfg)
			if err := json.Unmarshal(b, &same); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(same.Process, got.Process); d != "" {
				t.Fatal(d)
			}
		}
	})
}

// FuzzStatus: a guest's claims never do more than be wrong.
func FuzzStatus(f *testing.F) {
	f.Add(`{"version":1,"boot":"b","hostKey":"ssh-ed25519 AAAA","addresses":["10.0.0.2:2377"],"state":"exited","exitCode":7}`, true)
	f.Add(`{}`, false)
	f.Fuzz(func(t *testing.T, s string, on bool) {
		info := Info{status: parseStatus(s)}
		power := types.VirtualMachinePowerStatePoweredOff
		if on {
			power = types.VirtualMachinePowerStatePoweredOn
		}
		info.judge(power)
		if on != (info.State == Running) {
			t.Fatalf("powered on %v, state %s", on, info.State)
		}
		if info.State == Created && info.Known {
			t.Fatal("an outcome without a start")
		}
	})
}
