// Command vic makes virtual container hosts on vSphere and runs images in them,
// each as a VM of its own.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := report(os.Stderr, app().RunContext(ctx, os.Args))
	stop()
	os.Exit(code)
}
