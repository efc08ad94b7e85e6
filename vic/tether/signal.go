package tether

import (
	"fmt"
	"strconv"
	"strings"
)

// signals of Linux on x86-64 and arm64 (signal(7)), by number. The guest is
// always Linux; the controller may be anything, so its own numbers do not count.
var signals = [...]string{
	1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE",
	9: "SIGKILL", 10: "SIGUSR1", 11: "SIGSEGV", 12: "SIGUSR2", 13: "SIGPIPE", 14: "SIGALRM", 15: "SIGTERM",
	16: "SIGSTKFLT", 17: "SIGCHLD", 18: "SIGCONT", 19: "SIGSTOP", 20: "SIGTSTP", 21: "SIGTTIN", 22: "SIGTTOU",
	23: "SIGURG", 24: "SIGXCPU", 25: "SIGXFSZ", 26: "SIGVTALRM", 27: "SIGPROF", 28: "SIGWINCH", 29: "SIGIO",
	30: "SIGPWR", 31: "SIGSYS",
}

// Real-time signals as the C library numbers them for programs.
const (
	signalRTMin = 34
	signalRTMax = 64
)

// SignalNumber returns the Linux number of a signal given as SIGTERM, term,
// SIGRTMIN+3 or 15. The error is an ErrInvalid.
func SignalNumber(name string) (int, error) {
	s := strings.ToUpper(name)
	if n, err := strconv.Atoi(s); err == nil {
		if n >= 1 && n <= signalRTMax {
			return n, nil
		}
		return 0, fmt.Errorf("%w: signal %d is not between 1 and %d", ErrInvalid, n, signalRTMax)
	}
	if !strings.HasPrefix(s, "SIG") {
		s = "SIG" + s
	}
	for n, known := range signals {
		if known == s && n > 0 {
			return n, nil
		}
	}
	switch s {
	case "SIGIOT":
		return 6, nil
	case "SIGPOLL":
		return 29, nil
	case "SIGCLD":
		return 17, nil
	case "SIGRTMIN":
		return signalRTMin, nil
	case "SIGRTMAX":
		return signalRTMax, nil
	}
	for prefix, base := range map[string]int{"SIGRTMIN+": signalRTMin, "SIGRTMAX-": signalRTMax} {
		if rest, ok := strings.CutPrefix(s, prefix); ok {
			k, err := strconv.ParseUint(rest, 10, 8)
			if err == nil && int(k) <= signalRTMax-signalRTMin {
				if base == signalRTMin {
					return base + int(k), nil
				}
				return base - int(k), nil
			}
		}
	}
	return 0, fmt.Errorf("%w: no signal is named %.40q", ErrInvalid, name)
}

// SignalName returns the name of a Linux signal number, such as SIGTERM.
func SignalName(n int) string {
	switch {
	case n > 0 && n < len(signals) && signals[n] != "":
		return signals[n]
	case n == signalRTMin:
		return "SIGRTMIN"
	case n > signalRTMin && n <= signalRTMax:
		return "SIGRTMIN+" + strconv.Itoa(n-signalRTMin)
	}
	return "SIG" + strconv.Itoa(n)
}
