//go:build vic_release

package bootiso

import _ "embed" // the tether

//go:embed release/tether
var tether []byte

// embeddedTether is the tether that the program carries. "go generate
// ./bootiso" makes the file.
func embeddedTether() []byte { return tether }
