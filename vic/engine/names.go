package engine

import (
	"math/rand/v2"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

var (
	qualities = []string{"amber", "brisk", "calm", "clear", "crisp", "eager", "early", "fair", "fleet", "glad", "keen", "light", "lucid", "mellow", "neat", "noble", "prime", "quick", "quiet", "rapid", "sharp", "solid", "spry", "steady", "still", "stout", "swift", "tidy", "trim", "vivid", "warm", "wise"}
	vessels   = []string{"barge", "bark", "brig", "canoe", "caravel", "clipper", "coaster", "cog", "corvette", "cutter", "dhow", "dinghy", "dory", "ferry", "frigate", "galley", "gig", "hulk", "jolly", "junk", "kayak", "ketch", "launch", "lugger", "packet", "pinnace", "punt", "schooner", "skiff", "sloop", "tender", "yawl"}
)

// drawName draws a name for a container that is given none.
func drawName() string {
	const digits = "0123456789abcdefghijklmnopqrstuvwxyz"
	return qualities[rand.IntN(len(qualities))] + "-" + vessels[rand.IntN(len(vessels))] + "-" +
		string([]byte{digits[rand.IntN(36)], digits[rand.IntN(36)], digits[rand.IntN(36)]})
}

func invalid(why string) error { return fault.Of(vic.ErrInvalid, "%s", why) }
