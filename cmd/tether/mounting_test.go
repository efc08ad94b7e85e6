//go:build linux && amd64

package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadMounts(t *testing.T) {
	const table = `21 20 8:0 /rootfs / rw,noatime - ext4 /dev/sda rw
35 21 8:16 /rootfs/a\040b /mnt/with\040blank\134 rw,noatime master:1 - ext4 /dev/sdb rw
36 21 0:25 / /short\04 rw - tmpfs tmpfs rw
`
	got, err := readMounts(strings.NewReader(table))
	if err != nil {
		t.Fatal(err)
	}
	want := []mounted{{21, "/"}, {35, `/mnt/with blank\`}, {36, `/short\04`}}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(mounted{})); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"1 2 3\n", "x 20 8:0 / / rw\n"} {
		if _, err := readMounts(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
