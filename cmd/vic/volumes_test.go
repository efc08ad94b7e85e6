package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// testVolumes takes a volume through its life.
func testVolumes(t *testing.T, c *cli) {
	c.want(t, 0, "data", "volume", "create", "-o", "size=256m", "--label", "use=db", "data")
	c.want(t, 0, "data", "volume", "create", "data")
	c.want(t, 4, "size", "volume", "create", "-o", "Capacity=1g", "data")
	c.want(t, 2, "not known", "volume", "create", "-o", "flavour=sweet", "other")
	out := c.want(t, 0, "", "run", "--rm", "-v", "data:/data", "-v", "/scratch", "--mount", "type=tmpfs,dst=/t,tmpfs-size=1m",
		"--tmpfs", "/run:size=2m", "--shm-size", "3m", "--read-only", c.image,
		"sh", "-c", `echo kept > /data/f; echo x > /scratch/f; touch /x 2>/dev/null && echo root; for d in /t /run /dev/shm; do df -k $d | awk 'NR==2{print $2}'; done`)
	if out != "1024\n2048\n3072\n" {
		t.Errorf("got %q", out)
	}
	// The anonymous one went with its container.
	if out := c.want(t, 0, "", "volume", "ls", "-q"); out != "data\n" {
		t.Errorf("volumes: %q", out)
	}
	c.want(t, 0, "", "volume", "grow", "data", "512m")
	c.want(t, 0, "512 MiB", "volume", "ls", "--filter", "label=use=db")
	c.want(t, 0, "", "run", "-d", "--name", "holder", "-v", "data:/data:ro", "-v", "/scratch", c.image, "sleep", "1000")
	c.want(t, 0, `"name": "holder"`, "volume", "inspect", "data")
	c.want(t, 4, "holder", "volume", "rm", "data")
	c.want(t, 0, "", "volume", "grow", "data", "640m")
	c.want(t, 0, "", "volume", "attach", "holder", "later:/later")
	c.want(t, 4, "/data", "volume", "attach", "holder", "later:/data")
	c.want(t, 2, "no host", "volume", "attach", "holder", "/etc:/x")
	out = c.want(t, 0, "", "exec", "holder", "sh", "-c", "echo x > /later/f; cat /data/f; df -k /data | awk 'NR==2{print int($2/1024)}'")
	if out != "kept\n613\n" {
		t.Errorf("after growing and attaching: %q", out)
	}
	c.want(t, 0, "", "volume", "detach", "holder", "/later")
	c.want(t, 3, "/later", "volume", "detach", "holder", "/later")
	c.want(t, 0, "later", "volume", "rm", "later")
	c.want(t, 125, "holder", "run", "--rm", "-v", "data:/data", c.image, "true")
	c.want(t, 0, "", "rm", "-f", "holder")
	out = c.want(t, 0, "", "volume", "ls", "-q", "--filter", "dangling=true")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 2 {
		t.Errorf("volumes: %q", out)
	}
	c.want(t, 0, "deleted: ", "volume", "prune")
	if out := c.want(t, 0, "", "run", "--rm", "-v", "data:/data", c.image, "cat", "/data/f"); out != "kept\n" {
		t.Errorf("got %q", out)
	}
	c.want(t, 2, "no host", "run", "-v", "/etc:/x", c.image, "true")
	c.want(t, 3, "fast", "volume", "create", "-o", "VolumeStore=fast", "other")
	c.want(t, 0, "data", "volume", "rm", "data")
	c.want(t, 3, "no volume", "volume", "inspect", "data")
	c.want(t, 2, "LABEL", "create", "--volume-store", "datastore1", "second")
	c.want(t, 0, "", "create", "--volume-store", "datastore1/fast/ones:fast", "second")
	c.want(t, 2, "none has the label", "--vch", "second", "volume", "create", "x")
	c.want(t, 0, "x", "--vch", "second", "volume", "create", "-o", "VolumeStore=fast", "x")
	c.want(t, 0, "fast", "--vch", "second", "volume", "ls")
	testAuthority(t, c)
	c.want(t, 0, "", "delete", "--volumes", "second")
}

// testAuthority names the authority that the VCH "second" has once more; others than
// the lab's are refused to the lab's client.
func testAuthority(t *testing.T, c *cli) {
	key := c.want(t, 0, "ssh-ed25519 ", "--vch", "second", "authority", "ls")
	own := filepath.Join(t.TempDir(), "own.pub")
	if err := os.WriteFile(own, []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	c.want(t, 0, "", "--vch", "second", "authority", "set", own)
	c.want(t, 2, "twice", "--vch", "second", "authority", "set", own, own)
	c.want(t, 1, "none.pem", "--vch", "second", "authority", "set", filepath.Join(t.TempDir(), "none.pem"))
	if again := c.want(t, 0, "", "--vch", "second", "authority", "ls"); again != key {
		t.Errorf("got %q, not %q", again, key)
	}
}
