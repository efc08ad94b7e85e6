package lab_test

import (
	"bytes"
	"fmt"
	"os"
	"runtime/pprof"
	"strings"
	"testing"
	"time"
)

// TestMain fails when the tests leave a goroutine of the lab behind.
func TestMain(m *testing.M) {
	serveInstead()
	code := m.Run()
	if code == 0 {
		if left := leaked(10 * time.Second); left != "" {
			fmt.Fprintln(os.Stderr, "goroutines left behind:\n"+left)
			code = 1
		}
	}
	os.Exit(code)
}

// leaked waits for goroutines that are about to end and returns those that stay.
func leaked(patience time.Duration) string {
	deadline := time.Now().Add(patience)
	for {
		var b bytes.Buffer
		_ = pprof.Lookup("goroutine").WriteTo(&b, 2)
		var left []string
		for _, g := range strings.Split(b.String(), "\n\n") {
			for _, ours := range []string{"vic-go/vic/lab.", "govmomi/simulator", "gvisor", "tcpproxy"} {
				if strings.Contains(g, ours) && !strings.Contains(g, "lab_test.leaked") {
					left = append(left, g)
					break
				}
			}
		}
		if len(left) == 0 {
			return ""
		}
		if time.Now().After(deadline) {
			return strings.Join(left, "\n\n")
		}
		time.Sleep(20 * time.Millisecond)
	}
}
