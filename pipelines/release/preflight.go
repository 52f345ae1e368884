package release

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/greenlight-ci/greenlight/pipelines/deploy"
	"github.com/greenlight-ci/greenlight/pipelines/image"
	"github.com/greenlight-ci/greenlight/pipelines/sign"
)

// Preflight checks all that a release needs and costs nothing: the version, the golden cases, the keys, the registry, the
// permissions, and that the candidate's pods can be scheduled. It changes nothing. What the artifact does not say yet, such as
// the image before it is built, is not checked. Errors wrap ErrUsage, or
// ErrLocked while another release is under way.
func Preflight(ctx context.Context, s Service, a Artifact) (detail string, err error) {
	if a.Version != "" {
		if _, err := image.ParseVersion(a.Version); err != nil {
			return "", usage(err)
		}
	}
	o, err := s.latencyOptions(a.Version, s.liveURL())
	if err != nil {
		return "", err
	}
	if err := o.Check(); err != nil {
		return "", usage(fmt.Errorf("the latency gate cannot be run as configured: %w", err))
	}
	if err := checkKeys(a); err != nil {
		return "", err
	}
	repository, err := image.Parse(s.Config.Image.Repository)
	if err != nil {
		return "", usage(err)
	}
	if err := s.Registry.CheckPush(ctx, repository); err != nil {
		return "", usage(fmt.Errorf("image.repository: %w", err))
	}
	r := run{Options: Options{Service: s, Artifact: a}}
	found, err := deploy.Preflight(ctx, r.colour(""))
	if errors.Is(err, deploy.ErrPreflight) || errors.Is(err, deploy.ErrInvalid) {
		return "", usage(err)
	}
	if err != nil {
		return "", err
	}
	detail = fmt.Sprintf("candidate %s", found.State.Candidate())
	if err := CheckLock(ctx, s.Client, s.Namespace, s.Config.Service); err != nil {
		return "", err
	}
	if live := found.State.Live; live != "" {
		detail += fmt.Sprintf(" beside live %s (%s)", live, found.State.Colours[live].Version)
	} else {
		detail += ", nothing is live"
	}
	for _, note := range found.Notes {
		detail += "; " + note
	}
	return detail, nil
}

// checkKeys opens what there is: a wrong password costs nothing now and a build later.
func checkKeys(a Artifact) error {
	if a.SigningKey.File != "" {
		if _, err := a.SigningKey.Public(); err != nil {
			return usage(err)
		}
	}
	if a.PublicKey.File != "" {
		if _, err := os.ReadFile(a.PublicKey.File); err != nil {
			return usage(fmt.Errorf("%w: the public key to verify with: %w", sign.ErrKey, err))
		}
	}
	return nil
}

// preflight is Preflight of a release whose image is there.
func (r *run) preflight(ctx context.Context) (result, error) {
	if r.Version == "" {
		return result{}, usage(errors.New("the version is missing; pass --version, such as v1.4.0-3f2a1c9"))
	}
	if _, err := image.ParsePinned(r.Image); err != nil {
		return result{}, usage(fmt.Errorf("the image to release: %w", err))
	}
	if _, err := image.ParsePinned(r.ProbeImage); err != nil {
		return result{}, usage(fmt.Errorf("the probe image: %w", err))
	}
	if !strings.HasPrefix(r.Image, r.Config.Image.Repository+"@") {
		return result{}, usage(fmt.Errorf("the image %s is not from image.repository %s", r.Image, r.Config.Image.Repository))
	}
	if r.ScanDir == "" {
		return result{}, usage(errors.New("--scan-dir is missing: what was not scanned is not released"))
	}
	if r.SigningKey.File == "" {
		return result{}, usage(errors.New("--signing-key is missing"))
	}
	detail, err := Preflight(ctx, r.Service, r.Artifact)
	return result{detail: detail}, err
}
