package lab_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/vic/lab"
)

// echo sends a line to a guest's echo server and returns what comes back.
func echo(t testing.TB, l *lab.Lab, addr, line string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	k, err := l.DialGuest(ctx, "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return talk(t, k, line)
}

func talk(t testing.TB, k net.Conn, line string) string {
	t.Helper()
	defer k.Close()
	_ = k.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(k, line); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(line))
	if _, err := io.ReadFull(k, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// echoServer is a server on this machine's loopback.
func echoServer(t testing.TB) (port int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			k, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer k.Close()
				_, _ = io.Copy(k, k)
			}()
		}
	}()
	return ln.Addr().(*net.TCPAddr).Port
}
