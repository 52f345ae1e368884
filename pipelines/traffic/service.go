package traffic

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

const (
	blue  = "blue"
	green = "green"

	labelManagedBy = "app.kubernetes.io/managed-by"
	labelService   = "greenlight.dev/service"
	labelColour    = "greenlight.dev/colour"
	manager        = "greenlight"
)

// serviceRouter moves all traffic at once by the selector of the live Service. Connections that exist stay where they
// are until the old colour closes them.
type serviceRouter struct{ Settings }

func newServiceRouter(s Settings) Router { return serviceRouter{s} }

func (r serviceRouter) Name() string               { return "service" }
func (r serviceRouter) Capabilities() Capabilities { return Capabilities{} }

func (r serviceRouter) Weights(ctx context.Context) (Weights, error) {
	svc, err := r.read(ctx)
	if err != nil || svc == nil {
		return Weights{}, err
	}
	colour, err := r.selected(svc)
	if err != nil {
		return nil, err
	}
	return Weights{colour: 100, other(colour): 0}, nil
}

func (r serviceRouter) Shift(ctx context.Context, to Weights) error {
	target, err := r.target(to)
	if err != nil {
		return err
	}
	// The load balancer's controller writes the status of a Service now and then, between our look and our write.
	for attempt := 0; ; attempt++ {
		svc, err := r.read(ctx)
		if err != nil {
			return err
		}
		if svc == nil {
			return fmt.Errorf("%w: there is no live service %s/%s", ErrRefused, r.Namespace, r.Service)
		}
		now, err := r.selected(svc)
		if err != nil {
			return err
		}
		if now == target {
			return nil
		}
		// The look at the pods is the last thing before the write, and the write fails if the Service has changed
		// since it was read.
		if err := r.requireReady(ctx, target); err != nil {
			return err
		}
		patch, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"uid": svc.UID, "resourceVersion": svc.ResourceVersion},
			"spec":     map[string]any{"selector": r.selector(target)},
		})
		if err != nil {
			return err
		}
		_, err = r.Client.CoreV1().Services(r.Namespace).Patch(ctx, r.Service, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: manager})
		switch {
		case err == nil:
			return nil
		case apierrors.IsConflict(err) && attempt < 9:
			continue
		case apierrors.IsConflict(err), apierrors.IsForbidden(err), apierrors.IsInvalid(err), apierrors.IsUnauthorized(err), apierrors.IsNotFound(err):
			return fmt.Errorf("%w: the API server refused the change of service %s/%s: %w", ErrRefused, r.Namespace, r.Service, err)
		default:
			return fmt.Errorf("changing the selector of service %s/%s: %w", r.Namespace, r.Service, err)
		}
	}
}

// target is the colour that gets everything.
func (r serviceRouter) target(to Weights) (string, error) {
	colour := ""
	for c, weight := range to {
		switch {
		case c != blue && c != green:
			return "", fmt.Errorf("%w: colour %q is neither blue nor green", ErrInvalid, c)
		case weight == 100 && colour == "":
			colour = c
		case weight != 0:
			return "", fmt.Errorf("%w: the service router moves all traffic or none, not %v", ErrUnsupported, to)
		}
	}
	if colour == "" {
		return "", fmt.Errorf("%w: no colour gets the traffic in %v", ErrInvalid, to)
	}
	return colour, nil
}

// read returns the live Service, or nil when there is none.
func (r serviceRouter) read(ctx context.Context) (*corev1.Service, error) {
	svc, err := r.Client.CoreV1().Services(r.Namespace).Get(ctx, r.Service, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading the live service %s/%s: %w", r.Namespace, r.Service, err)
	case svc.Labels[labelManagedBy] != manager || svc.Labels[labelService] != r.Service:
		return nil, fmt.Errorf("%w: the service %s/%s was not made by greenlight", ErrRefused, r.Namespace, r.Service)
	case svc.DeletionTimestamp != nil:
		return nil, fmt.Errorf("%w: the service %s/%s is being deleted", ErrRefused, r.Namespace, r.Service)
	}
	return svc, nil
}

func (r serviceRouter) selector(colour string) map[string]string {
	return map[string]string{labelService: r.Service, labelColour: colour}
}

// selected is the colour that a Service selects. A selector that somebody edited is not repaired: what was meant by it
// is not known here.
func (r serviceRouter) selected(svc *corev1.Service) (string, error) {
	for _, colour := range []string{blue, green} {
		if maps.Equal(svc.Spec.Selector, r.selector(colour)) {
			return colour, nil
		}
	}
	return "", fmt.Errorf("%w: the live service %s/%s selects %s, not one colour of %s: restore its selector by hand",
		ErrRefused, svc.Namespace, svc.Name, metav1.FormatLabelSelector(metav1.SetAsLabelSelector(svc.Spec.Selector)), r.Service)
}

// requireReady refuses a colour that could not take the traffic.
func (r serviceRouter) requireReady(ctx context.Context, colour string) error {
	pods, err := r.Client.CoreV1().Pods(r.Namespace).List(ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(r.selector(colour)).String()})
	if err != nil {
		return fmt.Errorf("reading the pods of %s: %w", colour, err)
	}
	ready, foreign := 0, []string{}
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.Labels[labelManagedBy] != manager {
			foreign = append(foreign, p.Name)
			continue
		}
		if takesTraffic(p) {
			ready++
		}
	}
	if len(foreign) > 0 {
		return fmt.Errorf("%w: the selector of %s would also choose pods that are not greenlight's: %s", ErrRefused, colour, strings.Join(foreign, ", "))
	}
	if ready < r.MinReady {
		return fmt.Errorf("%w: %s has %d ready pods of the %d that it needs", ErrRefused, colour, ready, r.MinReady)
	}
	return nil
}

// takesTraffic says whether a pod is ready and not on its way out.
func takesTraffic(p *corev1.Pod) bool {
	if p.DeletionTimestamp != nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func other(colour string) string {
	if colour == blue {
		return green
	}
	return blue
}
