package tether

import (
	"context"
	"encoding/json"
	"fmt"
)

// Guestinfo reads and writes the guestinfo values of the VM, by whatever
// carrier the machine has.
type Guestinfo interface {
	Get(ctx context.Context, key string) (string, error)
	Set(ctx context.Context, key, value string) error
}

// maxConfig bounds a configuration document in bytes; it is what one message
// of the guest's channel carries.
const maxConfig = 64 << 10

// ParseConfig reads and validates a Config. The error names the field.
func ParseConfig(b []byte) (*Config, error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("%s is empty", ConfigKey)
	}
	if len(b) > maxConfig {
		return nil, fmt.Errorf("%s: %d bytes, more than %d", ConfigKey, len(b), maxConfig)
	}
	c := new(Config)
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("%s: %w", ConfigKey, err)
	}
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", ConfigKey, err)
	}
	return c, nil
}

// Bounds of what is taken of a guest's word on itself.
const (
	maxAddresses = 16
	maxStages    = 64
)

// ParseStatus reads what stands under StatusKey. It is a guest's claim: what no
// tether writes is an error, and texts come without control characters.
func ParseStatus(b []byte) (Status, error) {
	var s Status
	if err := decode(StatusKey, b, &s); err != nil {
		return Status{}, err
	}
	if err := s.check(); err != nil {
		return Status{}, fmt.Errorf("%s: %w", StatusKey, err)
	}
	return s, nil
}

func (s *Status) check() error {
	switch {
	case s.Version != 1:
		return fmt.Errorf("%w: version: %d is not 1", ErrInvalid, s.Version)
	case s.Boot == "" || len(s.Boot) > 64:
		return fmt.Errorf("%w: boot: not 1 to 64 bytes", ErrInvalid)
	case len(s.HostKey) > 1024:
		return fmt.Errorf("%w: hostKey: more than 1024 bytes", ErrInvalid)
	case len(s.Addresses) > maxAddresses:
		return fmt.Errorf("%w: addresses: %d, more than %d", ErrInvalid, len(s.Addresses), maxAddresses)
	case s.ExitCode < 0 || s.ExitCode > 255:
		return fmt.Errorf("%w: exitCode: %d is not between 0 and 255", ErrInvalid, s.ExitCode)
	case s.Restarts < 0 || s.OOMKills < 0:
		return fmt.Errorf("%w: restarts, oomKills: negative", ErrInvalid)
	case len(s.Runs) > statusRuns:
		return fmt.Errorf("%w: runs: %d, more than %d", ErrInvalid, len(s.Runs), statusRuns)
	case s.Health != nil && s.Health.check() != nil:
		return s.Health.check()
	case len(s.Timeline) > maxStages:
		return fmt.Errorf("%w: timeline: %d stages, more than %d", ErrInvalid, len(s.Timeline), maxStages)
	}
	if a := s.Answered; a != nil && a.Error != nil {
		a.Error.Code, a.Error.Message = plain(a.Error.Code), plain(a.Error.Message)
	}
	for i, r := range s.Runs {
		if r.ExitCode < 0 || r.ExitCode > 255 {
			return fmt.Errorf("%w: runs[%d].exitCode: %d is not between 0 and 255", ErrInvalid, i, r.ExitCode)
		}
	}
	s.Error = plain(s.Error)
	for i := range s.Timeline {
		s.Timeline[i].Name = plain(s.Timeline[i].Name)
	}
	return nil
}
