package tether

import "time"

// State of the main process, as its guest tells it.
type State string

// The states a guest goes through. A VM that is powered off in another state
// than Exited or Failed was cut off: its exit code is unknown.
const (
	Starting   State = "starting" // the guest boots; the tether may be reached already
	Running    State = "running"
	Restarting State = "restarting" // the process has ended and is started again at NextStart
	Exited     State = "exited"     // ExitCode tells how
	Failed     State = "failed"     // the process could not be started; Error says why, ExitCode is 125, 126 or 127
)

// Status is what a guest says of itself, under StatusKey and, once the process
// has ended, in /state/status.json of its disk.
type Status struct {
	// Version of this document, 1.
	Version int `json:"version"`
	// Boot is drawn anew at each boot; with it a controller tells this boot's
	// status from the last one's.
	Boot string `json:"boot"`
	// HostKey is the guest's SSH public key of this boot, in authorized_keys
	// form. Empty while the tether cannot be reached yet.
	HostKey string `json:"hostKey,omitempty"`
	// Addresses at which controllers reach the tether, host:port.
	Addresses []string `json:"addresses,omitempty"`

	State State `json:"state"`
	// Paused tells that the container's processes are frozen; State is Running
	// then.
	Paused bool `json:"paused,omitempty"`
	// Started is when the process was started last, and Finished when it ended
	// last; with restarts that may have been before.
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	// Restarts counts how often the guest has started the process again in
	// this boot, the one that is to come in state Restarting included.
	Restarts int `json:"restarts,omitempty"`
	// NextStart counts in state Restarting.
	NextStart time.Time `json:"nextStart,omitzero"`
	// Runs are the last runs that have ended, oldest first, where there were
	// restarts; at most eight.
	Runs []Run `json:"runs,omitempty"`
	// ExitCode of the last run that ended, as a shell tells it: the process's own, 128+n where signal n
	// ended it, 125 where the container could not be set up, 126 where the
	// program could not be run, 127 where there is none.
	ExitCode int    `json:"exitCode"`
	Error    string `json:"error,omitempty"`
	// OOMKilled tells that in that run the kernel ended a process of the
	// container for want of memory.
	OOMKilled bool `json:"oomKilled,omitempty"`
	// OOMKills counts the processes of the container that the kernel has ended
	// so since the boot, also where the main process lives on.
	OOMKills int `json:"oomKills,omitempty"`
	// Health is the state of the health checks, without their log; nil where
	// there are none.
	Health *HealthStatus `json:"health,omitempty"`
	// Answered tells of the last Request that the guest took.
	Answered *Answer `json:"answered,omitempty"`
	// Timeline has the stages of the guest's start, once the process has
	// started or failed to.
	Timeline []Stage `json:"timeline,omitempty"`
}

// A Run is one run of the process in a boot, from 1.
type Run struct {
	Number   int       `json:"number"`
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	ExitCode int       `json:"exitCode"`
}
