package imagestore

import (
	"encoding/json"
	"time"
)

// DockerConfig is what Docker keeps in an image's configuration beside what OCI
// defines (Docker Image Specification v1.2, "Image JSON Field Descriptions").
type DockerConfig struct {
	// Healthcheck, or nil where the image says nothing of it.
	Healthcheck *Healthcheck `json:"Healthcheck,omitempty"`
	// Shell is the program and its arguments that take a command as a string;
	// empty means /bin/sh -c.
	Shell []string `json:"Shell,omitempty"`
}

// A Healthcheck is an image's HEALTHCHECK instruction. Zero durations and retries
// stand for defaults.
type Healthcheck struct {
	// Test begins with CMD, CMD-SHELL or NONE.
	Test          []string      `json:"Test,omitempty"`
	Interval      time.Duration `json:"Interval,omitempty"`
	Timeout       time.Duration `json:"Timeout,omitempty"`
	StartPeriod   time.Duration `json:"StartPeriod,omitempty"`
	StartInterval time.Duration `json:"StartInterval,omitempty"`
	Retries       int           `json:"Retries,omitempty"`
}

// Docker is what the image's configuration says beside what OCI defines. Of an
// image that a release pulled which did not keep it, there is nothing until it is
// pulled again.
func (i *Image) Docker() DockerConfig { return i.doc.Docker }

// dockerConfigOf reads the members that OCI's type lacks. What is not of Docker's
// form counts as not there.
func dockerConfigOf(config []byte) DockerConfig {
	var v struct {
		Config DockerConfig `json:"config"`
	}
	if json.Unmarshal(config, &v) != nil {
		return DockerConfig{}
	}
	return v.Config
}
