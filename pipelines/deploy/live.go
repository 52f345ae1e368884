package deploy

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// LiveURL is the live Service's URL for clients in the cluster.
func LiveURL(namespace, service string, port int32) string {
	return ServiceURL(service, namespace, port)
}

// EnsureLiveService creates the live Service, selecting o.Colour, for the first release of a service. It is called when
// the colour is ready and the gates have passed, and reports whether it created the Service; when the Service selects
// the colour already, it does nothing.
//
// Errors wrap ErrNotReady when the colour has no ready pod, ErrLive when the Service selects the other colour (that is
// a switch, which a router does), and ErrForeign.
func EnsureLiveService(ctx context.Context, o Options) (created bool, err error) {
	o = o.withDefaults()
	if o.Client == nil {
		return false, fmt.Errorf("%w: no client", ErrInvalid)
	}
	if err := o.validate(); err != nil {
		return false, err
	}
	live, err := liveColour(ctx, o.Client, o.Namespace, o.Service)
	switch {
	case err != nil:
		return false, err
	case live == o.Colour:
		return false, nil
	case live != "":
		return false, fmt.Errorf("%w: the live service %s/%s selects %s; a switch moves it", ErrLive, o.Namespace, o.Service, live)
	}
	svc := &corev1.Service{}
	if err := o.renderService(o.Service, o.ServiceType, o.ServiceAnnotations, svc); err != nil {
		return false, err
	}
	n, err := o.readyPods(ctx)
	if err != nil {
		return false, err
	}
	if n == 0 {
		return false, fmt.Errorf("%w: %s has no ready pod, so the live service is not created", ErrNotReady, o.Colour)
	}
	// Created rather than applied: if somebody was quicker, theirs is not overwritten.
	_, err = o.Client.CoreV1().Services(o.Namespace).Create(ctx, svc, metav1.CreateOptions{FieldManager: Manager})
	if apierrors.IsAlreadyExists(err) {
		return false, fmt.Errorf("%w: the service %s/%s was made by somebody else just now", ErrForeign, o.Namespace, o.Service)
	}
	if err != nil {
		return false, o.explainWrite("service", o.Service, err)
	}
	fmt.Fprintf(o.Log, "%s: made the live service %s/%s\n", o.Colour, o.Namespace, o.Service)
	return true, o.waitEndpoints(ctx, o.Service, n)
}

// DeleteLiveService undoes EnsureLiveService, for a first release that is taken back: it deletes the live Service if it
// selects t.Colour, and does nothing where there is none. Errors wrap ErrLive when the Service selects the other colour,
// and ErrForeign.
func DeleteLiveService(ctx context.Context, t Target) error {
	o, err := t.options()
	if err != nil {
		return err
	}
	services := o.Client.CoreV1().Services(o.Namespace)
	// A load balancer's controller writes the Service now and then, between our look and our write.
	for attempt := 0; ; attempt++ {
		svc, err := services.Get(ctx, o.Service, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err := checkExisting("service", svc, err, o.Service); err != nil {
			return err
		}
		live, err := selected(svc, o.Service)
		if err != nil {
			return err
		}
		if live != o.Colour {
			return fmt.Errorf("%w: the live service %s/%s selects %s and stays", ErrLive, o.Namespace, o.Service, live)
		}
		err = services.Delete(ctx, o.Service, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &svc.UID, ResourceVersion: &svc.ResourceVersion},
		})
		switch {
		case err == nil, apierrors.IsNotFound(err):
			fmt.Fprintf(o.Log, "%s: deleted the live service %s/%s\n", o.Colour, o.Namespace, o.Service)
			return nil
		case !apierrors.IsConflict(err) || attempt == 9:
			return fmt.Errorf("deleting the service %s/%s: %w", o.Namespace, o.Service, err)
		}
	}
}

// readyPods counts the colour's pods that are ready now.
func (o Options) readyPods(ctx context.Context) (int, error) {
	pods, err := o.Client.CoreV1().Pods(o.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: labels.SelectorFromSet(Selector(o.Service, o.Colour)).String(),
	})
	if err != nil {
		return 0, fmt.Errorf("reading the pods of %s: %w", o.Colour, err)
	}
	n := 0
	for i := range pods.Items {
		if podReady(&pods.Items[i]) {
			n++
		}
	}
	return n, nil
}

// podReady says whether a pod takes traffic: ready and not on its way out.
func podReady(p *corev1.Pod) bool {
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
