package volumestore

import (
	"strconv"
	"strings"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// ParseListFilters reads filters as docker volume ls takes them: name=PART,
// label=KEY[=VALUE], label!=KEY[=VALUE], dangling=BOOL and driver=vsphere.
func ParseListFilters(filters []string) (*ListOptions, error) {
	o := &ListOptions{}
	for _, f := range filters {
		k, v, ok := strings.Cut(f, "=")
		switch {
		case !ok:
			return nil, fault.Of(vic.ErrInvalid, "%.100q is not KEY=VALUE", f)
		case k == "name":
			o.Names = append(o.Names, v)
		case k == "label":
			o.Labels = append(o.Labels, v)
		case k == "label!":
			o.Unlabelled = append(o.Unlabelled, v)
		case k == "dangling":
			b, err := strconv.ParseBool(v)
			if err != nil {
				return nil, fault.Of(vic.ErrInvalid, "dangling=%.20q: want true or false", v)
			}
			o.Dangling = &b
		case k == "driver" && v == Driver: // they all have it
		case k == "driver":
			return nil, fault.Of(vic.ErrInvalid, "driver=%.40q: all volumes have the driver %s", v, Driver)
		default:
			return nil, fault.Of(vic.ErrInvalid, "%.100q is not known: there are name, label, label!, dangling and driver", k)
		}
	}
	return o, nil
}

// ParsePruneFilters reads filters as docker volume prune takes them:
// label=KEY[=VALUE], label!=KEY[=VALUE] and all=BOOL.
func ParsePruneFilters(filters []string) (*PruneOptions, error) {
	o := &PruneOptions{}
	for _, f := range filters {
		k, v, ok := strings.Cut(f, "=")
		switch {
		case !ok:
			return nil, fault.Of(vic.ErrInvalid, "%.100q is not KEY=VALUE", f)
		case k == "label":
			o.Labels = append(o.Labels, v)
		case k == "label!":
			o.Unlabelled = append(o.Unlabelled, v)
		case k == "all":
			b, err := strconv.ParseBool(v)
			if err != nil {
				return nil, fault.Of(vic.ErrInvalid, "all=%.20q: want true or false", v)
			}
			o.All = b
		default:
			return nil, fault.Of(vic.ErrInvalid, "%.100q is not known: there are label, label! and all", k)
		}
	}
	return o, nil
}
