package treecmp

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
)

// BuildTreelist compiles cmd/treelist to the file out, as a static
// linux/amd64 program that runs in any guest. It needs the go command and
// must run within the module, as tests do.
func BuildTreelist(ctx context.Context, out string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out,
		"github.com/vicsdk/vic-go/internal/treecmp/cmd/treelist")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build treelist: %w: %s", err, bytes.TrimSpace(text))
	}
	return nil
}
