package lab_test

import (
	"context"
	"net/netip"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
)

func newVim(ctx context.Context, sc *soap.Client) (*vim25.Client, error) {
	return vim25.NewClient(ctx, sc)
}

func newSessions(c *vim25.Client) *session.Manager { return session.NewManager(c) }

func sortStrings(less func(a, b string) bool) cmp.Option { return cmpopts.SortSlices(less) }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
