package main

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/vic"
)

// Exit codes of vic itself. Those of a container's process pass through; where
// vic run fails before there is one, 125 tells them apart, as docker does.
const (
	exitError    = 1
	exitUsage    = 2
	exitNotFound = 3
	exitConflict = 4
	exitUnknown  = 5
	exitRun      = 125
)

func app() *cli.App {
	a := &cli.App{
		Name:                   "vic",
		Usage:                  "run any OCI image as its own VM on vSphere",
		Version:                version(),
		UseShortOptionHandling: true,
		EnableBashCompletion:   true,
		HideHelpCommand:        true,
		// A comma in -e KEY=a,b is the value's.
		DisableSliceFlagSeparator: true,
		Flags:                     targetFlags(),
		ExitErrHandler:            func(*cli.Context, error) {},
		Commands: []*cli.Command{
			labCommand(), isoCommand(),
			createCommand(), lsCommand(), deleteCommand(), authorityCommand(),
			pullCommand(), imagesCommand(), rmiCommand(), pruneCommand(), gcCommand(), dfCommand(), tagCommand(), historyCommand(),
			pushCommand(), saveCommand(), loadCommand(), commitCommand(), exportCommand(), importCommand(),
			volumeCommand(),
			runCommand(), execCommand(), attachCommand(), topCommand(), statsCommand(), pauseCommand(), unpauseCommand(), psCommand(), eventsCommand(), inspectCommand(), logsCommand(),
			startCommand(), stopCommand(), restartCommand(), killCommand(), waitCommand(), reconcileCommand(), rmCommand(), renameCommand(), updateCommand(),
			cpCommand(), diffCommand(),
		},
	}
	return a
}

func version() string {
	if i, ok := debug.ReadBuildInfo(); ok {
		return i.Main.Version
	}
	return "unknown"
}

// exitStatus is an error that only sets the exit code.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// runFailure is an error that kept vic run from having an exit code of the
// container's.
type runFailure struct{ err error }

func (r runFailure) Error() string { return r.err.Error() }
func (r runFailure) Unwrap() error { return r.err }

// usageError is a wrong command line.
func usageError(format string, args ...any) error {
	return &usage{fmt.Sprintf(format, args...)}
}

type usage struct{ text string }

func (u *usage) Error() string { return u.text }

// report prints an error and tells the exit code that it means.
func report(w io.Writer, err error) int {
	var st exitStatus
	if err == nil {
		return 0
	}
	if errors.As(err, &st) {
		return int(st)
	}
	fmt.Fprintf(w, "vic: %v\n", err)
	var u *usage
	switch {
	case errors.As(err, new(runFailure)):
		return exitRun
	case errors.As(err, &u), errors.Is(err, vic.ErrInvalid):
		return exitUsage
	case errors.Is(err, vic.ErrNotFound):
		return exitNotFound
	case errors.Is(err, vic.ErrConflict), errors.Is(err, vic.ErrInUse):
		return exitConflict
	case errors.Is(err, vic.ErrUnknownOutcome):
		return exitUnknown
	}
	return exitError
}

// args checks how many arguments a command has.
func args(c *cli.Context, least, most int) error {
	n := c.NArg()
	if n < least || most >= 0 && n > most {
		return usageError("%s: %d arguments: usage: %s %s", c.Command.FullName(), n, c.Command.FullName(), c.Command.ArgsUsage)
	}
	return nil
}
