package lab

import (
	"net/netip"

	"github.com/vmware/govmomi/simulator/vpx"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func simulatorRoot() mo.Folder { return vpx.RootFolder }

func vpxContent() types.ServiceContent { return vpx.ServiceContent }
