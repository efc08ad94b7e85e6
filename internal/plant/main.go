// Command plant proves that the fuzz targets can find something: it plants one
// bug at a time in a copy of the module and lets the parser's fuzz target look
// for it. It fails if one is not found in time.
//
//	go run ./internal/plant [-time 3m] [-target FuzzX]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A bug is a change of one place in a file.
type bug struct {
	parser   string
	file     string
	old, new string
	pkg      string
	target   string
}

var bugs = []bug{
	{
		parser: "layer tar: a hard link to a directory is taken",
		file:   "internal/ext4/apply.go",
		old:    "if target.dir != nil {\n\t\treturn fmt.Errorf(\"hard link target %s is a directory\"",
		new:    "if false {\n\t\treturn fmt.Errorf(\"hard link target %s is a directory\"",
		pkg:    "./internal/ext4", target: "FuzzLayers",
	},
	{
		parser: "manifest: fewer diff IDs than layers are taken",
		file:   "vic/imagestore/manifest.go",
		old:    "case len(c.RootFS.DiffIDs) != len(m.Layers):",
		new:    "case len(c.RootFS.DiffIDs) > len(m.Layers):",
		pkg:    "./vic/imagestore", target: "FuzzManifest",
	},
	{
		parser: "packed layer: what is cut off passes for what has ended",
		file:   "vic/imagestore/ahead.go",
		old:    "\t\t\ta.err = err\n",
		new:    "\t\t\tif a.err = err; err == io.ErrUnexpectedEOF {\n\t\t\t\ta.err = io.EOF\n\t\t\t}\n",
		pkg:    "./vic/imagestore", target: "FuzzDecompress",
	},
	{
		parser: "chain: a parent may lie outside of the datastore",
		file:   "internal/chain/chain.go",
		old:    `c == ".." || strings.HasPrefix(c, "../")`,
		new:    `c == ".."`,
		pkg:    "./internal/chain", target: "FuzzOpen",
	},
	{
		parser: "VMDK descriptor: the number of sectors is cut to 32 bits when written",
		file:   "internal/vmdk/descriptor.go",
		old:    `fmt.Fprintf(&b, "%s %d %s", e.Access, e.Sectors, e.Type)`,
		new:    `fmt.Fprintf(&b, "%s %d %s", e.Access, uint32(e.Sectors), e.Type)`,
		pkg:    "./internal/vmdk", target: "FuzzDescriptor",
	},
	{
		parser: "tether bytes: a log entry's length is not checked before it is cut",
		file:   "vic/tether/log.go",
		old:    "if !ok || len(rest) < len(`out\",\"time\":\"`) {",
		new:    "if !ok {",
		pkg:    "./vic/tether", target: "FuzzLogReader",
	},
	{
		parser: "tether's channels: an unknown type is not refused",
		file:   "vic/tether/serverconn.go",
		old:    "if handle == nil {",
		new:    "if handle == nil && n.ChannelType() == \"session\" {",
		pkg:    "./vic/tether", target: "FuzzServerChannels",
	},
	{
		parser: "tether's answers: any number passes for an exit code",
		file:   "vic/tether/channel.go",
		old:    "if e.Code < 0 || e.Code > 255 {",
		new:    "if e.Code < 0 {",
		pkg:    "./vic/tether", target: "FuzzClientBytes",
	},
	{
		parser: "serial line: an escape within a frame is not escaped",
		file:   "vic/tether/frame.go",
		old:    "if c == frameFlag || c == frameEscape {",
		new:    "if c == frameFlag {",
		pkg:    "./vic/tether", target: "FuzzFrames",
	},
	{
		parser: "serial line: what was never sent can be confirmed",
		file:   "vic/tether/lineconn.go",
		old:    "n <= c.sent-c.una {",
		new:    "int32(n) >= 0 {",
		pkg:    "./vic/tether", target: "FuzzLineFrames",
	},
	{
		parser: "spec: a memory size that vSphere refuses is taken",
		file:   "vic/containervm/spec.go",
		old:    "case mb%4 != 0:",
		new:    "case mb%4 == 1:",
		pkg:    "./vic/containervm", target: "FuzzSpec",
	},
}

func main() {
	limit := flag.Duration("time", 3*time.Minute, "for each bug")
	only := flag.String("target", "", "only bugs that this target is to find")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var errs []error
	for _, b := range bugs {
		if *only != "" && b.target != *only {
			continue
		}
		took, err := find(ctx, b, *limit)
		if err != nil {
			fmt.Printf("NOT FOUND  %-16s %s: %v\n", b.target, b.parser, err)
			errs = append(errs, err)
			continue
		}
		fmt.Printf("found      %-16s after %5.1f s  %s\n", b.target, took.Seconds(), b.parser)
	}
	if len(errs) > 0 {
		os.Exit(1)
	}
}

// find plants a bug in a copy and runs the target until it fails.
func find(ctx context.Context, b bug, limit time.Duration) (time.Duration, error) {
	dir, err := os.MkdirTemp("", "vic-plant-*")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := copyModule(ctx, dir); err != nil {
		return 0, err
	}
	name := filepath.Join(dir, b.file)
	text, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	if n := strings.Count(string(text), b.old); n != 1 {
		return 0, fmt.Errorf("%s holds %d times what is to be changed, not once: the table of bugs is out of date", b.file, n)
	}
	if err := os.WriteFile(name, []byte(strings.Replace(string(text), b.old, b.new, 1)), 0o644); err != nil {
		return 0, err
	}
	// The seeds alone must not find it, or the fuzzer would have proved nothing.
	if out, err := run(ctx, dir, "test", "-run", "^"+b.target+"$", b.pkg); err != nil {
		return 0, fmt.Errorf("the seeds find it already:\n%s", out)
	}
	start := time.Now()
	out, err := run(ctx, dir, "test", "-run", "^$", "-fuzz", "^"+b.target+"$", "-fuzztime", limit.String(), "-fuzzminimizetime", "1x", "-parallel", "2", b.pkg)
	if err == nil {
		return 0, errors.New("the time is over")
	}
	if !strings.Contains(out, "Failing input written to") {
		return 0, fmt.Errorf("the target did not run: %w\n%s", err, out)
	}
	return time.Since(start), nil
}

func run(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	// The fuzzer's corpus is the copy's own: nothing found earlier helps.
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=readonly")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// copyModule copies the files that git knows of or would take.
func copyModule(ctx context.Context, dir string) error {
	out, err := exec.CommandContext(ctx, "git", "ls-files", "-z", "-c", "-o", "--exclude-standard").Output()
	if err != nil {
		return err
	}
	for _, name := range strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		b, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, b, 0o644); err != nil {
			return err
		}
	}
	return nil
}
