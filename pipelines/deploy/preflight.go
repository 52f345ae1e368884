package deploy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PreflightResult is what Preflight found. It has changed nothing.
type PreflightResult struct {
	// State is what the cluster has of the service.
	State State `json:"state"`
	// Problems are in the way of a release, one line each.
	Problems []string `json:"problems,omitempty"`
	// Notes are checks that could not be made, and why.
	Notes []string `json:"notes,omitempty"`
}

// Preflight checks without changing anything that a release of o can work: the namespace exists, every access in needed
// is granted (default NeededAccess), the ConfigMaps and Secrets that the pods name exist with the keys they name, the
// objects of the service are greenlight's, and the cluster has room for the candidate. o.Colour may be empty for the
// colour that is not live; Image, Version and Release may be empty.
//
// The error wraps ErrPreflight and has all problems in one line; it wraps ErrForeign as well when that is one.
func Preflight(ctx context.Context, o Options, needed ...Access) (PreflightResult, error) {
	if o.Client == nil {
		return PreflightResult{}, fmt.Errorf("%w: no client", ErrInvalid)
	}
	o = o.withDefaults()
	if err := o.validateEarly(); err != nil {
		return PreflightResult{}, err
	}
	if len(needed) == 0 {
		needed = NeededAccess()
	}
	var r PreflightResult
	var foreign error
	missing, err := MissingAccess(ctx, o.Client, o.Namespace, needed)
	if err != nil {
		return r, err
	}
	if len(missing) > 0 {
		r.Problems = append(r.Problems, fmt.Sprintf("no permission in namespace %s to %s (see manifests/kubernetes/rbac.yaml)", o.Namespace, describe(missing)))
	}
	if _, err := o.Client.CoreV1().Namespaces().Get(ctx, o.Namespace, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		r.Problems = append(r.Problems, fmt.Sprintf("the namespace %s does not exist", o.Namespace))
		return r, r.err(nil)
	}
	r.State, err = Colours(ctx, o.Client, o.Namespace, o.Service)
	switch {
	case err == nil:
		if o.Colour == "" {
			o.Colour = r.State.Candidate()
		}
		if r.State.Live == o.Colour {
			r.Problems = append(r.Problems, fmt.Sprintf("%s is live, so it cannot be the candidate", o.Colour))
		}
	case apierrors.IsForbidden(err):
		// Said already.
	case errors.Is(err, ErrForeign):
		foreign = err
		r.Problems = append(r.Problems, strings.TrimPrefix(err.Error(), ErrForeign.Error()+": "))
	default:
		return r, err
	}
	if err := o.checkReferences(ctx, &r); err != nil {
		return r, err
	}
	short, err := o.capacity(ctx)
	switch {
	case apierrors.IsForbidden(err):
		r.Notes = append(r.Notes, "capacity was not checked: no permission to list nodes and pods of the cluster")
	case err != nil:
		return r, fmt.Errorf("reading the cluster's capacity: %w", err)
	case short != "" && o.ScaleUp:
		r.Notes = append(r.Notes, "capacity: "+short+"; the cluster is expected to add nodes")
	case short != "":
		r.Problems = append(r.Problems, "capacity: "+short)
	}
	return r, r.err(foreign)
}

func (r PreflightResult) err(foreign error) error {
	if len(r.Problems) == 0 {
		return nil
	}
	text := strings.Join(r.Problems, "; ")
	if foreign != nil {
		return fmt.Errorf("%w (%w): %s", ErrPreflight, ErrForeign, text)
	}
	return fmt.Errorf("%w: %s", ErrPreflight, text)
}

// validateEarly is validate before there is an image.
func (o Options) validateEarly() error {
	set(&o.Colour, Blue)
	set(&o.Version, "v0")
	set(&o.Image, "none@sha256:"+strings.Repeat("0", 64))
	return o.validate()
}

// checkReferences looks for the ConfigMaps and Secrets that the pods name.
func (o Options) checkReferences(ctx context.Context, r *PreflightResult) error {
	configMaps, secrets := map[string][]string{}, map[string][]string{}
	for _, e := range o.EnvFrom {
		if e.Secret != "" {
			secrets[e.Secret] = append(secrets[e.Secret], e.Key)
		} else {
			configMaps[e.ConfigMap] = append(configMaps[e.ConfigMap], e.Key)
		}
	}
	for _, m := range o.Mounts {
		if m.Secret != "" {
			secrets[m.Secret] = append(secrets[m.Secret], "")
		} else {
			configMaps[m.ConfigMap] = append(configMaps[m.ConfigMap], "")
		}
	}
	for _, name := range o.PullSecrets {
		secrets[name] = append(secrets[name], ".dockerconfigjson")
	}
	for _, name := range slices.Sorted(maps.Keys(configMaps)) {
		found, err := o.Client.CoreV1().ConfigMaps(o.Namespace).Get(ctx, name, metav1.GetOptions{})
		keys := map[string]bool{}
		if err == nil {
			for k := range found.Data {
				keys[k] = true
			}
			for k := range found.BinaryData {
				keys[k] = true
			}
		}
		if err := r.reference("config map", o.Namespace, name, configMaps[name], keys, err); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(secrets)) {
		found, err := o.Client.CoreV1().Secrets(o.Namespace).Get(ctx, name, metav1.GetOptions{})
		keys := map[string]bool{}
		if err == nil {
			for k := range found.Data {
				keys[k] = true
			}
		}
		if err := r.reference("secret", o.Namespace, name, secrets[name], keys, err); err != nil {
			return err
		}
	}
	return nil
}

// reference records what is wrong with one object that the pods name.
func (r *PreflightResult) reference(kind, namespace, name string, wanted []string, has map[string]bool, err error) error {
	switch {
	case apierrors.IsNotFound(err):
		r.Problems = append(r.Problems, fmt.Sprintf("the %s %s/%s, which the pods name, does not exist", kind, namespace, name))
	case apierrors.IsForbidden(err):
		r.Notes = append(r.Notes, fmt.Sprintf("the %s %s/%s was not checked: no permission to get it", kind, namespace, name))
	case err != nil:
		return fmt.Errorf("reading the %s %s/%s: %w", kind, namespace, name, err)
	default:
		for _, key := range wanted {
			if key != "" && !has[key] {
				r.Problems = append(r.Problems, fmt.Sprintf("the %s %s/%s has no key %q, which the pods name", kind, namespace, name, key))
			}
		}
	}
	return nil
}
