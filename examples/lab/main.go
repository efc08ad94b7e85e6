// Command lab runs an image as a VM of its own with nothing but Go and QEMU
// installed: no vSphere, no registry, no boot image made before. It starts a
// lab in a temporary directory, makes an image in memory, makes a VCH whose
// containers boot the default boot image, runs the image and removes it all.
//
//	go run ./examples/lab
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/vicsdk/vic-go/bootiso"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/lab"
	"github.com/vicsdk/vic-go/vic/tether"
	"github.com/vicsdk/vic-go/vic/vch"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "vic-example-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	// The boot image: our own kernel, and the tether compiled from this
	// module's source. It is kept in the user's cache directory.
	iso, err := bootiso.Default(ctx, nil)
	if err != nil {
		return err
	}

	// Whatever speaks to vCenter can be pointed at the lab: see l.Endpoint().
	l, err := lab.Start(ctx, lab.Options{Dir: dir})
	if err != nil {
		return err
	}
	defer l.Close()
	cfg, err := l.Config()
	if err != nil {
		return err
	}
	c, err := vic.Connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer c.Close(ctx)

	_, err = engine.CreateVCH(ctx, c, engine.VCHSpec{
		Spec:    vch.Spec{Name: "demo", ImageStore: "datastore1", MemoryMB: 128},
		Network: "VM Network",
	}, vch.Options{BootISO: iso})
	if err != nil {
		return err
	}
	e, err := engine.Open(ctx, c, "demo", nil)
	if err != nil {
		return err
	}

	// An image comes from anything that can resolve and fetch: here an
	// in-memory store of oras-go, elsewhere a registry or a directory.
	const name = "example.com/hello:v1"
	store, err := helloImage(ctx, dir, "v1")
	if err != nil {
		return err
	}
	if _, err := e.Images().Pull(ctx, store, name, nil); err != nil {
		return err
	}

	vm, exit, err := e.Run(ctx, engine.RunSpec{
		Image:     name,
		Container: containervm.Spec{Name: "hello", Args: []string{"/hello", "world"}},
		Streams:   tether.Streams{Stdout: os.Stdout, Stderr: os.Stderr},
	})
	if err != nil {
		return err
	}
	fmt.Println("exit code", exit.Code) // a non-zero exit is data, not an error
	if err := vm.Delete(ctx, false); err != nil {
		return err
	}
	return engine.DeleteVCH(ctx, c, "demo", engine.DeleteOptions{Images: true})
}
