package engine_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-git/go-billy/v5/osfs"
	nfs "github.com/willscott/go-nfs"
	nfshelper "github.com/willscott/go-nfs/helpers"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic/engine"
)

// nfsHost is where guests of the lab find this machine's loopback.
const nfsHost = "192.168.127.254"

// listenNFS serves a directory by version 3 until the listener is closed.
func listenNFS(t *testing.T, dir string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		_ = nfs.Serve(l, nfshelper.NewCachingHandler(nfshelper.NewNullAuthHandler(osfs.New(dir)), 1024))
	}()
	return l
}

// A container mounts a directory of an NFS server of version 3, which a program
// other than ours serves on this machine's loopback, and its kernel is the client.
func TestNFS(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "there"), []byte("from the server\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	l := listenNFS(t, dir)
	port := l.Addr().(*net.TCPAddr).Port

	e := testlab.Start(t, testlab.Options{})
	spec := engine.RunSpec{Image: e.Busybox(t)}
	flag := func(target, more string) string {
		return fmt.Sprintf("type=nfs,src=%s:/,dst=%s,nfs-port=%d,nfs-mount-port=%d%s", nfsHost, target, port, port, more)
	}
	// The version is found; another target shows it read-only.
	s := parse(t, spec, nil, []string{flag("/data", ""), flag("/ro", ",readonly"), flag("/sub", ",nfs-version=3,volume-subpath=sub")}, nil)
	run(t, e, s, `
cat /data/there /ro/there
touch /ro/x 2>/dev/null && echo wrote to ro
echo from the container > /data/made && mv /data/made /data/kept
head -c 5m /dev/zero > /data/big
echo below > /sub/file
grep -c ' nfs .*vers=3' /proc/mounts
`).want(t, "NFS", "from the server\nfrom the server\n3\n")
	for name, want := range map[string]string{"kept": "from the container\n", "sub/file": "below\n", "big": strings.Repeat("\x00", 5<<20)} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s on the server: %d bytes, %v", name, len(got), err)
		}
	}
	_ = l.Close()
	s = parse(t, spec, nil, []string{flag("/data", ",nfs-version=3")}, nil)
	if r := run(t, e, s, "true"); r.exit.Code != 125 || !strings.Contains(r.exit.Error, "NFS server") {
		t.Errorf("no server: %+v", r)
	}
}
