// Command pull brings an image into an image store and shows the virtual disks
// that it became. It uses a lab without VMs.
//
//	go run ./examples/pull [-plain-http] docker.io/library/alpine:3.22
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"

	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/lab"
	"github.com/vicsdk/vic-go/vic/registry"
)

func main() {
	plain := flag.Bool("plain-http", false, "speak HTTP without TLS to the registry")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("usage: pull [-plain-http] IMAGE")
	}
	if err := pull(context.Background(), *plain, flag.Arg(0)); err != nil {
		log.Fatal(err)
	}
}

func pull(ctx context.Context, plain bool, image string) error {
	dir, err := os.MkdirTemp("", "vic-example-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := lab.Start(ctx, lab.Options{Dir: dir, NoQEMU: true})
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
	store, err := imagestore.OpenNamed(ctx, c, "datastore1/vic/images", nil)
	if err != nil {
		return err
	}
	name, err := registry.ParseName(image)
	if err != nil {
		return err
	}
	source, err := registry.Open(name, &registry.Options{PlainHTTP: plain})
	if err != nil {
		return err
	}
	img, err := store.Pull(ctx, source, name.String(), &imagestore.PullOptions{Progress: func(e vic.Event) {
		fmt.Printf("%.19s %-8s %d of %d bytes\n", e.ID, e.Phase, e.Done, e.Total)
	}})
	if err != nil {
		return err
	}
	fmt.Printf("%s\n  manifest %s\n  top disk %s, %d bytes\n", img.Name(), img.Digest(), img.Root().Path, img.Root().Bytes)
	return nil
}
