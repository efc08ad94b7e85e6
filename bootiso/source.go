package bootiso

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
)

const modulePath = "github.com/vicsdk/vic-go"

// tetherPackages are the directories of this module's packages that the tether
// is made of; a test compares them with what the go command says.
func tetherPackages() []string {
	return []string{"cmd/tether", "vic/tether", "internal/ext4", "internal/rpci", "bootiso/modlist"}
}

// source is this module's source, and what compiles it.
type source struct {
	dir       string
	goTool    string // absolute
	toolchain string // tells one go command from another
}

// Tether returns the program cmd/tether for container VMs: the one that this
// program carries, or else compiled by the go command goTool (empty: the one in
// PATH) as [Default] says. The same sources and tool chain give the same bytes.
func Tether(ctx context.Context, goTool string) ([]byte, error) {
	bin, err := tetherOf(ctx, goTool)
	if err != nil {
		return nil, fmt.Errorf("bootiso: %w", err)
	}
	return bin, nil
}

func tetherOf(ctx context.Context, goTool string) ([]byte, error) {
	if bin := embeddedTether(); bin != nil {
		return bin, nil
	}
	src, err := findSource(ctx, goTool)
	if err != nil {
		return nil, err
	}
	return src.compile(ctx, "")
}

// compile compiles the tether, by way of a file in dir (empty: os.TempDir).
func (s *source) compile(ctx context.Context, dir string) (bin []byte, err error) {
	tmp, err := os.MkdirTemp(dir, ".vic-tether-*")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	file := filepath.Join(tmp, "tether")
	if err := s.build(ctx, file); err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}

// build compiles the tether in the module's own directory, as its main module:
// so its own go.mod and go.sum count, whatever the embedding module's have, and
// nothing is written there, which may be the module cache.
func (s *source) build(ctx context.Context, out string) error {
	cmd := exec.CommandContext(ctx, s.goTool, "build", "-tags=vic_guest", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=",
		"-o", out, "./cmd/tether")
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "PWD="+s.dir, "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1", "GOFLAGS=", "GOWORK=off", "GO111MODULE=on")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build tether in %s: %w", s.dir, errors.Join(err, errors.New(strings.TrimSpace(stderr.String()))))
	}
	return nil
}

// findSource finds the go command and this module's source. The error says
// what to do.
func findSource(ctx context.Context, goTool string) (*source, error) {
	s, err := findSourceBy(ctx, goTool)
	if err != nil {
		return nil, fmt.Errorf("no tether: this program was not built with -tags vic_release, and it cannot be compiled: %w: "+
			"install Go, or name an image that \"vic iso\" made", err)
	}
	return s, nil
}

func findSourceBy(ctx context.Context, goTool string) (*source, error) {
	if goTool == "" {
		goTool = "go"
	}
	file, err := exec.LookPath(goTool)
	if err == nil {
		file, err = filepath.Abs(file)
	}
	if err != nil {
		return nil, err
	}
	s := &source{goTool: file}
	if s.toolchain, err = toolchain(file); err != nil {
		return nil, err
	}
	s.dir, err = s.moduleDir(ctx)
	return s, err
}

// toolchain tells a go command's version without running it: by the file
// VERSION of its distribution, or else by the command's own size and time.
func toolchain(file string) (string, error) {
	file, err := filepath.EvalSymlinks(file)
	if err != nil {
		return "", err
	}
	if b, err := os.ReadFile(filepath.Join(filepath.Dir(file), "..", "VERSION")); err == nil {
		return string(b), nil
	}
	st, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %d %d", file, st.Size(), st.ModTime().UnixNano()), nil
}

// moduleDir finds the directory of this module's source.
func (s *source) moduleDir(ctx context.Context) (string, error) {
	// Where the compiler found this file, unless -trimpath hides it.
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		if dir := filepath.Dir(filepath.Dir(file)); isModule(dir) {
			return dir, nil
		}
	}
	// The module cache, by the version that was compiled in.
	var errs []error
	if path, version := compiledIn(); version != "" {
		dir := filepath.Join(moduleCache(), filepath.FromSlash(path)+"@"+version)
		if isModule(dir) {
			return dir, nil
		}
		dir, err := s.download(ctx, path, version)
		if err == nil && isModule(dir) {
			return dir, nil
		}
		errs = append(errs, err)
	} else if filepath.IsAbs(path) && isModule(path) {
		return path, nil
	}
	// What the module of the working directory takes.
	out, err := s.run(ctx, "", "list", "-m", "-f", "{{.Dir}}", modulePath)
	if dir := strings.TrimSpace(string(out)); err == nil && isModule(dir) {
		return dir, nil
	}
	return "", errors.Join(append(errs, err, fmt.Errorf("the source of module %s is not to be found", modulePath))...)
}

// isModule tells whether a directory is this module, with the tether in it; a
// vendor directory lacks that.
func isModule(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return false
	}
	line, _, _ := strings.Cut(string(b), "\n")
	_, err = os.Stat(filepath.Join(dir, "cmd", "tether", "main.go"))
	return strings.TrimSpace(line) == "module "+modulePath && err == nil
}

// compiledIn is what the program was linked with: a module and its version, or
// a directory, or nothing that is known.
func compiledIn() (path, version string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "", ""
	}
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path != modulePath {
			continue
		}
		if m.Replace != nil {
			m = m.Replace
		}
		if !strings.HasPrefix(m.Version, "v") || strings.Contains(m.Version, "+") { // "(devel)", "v1.2.3+dirty"
			return m.Path, ""
		}
		return m.Path, m.Version
	}
	return "", ""
}

// moduleCache is GOMODCACHE as far as the environment tells.
func moduleCache() string {
	if dir := os.Getenv("GOMODCACHE"); dir != "" {
		return dir
	}
	gopath := filepath.SplitList(os.Getenv("GOPATH"))
	if len(gopath) == 0 {
		home, _ := os.UserHomeDir()
		gopath = []string{filepath.Join(home, "go")}
	}
	return filepath.Join(gopath[0], "pkg", "mod")
}

// download asks the go command for a module's directory; it fetches what its
// cache lacks.
func (s *source) download(ctx context.Context, path, version string) (string, error) {
	out, err := s.run(ctx, os.TempDir(), "mod", "download", "-json", path+"@"+version)
	if err != nil {
		return "", err
	}
	var m struct{ Dir string }
	if err := json.Unmarshal(out, &m); err != nil {
		return "", fmt.Errorf("go mod download: %w", err)
	}
	return m.Dir, nil
}

func (s *source) run(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, s.goTool, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=")
	if dir != "" {
		cmd.Env = append(cmd.Env, "PWD="+dir, "GOWORK=off")
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out, err
}
