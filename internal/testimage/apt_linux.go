package testimage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// debianRelease is the release that every image is made of.
const debianRelease = "bookworm"

// command runs a program of the machine with a stable environment and
// returns what it printed; its error holds what it complained about.
func command(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC", "SOURCE_DATE_EPOCH="+strconv.FormatInt(Epoch().Unix(), 10))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, tail(stderr.Bytes()))
	}
	return out, nil
}

// tail is the end of a program's complaints, where the cause is.
func tail(text []byte) []byte {
	text = bytes.TrimSpace(text)
	return text[max(0, len(text)-2000):]
}

// fetchDeb downloads a package from the mirror that the machine's apt is set
// up with, in the version that it offers, and returns the file's path.
func fetchDeb(ctx context.Context, work, name string) (string, error) {
	dir, err := os.MkdirTemp(work, "deb-")
	if err != nil {
		return "", err
	}
	args := []string{"-q", "-q", "download", name}
	if os.Getuid() == 0 {
		// apt would drop to its own user, who may not write here.
		args = append([]string{"-o", "APT::Sandbox::User=root"}, args...)
	}
	if _, err := command(ctx, dir, "apt-get", args...); err != nil {
		return "", fmt.Errorf("%w (has apt-get update been run?)", err)
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return "", err
	}
	if len(debs) != 1 {
		return "", fmt.Errorf("apt-get download %s: got the files %q, want one .deb", name, debs)
	}
	return debs[0], nil
}

// addDeb adds the files of a package to a layer, as the package says they
// are, whoever runs this.
func addDeb(ctx context.Context, l *Layer, deb string, keep func(*tar.Header) bool) error {
	files, err := command(ctx, "", "dpkg-deb", "--fsys-tarfile", deb)
	if err != nil {
		return err
	}
	if err := l.AddTar(bytes.NewReader(files), keep); err != nil {
		return fmt.Errorf("package %s: %w", deb, err)
	}
	return nil
}

// aptSources returns the machine's own sources of the release as lines of a
// sources.list.
func aptSources(ctx context.Context) (string, error) {
	out, err := command(ctx, "", "apt-get", "indextargets",
		"--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages")
	if err != nil {
		return "", err
	}
	var list strings.Builder
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "main" || seen[line] {
			continue
		}
		if f[1] == debianRelease || strings.HasPrefix(f[1], debianRelease+"-") {
			seen[line] = true
			fmt.Fprintf(&list, "deb %s %s main\n", f[0], f[1])
		}
	}
	if list.Len() == 0 {
		return "", errors.New("apt knows no index of " + debianRelease + " main; add a source for it and run apt-get update")
	}
	return list.String(), nil
}

// aptProxies returns the machine's proxy settings as options of apt.
func aptProxies(ctx context.Context) ([]string, error) {
	out, err := command(ctx, "", "apt-config", "dump", "--format", "%f %v%n", "Acquire::http::Proxy", "Acquire::https::Proxy")
	if err != nil {
		return nil, err
	}
	var opts []string
	for line := range strings.Lines(string(out)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && value != "" {
			opts = append(opts, fmt.Sprintf("%s %q;", name, value))
		}
	}
	return opts, nil
}
