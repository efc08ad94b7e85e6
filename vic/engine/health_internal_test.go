package engine

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/tether"
)

func TestHealthOf(t *testing.T) {
	image := func(test ...string) imagestore.DockerConfig {
		return imagestore.DockerConfig{Shell: []string{"ash", "-ec"}, Healthcheck: &imagestore.Healthcheck{Test: test, Interval: time.Second, Retries: 5}}
	}
	for _, tt := range []struct {
		name  string
		image imagestore.DockerConfig
		spec  HealthSpec
		want  *tether.Health
		err   error
	}{
		{"none", imagestore.DockerConfig{}, HealthSpec{}, nil, nil},
		{"the image's", image("CMD", "check", "it"), HealthSpec{}, &tether.Health{Args: []string{"check", "it"}, Interval: time.Second, Retries: 5}, nil},
		{"in the image's shell", image("CMD-SHELL", "check | it"), HealthSpec{}, &tether.Health{Args: []string{"ash", "-ec", "check | it"}, Interval: time.Second, Retries: 5}, nil},
		{"the image's, off", image("NONE"), HealthSpec{}, nil, nil},
		{"off", image("CMD", "check"), HealthSpec{Test: []string{"NONE"}}, nil, nil},
		{"other times", image("CMD", "check"), HealthSpec{Interval: time.Minute, StartPeriod: time.Hour, Retries: 1}, &tether.Health{Args: []string{"check"}, Interval: time.Minute, StartPeriod: time.Hour, Retries: 1}, nil},
		{"another command", imagestore.DockerConfig{}, HealthSpec{Test: []string{"CMD-SHELL", "check"}}, &tether.Health{Args: []string{"/bin/sh", "-c", "check"}}, nil},
		{"times of nothing", imagestore.DockerConfig{}, HealthSpec{Interval: time.Second}, nil, vic.ErrInvalid},
		{"times and off", image("CMD", "check"), HealthSpec{Test: []string{"NONE"}, Retries: 1}, nil, vic.ErrInvalid},
		{"too often", image("CMD", "check"), HealthSpec{Interval: time.Microsecond}, nil, vic.ErrInvalid},
		{"of no form", image("RUN", "check"), HealthSpec{}, nil, vic.ErrInvalid},
		{"no command", image("CMD"), HealthSpec{}, nil, vic.ErrInvalid},
		{"negative", image("CMD", "check"), HealthSpec{Retries: -1}, nil, vic.ErrInvalid},
	} {
		got, err := healthOf(tt.image, tt.spec)
		if d := cmp.Diff(tt.want, got); d != "" || !errors.Is(err, tt.err) {
			t.Errorf("%s: %v\n%s", tt.name, err, d)
		}
	}
}
