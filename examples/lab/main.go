// Command lab starts a vSphere for tests in this process and asks it, by
// govmomi alone, what it has. Whatever speaks to vCenter can be pointed at it.
//
//	go run ./examples/lab
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"

	"github.com/vicsdk/vic-go/vic/lab"
)

func main() {
	if err := show(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func show(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "vic-example-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := lab.Start(ctx, lab.Options{Dir: dir, NoQEMU: true, Hosts: 2, Datastores: []string{"ssd", "nfs"}})
	if err != nil {
		return err
	}
	defer l.Close()

	e := l.Endpoint()
	c, err := govmomi.NewClient(ctx, e.LoginURL(), true) // the certificate is the lab's own
	if err != nil {
		return err
	}
	defer func() { _ = c.Logout(ctx) }()
	fmt.Printf("%s at %s, certificate %s\n", c.ServiceContent.About.FullName, e.URL, e.SHA256)
	all, err := find.NewFinder(c.Client).ManagedObjectListChildren(ctx, "/dc1/*")
	if err != nil {
		return err
	}
	for _, o := range all {
		fmt.Println(o.Path)
	}
	return nil
}
