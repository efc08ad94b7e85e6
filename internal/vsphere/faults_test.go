package vsphere_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vmware/govmomi/task"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
)

func TestJudge(t *testing.T) {
	failed := func(f types.BaseMethodFault) error {
		return task.Error{LocalizedMethodFault: &types.LocalizedMethodFault{Fault: f, LocalizedMessage: "words"}}
	}
	for _, c := range []struct {
		err  error
		kind error
		text string
	}{
		{failed(&types.DuplicateName{}), fault.ErrConflict, "DuplicateName"},
		{failed(&types.FileNotFound{}), fault.ErrNotFound, "FileNotFound"},
		{failed(&types.NoDiskSpace{}), fault.ErrNoSpace, "NoDiskSpace"},
		{failed(&types.InvalidPowerState{}), fault.ErrState, "InvalidPowerState"},
		{failed(&types.FileLocked{}), fault.ErrInUse, "FileLocked"},
		{failed(&types.NotSupported{}), fault.ErrUnsupported, "NotSupported"},
		{failed(&types.NoPermission{}), fault.ErrDenied, "NoPermission"},
		{failed(&types.TaskInProgress{}), fault.ErrConflict, "TaskInProgress"},
		{fmt.Errorf("while at it: %w", soap.WrapVimFault(&types.ManagedObjectNotFound{})), fault.ErrNotFound, "while at it"},
		{errors.Join(errors.New("first"), failed(&types.FileAlreadyExists{})), fault.ErrConflict, "first"},
		{failed(&types.SystemError{}), nil, "SystemError"},
		{context.Canceled, nil, "canceled"},
	} {
		got := vsphere.Judge(c.err)
		if !strings.Contains(got.Error(), c.text) || c.kind != nil && !errors.Is(got, c.kind) || !errors.Is(got, c.err) && c.kind == nil {
			t.Errorf("%v: got %v, want kind %v and %q", c.err, got, c.kind, c.text)
		}
	}
	if vsphere.Judge(nil) != nil {
		t.Error("nil is an error")
	}
}

func TestSplitPath(t *testing.T) {
	if ds, p, err := vsphere.SplitPath("[ds 1] a/b.vmdk"); err != nil || ds != "ds 1" || p != "a/b.vmdk" {
		t.Errorf("%q %q %v", ds, p, err)
	}
	for _, s := range []string{"", "a/b", "[]", "[ds"} {
		if _, _, err := vsphere.SplitPath(s); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
}
