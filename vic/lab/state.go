package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A shape is what a QEMU that loads a saved state must have in common with the
// one that saved it, beside the VM's configuration.
type shape struct {
	KVM       bool `json:"kvm,omitempty"`
	RootPorts int  `json:"rootPorts,omitempty"`
}

// stateTime bounds how long QEMU may take to write or read the state of a VM.
const stateTime = 10 * time.Minute

// disksOut stops a VM and takes the images out of its disk devices, so that the
// files are closed and whole, and nothing stands in the way of saving the VM's
// state: QEMU does not migrate what has VMDKs open. The devices stay, with
// nothing behind them. They come back, and the VM goes on, by disksIn.
func (q *qemu) disksOut(ctx context.Context, hw *hardware) error {
	if _, err := q.qmp.do(ctx, "stop", nil); err != nil {
		return err
	}
	have, err := q.disks(ctx)
	if err != nil {
		return err
	}
	for _, u := range hw.disks {
		null := fmt.Sprintf("z%d", u.key)
		if have[u.key].node == null {
			continue
		}
		if _, err := q.qmp.do(ctx, "blockdev-add", fields{"driver": "null-co", "node-name": null, "size": u.chain[0].desc.Bytes()}); err != nil {
			return err
		}
		if err := q.setDrive(ctx, u.key, null); err != nil {
			return err
		}
		if _, err := q.qmp.do(ctx, "blockdev-del", fields{"node-name": have[u.key].node}); err != nil {
			return err
		}
	}
	return nil
}

// disksIn gives a stopped VM's devices the disks that hw has now, where they have
// none, and lets the VM go on.
func (q *qemu) disksIn(ctx context.Context, hw *hardware) error {
	have, err := q.disks(ctx)
	if err != nil {
		return err
	}
	for _, u := range hw.disks {
		null := fmt.Sprintf("z%d", u.key)
		if have[u.key].node != null {
			continue
		}
		n := u.node()
		if _, err := q.qmp.do(ctx, "blockdev-add", n); err != nil {
			return err
		}
		if err := q.setDrive(ctx, u.key, fmt.Sprint(n["node-name"])); err != nil {
			return err
		}
		if _, err := q.qmp.do(ctx, "blockdev-del", fields{"node-name": null}); err != nil {
			return err
		}
	}
	_, err = q.qmp.do(ctx, "cont", nil)
	return err
}

func (q *qemu) setDrive(ctx context.Context, key int32, node string) error {
	_, err := q.qmp.do(ctx, "qom-set", fields{"path": fmt.Sprintf("/machine/peripheral/d%d", key), "property": "drive", "value": node})
	return err
}

// save writes the state of a stopped VM whose disks are out: memory and devices.
func (q *qemu) save(ctx context.Context, f *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, stateTime)
	defer cancel()
	if _, err := q.qmp.do(ctx, "migrate-set-parameters", fields{"max-bandwidth": int64(1) << 40}); err != nil {
		return err
	}
	if _, err := q.qmp.doWith(ctx, "getfd", fields{"fdname": "state"}, f); err != nil {
		return err
	}
	if _, err := q.qmp.do(ctx, "migrate", fields{"uri": "fd:state"}); err != nil {
		return err
	}
	return poll(ctx, func() (bool, error) {
		b, err := q.qmp.do(ctx, "query-migrate", nil)
		if err != nil {
			return false, err
		}
		var st struct {
			Status string
			Error  string `json:"error-desc"`
		}
		if err := json.Unmarshal(b, &st); err != nil {
			return false, err
		}
		if st.Status == "failed" || st.Status == "cancelled" {
			return false, fmt.Errorf("QEMU cannot save the VM's state: %s", st.Error)
		}
		return st.Status == "completed", nil
	})
}

// loaded waits until a QEMU that was started with a state has it, and lets the VM
// go on.
func (q *qemu) loaded(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stateTime)
	defer cancel()
	err := poll(ctx, func() (bool, error) {
		st, err := q.status(ctx)
		return st != "inmigrate", err
	})
	if err == nil {
		_, err = q.qmp.do(ctx, "cont", nil)
	}
	return err
}

// status is QEMU's own word for what the VM is doing.
func (q *qemu) status(ctx context.Context) (string, error) {
	b, err := q.qmp.do(ctx, "query-status", nil)
	if err != nil {
		return "", err
	}
	var st struct{ Status string }
	err = json.Unmarshal(b, &st)
	return st.Status, err
}

// poll calls f until it says so, fails or ctx ends.
func poll(ctx context.Context, f func() (bool, error)) error {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		done, err := f()
		if done || err != nil {
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// rights is the message that carries an open file.
func rights(f *os.File) []byte {
	if f == nil {
		return nil
	}
	return unix.UnixRights(int(f.Fd()))
}
