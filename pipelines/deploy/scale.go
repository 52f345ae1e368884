package deploy

import (
	"context"
	"fmt"
	"io"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Target names a colour of a service that exists.
type Target struct {
	// Client talks to the cluster.
	Client kubernetes.Interface `json:"-"`
	// Log gets a line whenever something changes on the way. Default: none.
	Log       io.Writer `json:"-"`
	Namespace string    `json:"namespace"`
	Service   string    `json:"service"`
	Colour    string    `json:"colour"`
	// Timeout limits the wait for the pods to be ready, or gone. Default 10 min.
	Timeout time.Duration `json:"timeout"`
	// UnschedulableGrace is as in Options.
	UnschedulableGrace time.Duration `json:"unschedulableGrace"`
}

// Scale sets the number of pods of a colour that is not live and waits: until all of them are ready, or, with zero,
// until the last pod is gone, which is after its drain. A colour that does not exist has zero pods already.
//
// Errors wrap ErrLive, ErrForeign, or ErrNotReady.
func Scale(ctx context.Context, t Target, n int32) error {
	o, err := t.options()
	if err != nil {
		return err
	}
	if n < 0 {
		return fmt.Errorf("%w: %d replicas", ErrInvalid, n)
	}
	if err := notLive(ctx, o.Client, o.Namespace, o.Service, o.Colour, "scaled"); err != nil {
		return err
	}
	d, err := o.setReplicas(ctx, n)
	if err != nil || d == nil {
		if d == nil && err == nil && n > 0 {
			return fmt.Errorf("%w: there is no deployment %s/%s to scale", ErrNotReady, o.Namespace, DeploymentName(o.Service, o.Colour))
		}
		return err
	}
	fmt.Fprintf(o.Log, "%s: scaled to %d\n", o.Colour, n)
	if n > 0 {
		_, err := o.waiter(d).wait(ctx)
		return err
	}
	return o.waitGone(ctx)
}

// Delete deletes a colour that is not live, with its budget, and waits until its pods are gone. A colour that does not
// exist is deleted already. Errors wrap ErrLive or ErrForeign.
func Delete(ctx context.Context, t Target) error {
	o, err := t.options()
	if err != nil {
		return err
	}
	if err := notLive(ctx, o.Client, o.Namespace, o.Service, o.Colour, "deleted"); err != nil {
		return err
	}
	name := DeploymentName(o.Service, o.Colour)
	budgets := o.Client.PolicyV1().PodDisruptionBudgets(o.Namespace)
	budget, err := budgets.Get(ctx, name, metav1.GetOptions{})
	if err == nil && owned("pod disruption budget", budget, o.Service) == nil {
		if err := budgets.Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &budget.UID}}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("deleting the pod disruption budget %s/%s: %w", o.Namespace, name, err)
		}
	}
	d, err := o.Client.AppsV1().Deployments(o.Namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return o.waitGone(ctx)
	}
	if err := checkExisting("deployment", d, err, o.Service); err != nil {
		return err
	}
	if err := deleteDeployment(ctx, o.Client, d); err != nil {
		return err
	}
	fmt.Fprintf(o.Log, "%s: deleted\n", o.Colour)
	return o.waitGone(ctx)
}

func (t Target) options() (Options, error) {
	if t.Client == nil {
		return Options{}, fmt.Errorf("%w: no client", ErrInvalid)
	}
	if t.Colour != Blue && t.Colour != Green {
		return Options{}, fmt.Errorf("%w: colour %q is neither blue nor green", ErrInvalid, t.Colour)
	}
	return Options{
		Client: t.Client, Log: t.Log, Namespace: t.Namespace, Service: t.Service, Colour: t.Colour,
		Timeout: t.Timeout, UnschedulableGrace: t.UnschedulableGrace,
	}.withDefaults(), nil
}

// setReplicas returns the Deployment after the change, or nil when there is none.
func (o Options) setReplicas(ctx context.Context, n int32) (*appsv1.Deployment, error) {
	name := DeploymentName(o.Service, o.Colour)
	deployments := o.Client.AppsV1().Deployments(o.Namespace)
	// The controller writes the status between our look and our write now and then.
	for attempt := 0; ; attempt++ {
		d, err := deployments.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		if err := checkExisting("deployment", d, err, o.Service); err != nil {
			return nil, err
		}
		if replicas(d.Spec.Replicas) == n {
			return d, nil
		}
		patch, kind, err := mergePatch(d, map[string]any{"replicas": n})
		if err != nil {
			return nil, err
		}
		d, err = deployments.Patch(ctx, name, kind, patch, metav1.PatchOptions{FieldManager: Manager})
		if err == nil {
			return d, nil
		}
		if !apierrors.IsConflict(err) || attempt == 9 {
			return nil, fmt.Errorf("scaling deployment %s/%s to %d: %w", o.Namespace, name, n, err)
		}
	}
}
