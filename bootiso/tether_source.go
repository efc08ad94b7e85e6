//go:build !vic_release

package bootiso

// embeddedTether is the tether that the program carries; this one has none.
func embeddedTether() []byte { return nil }
