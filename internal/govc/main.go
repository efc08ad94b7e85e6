// Command govc is VMware's command line for vSphere, built from govmomi's own
// cli package. The tests use it as an independent client.
package main

import (
	"os"

	"github.com/vmware/govmomi/cli"
)

func main() {
	os.Exit(cli.Run(os.Args[1:]))
}
