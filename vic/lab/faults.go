package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"syscall"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// say gives a fault its words.
func say[F types.BaseMethodFault](f F, format string, args ...any) F {
	msg := fmt.Sprintf(format, args...)
	f.GetMethodFault().FaultMessage = []types.LocalizableMessage{{Key: "lab", Message: msg}}
	return f
}

// words returns what say said, else the name of the fault's type.
func words(f types.BaseMethodFault) string {
	if m := f.GetMethodFault(); m != nil {
		var out []string
		for _, x := range m.FaultMessage {
			if x.Message != "" {
				out = append(out, x.Message)
			}
		}
		if len(out) != 0 {
			return strings.Join(out, ": ")
		}
	}
	return reflect.TypeOf(f).Elem().Name()
}

// soapFault makes the answer of a method that fails.
func soapFault(f types.BaseMethodFault) *soap.Fault { return simulator.Fault(words(f), f) }

func notSupported(format string, args ...any) types.BaseMethodFault {
	return say(&types.NotSupported{}, "the lab does not support "+format, args...)
}

func invalidArgument(property, format string, args ...any) types.BaseMethodFault {
	return say(&types.InvalidArgument{InvalidProperty: property}, property+": "+format, args...)
}

func vmConfigFault(format string, args ...any) types.BaseMethodFault {
	msg := fmt.Sprintf(format, args...)
	return say(&types.GenericVmConfigFault{Reason: msg}, "%s", msg)
}

func powerStateFault(requested, existing types.VirtualMachinePowerState) types.BaseMethodFault {
	return say(&types.InvalidPowerState{RequestedState: requested, ExistingState: existing},
		"the operation needs the VM %s; it is %s", requested, existing)
}

func deviceFault(index int, format string, args ...any) types.BaseMethodFault {
	return say(&types.InvalidDeviceSpec{
		InvalidVmConfig: types.InvalidVmConfig{Property: fmt.Sprintf("configSpec.deviceChange[%d]", index)},
		DeviceIndex:     int32(index),
	}, "deviceChange[%d]: "+format, append([]any{index}, args...)...)
}

func fileNotFound(p string) types.BaseMethodFault {
	return say(&types.FileNotFound{FileFault: types.FileFault{File: p}}, "file %s was not found", p)
}

func fileExists(p string) types.BaseMethodFault {
	return say(&types.FileAlreadyExists{FileFault: types.FileFault{File: p}}, "file %s already exists", p)
}

func fileLocked(p, by string) types.BaseMethodFault {
	return say(&types.FileLocked{FileFault: types.FileFault{File: p}}, "file %s is locked by the running VM %s", p, by)
}

// fileFault translates an error of the operating system about the datastore
// path p.
func fileFault(p string, err error) types.BaseMethodFault {
	ff := types.FileFault{File: p}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fileNotFound(p)
	case errors.Is(err, fs.ErrExist):
		return fileExists(p)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return say(&types.NoDiskSpace{FileFault: ff}, "no space left for %s", p)
	case errors.Is(err, syscall.ENOTEMPTY):
		return say(&types.DirectoryNotEmpty{FileFault: ff}, "directory %s is not empty", p)
	case errors.Is(err, syscall.ENOTDIR):
		return say(&types.NotADirectory{FileFault: ff}, "%s goes through a file as if it were a directory", p)
	case errors.Is(err, syscall.EISDIR):
		return say(&types.NotAFile{FileFault: ff}, "%s is a directory", p)
	}
	// The operating system's error may carry a path of this machine, which is
	// none of the client's business; its number is enough.
	var no syscall.Errno
	reason := "path not allowed"
	if errors.As(err, &no) {
		reason = no.Error()
	}
	return say(&types.CannotAccessFile{FileFault: ff}, "cannot access %s: %s", p, reason)
}
