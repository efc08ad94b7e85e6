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
