// Command hello is the program of the container that examples/lab runs.
package main

import (
	"fmt"
	"os"
	"strings"
)

func main() {
	version, err := os.ReadFile("/proc/version")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("hello, %s! I am process %d on %s\n", strings.Join(os.Args[1:], " "), os.Getpid(),
		strings.Join(strings.Fields(string(version))[:3], " "))
	os.Exit(7)
}
