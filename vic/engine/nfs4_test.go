package engine_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic/engine"
)

// ganesha starts Debian's NFS-Ganesha on a loopback port, with one filesystem that
// it keeps in memory, /export, and version 4 only. VIC_TEST_GANESHA names the
// directory that its packages are unpacked in; without it they must be installed.
func ganesha(t *testing.T) (port int) {
	t.Helper()
	root := os.Getenv("VIC_TEST_GANESHA")
	bin := filepath.Join("/", root, "usr/bin/ganesha.nfsd")
	if _, err := os.Stat(bin); err != nil {
		t.Skipf("no server of NFS version 4 (Debian packages nfs-ganesha and nfs-ganesha-mem): %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port = l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	dir := t.TempDir()
	conf := filepath.Join(dir, "ganesha.conf")
	libs := filepath.Join("/", root, "usr/lib/x86_64-linux-gnu")
	text := fmt.Sprintf(`
NFS_CORE_PARAM { Protocols = 4; NFS_Port = %d; Bind_addr = 127.0.0.1; Enable_NLM = false; Enable_RQUOTA = false; Plugins_Dir = %q; }
NFSv4 { RecoveryRoot = %q; Grace_Period = 1; Lease_Lifetime = 20; Graceless = true; Only_Numeric_Owners = true; UseGetpwnam = true; DomainName = "localdomain"; }
NFS_KRB5 { Active_krb5 = false; }
MEM { Inode_Size = 2097152; }
EXPORT { Export_Id = 1; Path = /export; Pseudo = /export; Access_Type = RW; Squash = No_Root_Squash; SecType = sys; Protocols = 4; Transports = TCP; FSAL { Name = MEM; } }
`, port, filepath.Join(libs, "ganesha"), dir)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "-F", "-f", conf, "-L", filepath.Join(dir, "log"), "-p", filepath.Join(dir, "pid"))
	cmd.Env = append(os.Environ(), strings.Join([]string{"LD_LIBRARY_PATH=" + libs, filepath.Join(libs, "ganesha"), filepath.Join("/", root, "usr/lib/ganesha")}, ":"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = c.Close()
			return port
		}
		if time.Now().After(end) {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Fatalf("the server does not listen: %v\n%s", err, log)
		}
	}
}

// Version 4 against a server that others use: what one container writes the next
// reads.
func TestNFS4(t *testing.T) {
	port := ganesha(t)
	e := testlab.Start(t, testlab.Options{})
	spec := engine.RunSpec{Image: e.Busybox(t)}
	flag := func(more string) engine.RunSpec {
		return parse(t, spec, nil, []string{fmt.Sprintf("type=nfs,src=%s:/export,dst=/data,nfs-port=%d%s", nfsHost, port, more)}, nil)
	}
	run(t, e, flag(",nfs-version=4.1"), "echo first > /data/a; head -c 1m /dev/zero > /data/big; grep -c ' /data nfs4 .*vers=4.1' /proc/mounts").want(t, "4.1", "1\n")
	// The version is found: 4.2, or what the server has.
	run(t, e, flag(""), "cat /data/a; grep -c ' /data nfs4 .*vers=4' /proc/mounts; echo second > /data/a").want(t, "any version", "first\n1\n")
	run(t, e, flag(",readonly,nfs-version=4"), "cat /data/a; wc -c < /data/big; touch /data/x 2>/dev/null || echo read-only").want(t, "4.0", "second\n1048576\nread-only\n")
}
