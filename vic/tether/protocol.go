package tether

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// ControllerPrincipal is the principal of a certificate that opens every
// container of the authority; a certificate for one container names its ID.
const ControllerPrincipal = "vic-controller"

// Names private to this protocol (RFC 4251 section 6).
const (
	domain        = "@vicsdk.github.com"
	channelAttach = "attach" + domain
	channelCall   = "call" + domain
	channelExec   = "exec" + domain
	channelLogs   = "logs" + domain
	channelTarOut = "tar-out" + domain
	channelTarIn  = "tar-in" + domain
	channelTree   = "tree" + domain
	channelApply  = "apply" + domain
	requestExit   = "exit" + domain
	// requestEOF comes before SSH's own EOF on an attachment and tells the end
	// of standard input: the SSH package reports the end of a channel, and of
	// a connection, just as an EOF.
	requestEOF    = "eof" + domain
	requestRun    = "run" + domain // comes first on an attachment
	requestFile   = "file" + domain
	requestResult = "result" + domain
	requestPing   = "ping" + domain
	requestEnd    = "end" + domain // comes before the EOF of a log that is complete
)

// Bounds that both sides hold against each other.
const (
	handshakeTimeout = 10 * time.Second
	maxDocument      = 64 << 10 // a JSON document of either side
	maxChannels      = 128      // open channels of one connection
	maxConnections   = 64       // authenticated connections of one guest
	maxFileOps       = 8        // archives and lookups of files under way at once
	maxHandshakes    = 32       // connections that have not authenticated yet
)

// Exit tells how the main process ended. That it ended badly is data, not an
// error.
type Exit struct {
	// Code as a shell tells it; see Status.ExitCode.
	Code int `json:"code"`
	// Signal that ended the process, such as SIGKILL, or empty.
	Signal string `json:"signal,omitempty"`
	// OOMKilled tells that the kernel ended a process of the container for
	// want of memory.
	OOMKilled bool `json:"oomKilled,omitempty"`
	// Error says why the process could not be started, with Code 125, 126 or
	// 127.
	Error string `json:"error,omitempty"`
	// Restarts tells that the guest starts the process again.
	Restarts bool `json:"restarts,omitempty"`
}

// Stage is a point of the guest's start.
type Stage struct {
	Name string `json:"name"`
	// At is the time since the kernel's start (CLOCK_BOOTTIME).
	At time.Duration `json:"at"`
}

// attachRequest opens a channelAttach.
type attachRequest struct {
	Replay bool     `json:"replay,omitempty"`
	Stdin  bool     `json:"stdin,omitempty"`
	Run    int      `json:"run,omitempty"`
	Skip   [2]int64 `json:"skip,omitzero"`
}

// attachedRun is what a requestRun tells: to which run of the process a channel
// is attached, and from which byte of its standard output and error on.
type attachedRun struct {
	Run  int      `json:"run"`
	From [2]int64 `json:"from,omitzero"`
}

// callRequest opens a channelCall; the answer is one callAnswer on it.
type callRequest struct {
	Method string          `json:"method"`
	Params json.RawMessage `json:"params,omitempty"`
}

type callAnswer struct {
	Error  *RemoteError    `json:"error,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
}

// The methods of a channelCall.
const (
	methodSignal   = "signal"
	methodStop     = "stop"
	methodResize   = "resize"
	methodWait     = "wait"
	methodStatus   = "status"
	methodTimeline = "timeline"
	methodHealth   = "health"
	methodPowerOff = "poweroff"

	methodAuthorities = "authorities"

	methodPause   = "pause"
	methodUnpause = "unpause"
	methodTop     = "top"
	methodStats   = "stats"
	methodLstat   = "lstat"

	methodMount   = "mount"
	methodUnmount = "unmount"
	methodGrow    = "grow"

	methodExec        = "exec" // detached
	methodExecCreate  = "exec-create"
	methodExecInspect = "exec-inspect"
	methodExecs       = "execs"
	methodExecResize  = "exec-resize"
)

type signalParams struct {
	Signal string `json:"signal"`
}

type stopParams struct {
	Signal string        `json:"signal,omitempty"`
	Grace  time.Duration `json:"grace"`
}

type resizeParams struct {
	Rows    uint16 `json:"rows"`
	Columns uint16 `json:"columns"`
}

// Payloads of standard SSH channel requests (RFC 4254 sections 6.7, 6.9, 6.10).
type (
	windowChange struct{ Columns, Rows, Width, Height uint32 }
	signalName   struct{ Name string }
	exitStatus   struct{ Code uint32 }
	exitSignal   struct {
		Name    string
		Core    bool
		Message string
		Lang    string
	}
)

// Sentinels for errors.Is on what the guest answers.
var (
	// ErrNotRunning: the process has ended or never started.
	ErrNotRunning = errors.New("the container's process is not running")
	// ErrInvalid: an argument cannot be right.
	ErrInvalid = errors.New("invalid argument")
	// ErrPaused: the container's processes are frozen.
	ErrPaused = errors.New("the container is paused: unpause it first")
	// ErrConflict: something else is there already.
	ErrConflict = errors.New("conflict")
	// ErrNoSpace: the container's disk is full.
	ErrNoSpace = errors.New("no space left")
	// ErrBusy: processes of the container use it.
	ErrBusy = errors.New("in use")
	// ErrNotFound: the guest knows no such thing.
	ErrNotFound = errors.New("not found")
	// ErrUnsupported: this guest or this container cannot do that.
	ErrUnsupported = errors.New("not supported")
)

// RemoteError is an error that the guest answered.
type RemoteError struct {
	// Code is one of codes, or "failed".
	Code    string `json:"code"`
	Message string `json:"message"`
}

// codes are what the sentinels travel as.
var codes = map[string]error{
	"not-running": ErrNotRunning, "invalid": ErrInvalid, "unsupported": ErrUnsupported,
	"paused": ErrPaused, "not-found": ErrNotFound, "conflict": ErrConflict, "no-space": ErrNoSpace,
	"busy": ErrBusy,
}

// Error returns the guest's message.
func (e *RemoteError) Error() string { return "guest: " + e.Message }

// Is matches the sentinel of the error's code.
func (e *RemoteError) Is(target error) bool {
	known, ok := codes[e.Code]
	return ok && target == known
}

func remoteError(err error) *RemoteError {
	code := "failed"
	for c, known := range codes {
		if errors.Is(err, known) {
			code = c
		}
	}
	return &RemoteError{Code: code, Message: truncate(err.Error(), 4096)}
}

func truncate(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// decode reads a JSON document of at most maxDocument bytes.
func decode(what string, b []byte, v any) error {
	if len(b) > maxDocument {
		return fmt.Errorf("%w: %s: %d bytes, more than %d", ErrInvalid, what, len(b), maxDocument)
	}
	if len(b) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %s: %v", ErrInvalid, what, err)
	}
	return nil
}
