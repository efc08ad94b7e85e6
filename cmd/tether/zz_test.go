//go:build linux && amd64

package main_test

import ("testing")

func TestBootZZ(t *testing.T) {
	g := boot(t, bootOptions{}, "sh", "-c", "yes 'a line of output as programs write them, of some length' | head -c 8388608 > /dev/shm/x; time cat /dev/shm/x > /dev/null; time cat /dev/shm/x | cat > /dev/null; time cat /dev/shm/x; sleep 1; time cat /dev/shm/x; sleep 1; cat /proc/1/stat >&2; grep . /proc/uptime >&2")
	_, _, e := g.result(testContext(t), nil)
	t.Log(e)
}
