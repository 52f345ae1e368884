package deploy

import (
	"context"
	"fmt"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// State is what the cluster has of a service.
type State struct {
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	// Live is the colour that the live Service selects, or "" when there is no live Service.
	Live string `json:"live,omitempty"`
	// Colours has an entry for each of blue and green.
	Colours map[string]Colour `json:"colours"`
}

// Colour is the state of one slot.
type Colour struct {
	// Exists says whether there is a Deployment. The other fields are zero without.
	Exists bool `json:"exists"`
	// Live says whether the live Service selects it.
	Live bool `json:"live"`
	// Replicas are asked for, Ready are ready.
	Replicas int32 `json:"replicas"`
	Ready    int32 `json:"ready"`
	// Image and Version run in it, put there by Release.
	Image   string `json:"image,omitempty"`
	Version string `json:"version,omitempty"`
	Release string `json:"release,omitempty"`
	// GPUs is how many GPUs one pod takes of GPUResource.
	GPUs        int64  `json:"gpus,omitempty"`
	GPUResource string `json:"gpuResource,omitempty"`
}

// Candidate is the colour that a release may use: the one that is not live, blue when none is.
func (s State) Candidate() string {
	if s.Live == Blue {
		return Green
	}
	return Blue
}

// Colours reads the state of both colours of a service. Errors wrap ErrForeign when an object of one of its names is not
// greenlight's, or when the live Service selects something that is not one of the colours.
func Colours(ctx context.Context, client kubernetes.Interface, namespace, service string) (State, error) {
	s := State{Namespace: namespace, Service: service, Colours: map[string]Colour{}}
	live, err := liveColour(ctx, client, namespace, service)
	if err != nil {
		return s, err
	}
	s.Live = live
	for _, colour := range []string{Blue, Green} {
		name := DeploymentName(service, colour)
		d, err := client.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			s.Colours[colour] = Colour{}
			continue
		}
		if err != nil {
			return s, fmt.Errorf("reading deployment %s/%s: %w", namespace, name, err)
		}
		if err := owned("deployment", d, service); err != nil {
			return s, err
		}
		c := Colour{
			Exists: true, Live: colour == live, Replicas: replicas(d.Spec.Replicas), Ready: d.Status.ReadyReplicas,
			Version: d.Labels[LabelVersion], Release: d.Annotations[AnnotationRelease],
		}
		for _, container := range d.Spec.Template.Spec.Containers {
			c.Image = container.Image
			for name, q := range container.Resources.Limits {
				if strings.Contains(string(name), "/") {
					c.GPUResource, c.GPUs = string(name), q.Value()
				}
			}
		}
		s.Colours[colour] = c
	}
	return s, nil
}

// liveColour reads the live Service and returns the colour that it selects, or "" when there is none.
func liveColour(ctx context.Context, client kubernetes.Interface, namespace, service string) (string, error) {
	svc, err := client.CoreV1().Services(namespace).Get(ctx, service, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading service %s/%s: %w", namespace, service, err)
	}
	if err := owned("service", svc, service); err != nil {
		return "", err
	}
	return selected(svc, service)
}

func selected(svc *corev1.Service, service string) (string, error) {
	for _, colour := range []string{Blue, Green} {
		if maps.Equal(svc.Spec.Selector, Selector(service, colour)) {
			return colour, nil
		}
	}
	return "", fmt.Errorf("%w: the live service %s/%s selects %s, not one colour of %s: restore its selector by hand",
		ErrForeign, svc.Namespace, svc.Name, metav1.FormatLabelSelector(metav1.SetAsLabelSelector(svc.Spec.Selector)), service)
}

// owned refuses an object that was not made by a release of this service.
func owned(kind string, object metav1.Object, service string) error {
	labels := object.GetLabels()
	switch {
	case labels[LabelManagedBy] != Manager:
		return fmt.Errorf("%w: the %s %s/%s exists and was not made by greenlight, which does not take over objects: delete or rename it, or give the service another name",
			ErrForeign, kind, object.GetNamespace(), object.GetName())
	case labels[LabelService] != service:
		return fmt.Errorf("%w: the %s %s/%s belongs to the service %q, not to %q",
			ErrForeign, kind, object.GetNamespace(), object.GetName(), labels[LabelService], service)
	}
	return nil
}

// notLive refuses to go on when the live Service selects colour, as read now.
func notLive(ctx context.Context, client kubernetes.Interface, namespace, service, colour, doing string) error {
	live, err := liveColour(ctx, client, namespace, service)
	if err != nil {
		return err
	}
	if live == colour {
		return fmt.Errorf("%w: %s of %s/%s has the traffic, so it is not %s", ErrLive, colour, namespace, service, doing)
	}
	return nil
}

func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}
