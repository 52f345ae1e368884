// Package release is the plan: which stages a release runs, in which order, what is recorded before and after each, and
// what undoes them. It imports the stages; no stage imports another.
package release

import (
	"fmt"
	"io"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/greenlight-ci/greenlight/pipelines/config"
	"github.com/greenlight-ci/greenlight/pipelines/image"
	"github.com/greenlight-ci/greenlight/pipelines/sign"
)

// Service is a service and how to reach where it runs.
type Service struct {
	Config *config.Config
	// Client is the cluster's; Namespace is where the service is.
	Client    kubernetes.Interface
	Namespace string
	// Registry says how the registry is asked.
	Registry image.Registry
	// Holder names this run to whoever finds the lock taken.
	Holder string
	// Progress gets a line for everything that a person who waits wants to know. Default: none.
	Progress io.Writer
}

func (s Service) say(format string, args ...any) {
	if s.Progress != nil {
		fmt.Fprintf(s.Progress, format+"\n", args...)
	}
}

// Artifact is what is released and the evidence that comes with it.
type Artifact struct {
	// Version is immutable, such as v1.4.0-3f2a1c9.
	Version string
	// Image is its reference by digest.
	Image string
	// ScanDir is what greenlight-scan wrote about the image.
	ScanDir string
	// BuildRecord is the build's build.json. Default: the report has no build times.
	BuildRecord string
	// SigningKey signs the image and PublicKey must verify it.
	SigningKey sign.Key
	PublicKey  sign.PublicKey
}

// Options are what Run and Rollback need.
type Options struct {
	Service
	Artifact
	// ID identifies this run in the journal, the report, and on every object.
	ID string
	// ProbeImage is the image of greenlight-probe, by digest.
	ProbeImage string
}

// How long things that are not the candidate's to delay may take.
const (
	// compensationTimeout bounds the way back after a no, an error or a signal.
	compensationTimeout = 5 * time.Minute
	// leeway is what a gate's Job gets on top of the gate's own limits, for pulling the probe image and starting.
	leeway = 2 * time.Minute
)
