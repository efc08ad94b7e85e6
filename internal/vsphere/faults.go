// Package vsphere waits on vSphere's tasks, judges its faults and moves files
// to and from its datastores. The public packages speak to vSphere through it,
// so that a fault means the same everywhere.
package vsphere

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"strings"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/task"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
)

// Judge gives err the kind that its vSphere fault means, and makes its text
// say which fault it was. Errors that carry no fault keep their text.
func Judge(err error) error {
	if err == nil {
		return nil
	}
	if f := vimFault(err); f != nil {
		name := reflect.Indirect(reflect.ValueOf(f)).Type().Name()
		text := err.Error()
		if !strings.Contains(text, name) {
			err = &named{name, err}
		}
		if k := kindOf(f); k != nil {
			return fault.As(k, err)
		}
		return err
	}
	var nf *find.NotFoundError
	var dnf *find.DefaultNotFoundError
	var mf *find.MultipleFoundError
	var dmf *find.DefaultMultipleFoundError
	var ne net.Error
	switch {
	case errors.As(err, &nf), errors.As(err, &dnf):
		return fault.As(fault.ErrNotFound, err)
	case errors.As(err, &mf), errors.As(err, &dmf):
		return fault.As(fault.ErrInvalid, err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &ne):
		return fault.As(fault.ErrUnavailable, err)
	}
	return err
}

type named struct {
	name string
	err  error
}

func (n *named) Error() string { return n.name + ": " + n.err.Error() }
func (n *named) Unwrap() error { return n.err }

// vimFault finds the vSphere fault in err's whole tree, joined errors
// included.
func vimFault(err error) any {
	for err != nil {
		if soap.IsSoapFault(err) {
			if f := soap.ToSoapFault(err).VimFault(); f != nil {
				return f
			}
		}
		if soap.IsVimFault(err) {
			return soap.ToVimFault(err)
		}
		switch u := err.(type) { //nolint:errorlint // this walks the tree itself
		case task.Error:
			return u.Fault()
		case *task.Error:
			return u.Fault()
		case interface{ Unwrap() error }:
			err = u.Unwrap()
		case interface{ Unwrap() []error }:
			for _, e := range u.Unwrap() {
				if f := vimFault(e); f != nil {
					return f
				}
			}
			return nil
		default:
			return nil
		}
	}
	return nil
}

// judgeFault makes an error of a fault that came as data.
func judgeFault(f types.BaseMethodFault, text string) error {
	return Judge(fmt.Errorf("%s: %w", text, soap.WrapVimFault(f)))
}

// isFault tells whether err carries a vSphere fault of type T.
func isFault[T any](err error) bool {
	f := vimFault(err)
	if f == nil {
		return false
	}
	_, ok := reflect.Indirect(reflect.ValueOf(f)).Interface().(T)
	return ok
}

func kindOf(f any) error {
	switch reflect.Indirect(reflect.ValueOf(f)).Interface().(type) {
	case types.ManagedObjectNotFound, types.NotFound, types.FileNotFound:
		return fault.ErrNotFound
	case types.DuplicateName, types.FileAlreadyExists, types.AlreadyExists, types.ConcurrentAccess, types.TaskInProgress:
		return fault.ErrConflict
	case types.FileLocked, types.ResourceInUse:
		return fault.ErrInUse
	case types.InvalidPowerState, types.InvalidState, types.ToolsUnavailable:
		return fault.ErrState
	case types.NotSupported, types.MethodNotFound, types.NotImplemented:
		return fault.ErrUnsupported
	case types.NoPermission, types.NotAuthenticated, types.InvalidLogin, types.RestrictedByAdministrator:
		return fault.ErrDenied
	case types.NoDiskSpace:
		return fault.ErrNoSpace
	case types.InvalidArgument, types.InvalidName, types.InvalidDatastorePath, types.InvalidDeviceSpec, types.InvalidDeviceOperation:
		return fault.ErrInvalid
	case types.HostNotConnected, types.HostCommunication, types.HostNotReachable:
		return fault.ErrUnavailable
	}
	return nil
}

// judgeHTTP gives the kind of a datastore's HTTP answer.
func judgeHTTP(status int, text string) error {
	switch status {
	case http.StatusNotFound:
		return fault.Of(fault.ErrNotFound, "%s", text)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fault.Of(fault.ErrDenied, "%s", text)
	case http.StatusInsufficientStorage:
		return fault.Of(fault.ErrNoSpace, "%s", text)
	case http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout:
		return fault.Of(fault.ErrUnavailable, "%s", text)
	}
	return errors.New(text)
}
