// Command run runs an image as a VM of its own, piece by piece: connect, make
// a VCH, pull, create a container VM, attach, start, wait, delete. It uses a lab
// of its own; with a vCenter, only the vic.Config differs.
//
//	go run ./examples/run [-plain-http] docker.io/library/alpine:3.22 uname -a
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"

	"github.com/vicsdk/vic-go/bootiso"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/lab"
	"github.com/vicsdk/vic-go/vic/network"
	"github.com/vicsdk/vic-go/vic/registry"
	"github.com/vicsdk/vic-go/vic/tether"
	"github.com/vicsdk/vic-go/vic/vch"
)

func main() {
	plain := flag.Bool("plain-http", false, "speak HTTP without TLS to the registry")
	flag.Parse()
	if flag.NArg() < 1 {
		log.Fatal("usage: run [options] IMAGE [COMMAND [ARG…]]")
	}
	code, err := run(context.Background(), *plain, flag.Arg(0), flag.Args()[1:])
	if err != nil {
		log.Fatal(err)
	}
	os.Exit(code)
}

func run(ctx context.Context, plain bool, image string, args []string) (code int, err error) {
	dir, err := os.MkdirTemp("", "vic-example-*")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	l, err := lab.Start(ctx, lab.Options{Dir: dir})
	if err != nil {
		return 0, err
	}
	defer l.Close()
	cfg, err := l.Config()
	if err != nil {
		return 0, err
	}

	c, err := vic.Connect(ctx, cfg)
	if err != nil {
		return 0, err
	}
	defer c.Close(ctx)
	pg, err := network.Open(ctx, c, "VM Network")
	if err != nil {
		return 0, err
	}
	nic, err := pg.NIC(network.NICOptions{})
	if err != nil {
		return 0, err
	}
	iso, err := bootiso.Default(ctx, nil)
	if err != nil {
		return 0, err
	}
	host, err := vch.Create(ctx, c, vch.Spec{Name: "demo", ImageStore: "datastore1", NIC: nic}, vch.Options{BootISO: iso})
	if err != nil {
		return 0, err
	}

	name, err := registry.ParseName(image)
	if err != nil {
		return 0, err
	}
	source, err := registry.Open(name, &registry.Options{PlainHTTP: plain})
	if err != nil {
		return 0, err
	}
	images, err := imagestore.Open(ctx, c, host.Images(), nil)
	if err != nil {
		return 0, err
	}
	img, err := images.Pull(ctx, source, name.String(), nil)
	if err != nil {
		return 0, err
	}

	spec := containervm.Spec{Owner: host.Owner(), Name: "hello", Root: img.Root(), Image: img.Config(), ImageName: img.Name()}
	if len(args) > 0 {
		spec.Args = args
	}
	vm, err := containervm.Create(ctx, c, spec)
	if err != nil {
		return 0, err
	}
	att, err := vm.Attach(ctx, tether.Streams{Stdout: os.Stdout, Stderr: os.Stderr}) // before Start: no output is lost
	if err != nil {
		return 0, err
	}
	if err := vm.Start(ctx); err != nil {
		return 0, err
	}
	exit, err := att.Wait() // a non-zero code is data; an error means that it is not known
	if err != nil {
		return 0, err
	}
	if exit.Error != "" {
		fmt.Fprintln(os.Stderr, exit.Error)
	}
	if _, err := vm.Wait(ctx); err != nil { // the guest powers off by itself
		return 0, err
	}
	return exit.Code, vm.Delete(ctx, false)
}
