package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// Result is what Run did.
type Result struct {
	Colour string `json:"colour"`
	// Deployment, Preview and PreviewURL name where the candidate is; the URL is for clients in the namespace.
	Deployment string `json:"deployment"`
	Preview    string `json:"preview"`
	PreviewURL string `json:"previewUrl"`
	Image      string `json:"image"`
	// Replicas are asked for, Ready were ready at the end.
	Replicas int32 `json:"replicas"`
	Ready    int32 `json:"ready"`
	// GPUs is how many GPUs the candidate holds in all.
	GPUs int64 `json:"gpus"`
	// Replaced says that the colour held a leftover, which is gone.
	Replaced bool `json:"replaced"`
	// Seconds from the first write to the end, ReadySeconds of it spent waiting for the pods.
	Seconds      float64 `json:"seconds"`
	ReadySeconds float64 `json:"readySeconds"`
}

// Run puts the version into the colour, waits until every pod of it is ready and leads the preview Service to it.
//
// What the colour held before is replaced whole: fields that somebody else set do not survive. Running it again with
// the same options changes nothing. Errors wrap ErrNotReady, ErrForeign, ErrLive or ErrInvalid; after ErrNotReady the
// candidate is still there, with its GPUs, until Scale or Delete.
func Run(ctx context.Context, o Options) (Result, error) {
	started := time.Now()
	o = o.withDefaults()
	if o.Client == nil {
		return Result{}, fmt.Errorf("%w: no client", ErrInvalid)
	}
	if err := o.validate(); err != nil {
		return Result{}, err
	}
	result := Result{
		Colour: o.Colour, Deployment: DeploymentName(o.Service, o.Colour), Preview: PreviewName(o.Service),
		PreviewURL: ServiceURL(PreviewName(o.Service), o.Namespace, o.ServicePort),
		Image:      o.Image, Replicas: o.Replicas, GPUs: int64(o.Replicas) * o.GPUs,
	}
	done := func(err error) (Result, error) {
		result.Seconds = time.Since(started).Seconds()
		return result, err
	}
	stack, err := o.render()
	if err != nil {
		return done(err)
	}
	if err := notLive(ctx, o.Client, o.Namespace, o.Service, o.Colour, "changed"); err != nil {
		return done(err)
	}
	if err := o.applyShared(ctx, stack); err != nil {
		return done(err)
	}
	d, replaced, err := o.applyDeployment(ctx, stack)
	result.Replaced = replaced
	if err != nil {
		return done(err)
	}
	waiting := time.Now()
	result.Ready, err = o.waiter(d).wait(ctx)
	result.ReadySeconds = time.Since(waiting).Seconds()
	if err != nil {
		return done(err)
	}
	// Only now: a preview that leads to pods that are not ready, or to the version before, is a trap for the gates.
	if err := o.applyPreview(ctx, stack); err != nil {
		return done(err)
	}
	return done(o.waitEndpoints(ctx, result.Preview, int(o.Replicas)))
}

// ServiceURL is the URL of a Service for clients in the cluster.
func ServiceURL(name, namespace string, port int32) string {
	if port == 0 || port == 80 {
		return "http://" + name + "." + namespace + ".svc"
	}
	return fmt.Sprintf("http://%s.%s.svc:%d", name, namespace, port)
}

var applyOptions = metav1.ApplyOptions{FieldManager: Manager, Force: true}

// applyShared applies what the pods need before they start.
func (o Options) applyShared(ctx context.Context, s Stack) error {
	if s.ServiceAccount != nil {
		accounts := o.Client.CoreV1().ServiceAccounts(o.Namespace)
		found, err := accounts.Get(ctx, o.Service, metav1.GetOptions{})
		if err := checkExisting("service account", found, err, o.Service); err != nil {
			return err
		}
		if _, err := accounts.Apply(ctx, s.ServiceAccount, applyOptions); err != nil {
			return o.explainWrite("service account", o.Service, err)
		}
	}
	return nil
}

// applyBudget makes the colour's budget what was rendered, which may be none.
func (o Options) applyBudget(ctx context.Context, s Stack) error {
	name := DeploymentName(o.Service, o.Colour)
	budgets := o.Client.PolicyV1().PodDisruptionBudgets(o.Namespace)
	found, err := budgets.Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err) && s.PodDisruptionBudget == nil:
		return nil
	case err == nil && s.PodDisruptionBudget == nil && owned("", found, o.Service) != nil:
		// Somebody else's budget for pods of ours is theirs to keep.
		return nil
	}
	if err := checkExisting("pod disruption budget", found, err, o.Service); err != nil {
		return err
	}
	if s.PodDisruptionBudget == nil {
		err := budgets.Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &found.UID}})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("deleting the pod disruption budget %s/%s: %w", o.Namespace, name, err)
		}
		return nil
	}
	if _, err := budgets.Apply(ctx, s.PodDisruptionBudget, applyOptions); err != nil {
		return o.explainWrite("pod disruption budget", name, err)
	}
	return nil
}

// applyDeployment makes the colour's Deployment exactly what was rendered.
func (o Options) applyDeployment(ctx context.Context, s Stack) (*appsv1.Deployment, bool, error) {
	name := DeploymentName(o.Service, o.Colour)
	deployments := o.Client.AppsV1().Deployments(o.Namespace)
	found, err := deployments.Get(ctx, name, metav1.GetOptions{})
	if err := checkExisting("deployment", found, err, o.Service); err != nil {
		return nil, false, err
	}
	absent := err != nil
	replaced := !absent && found.Annotations[AnnotationRelease] != o.Release
	if !absent {
		// Server-side apply leaves fields of other managers as they are, and cannot change a selector.
		why := changedBy(found)
		if found.DeletionTimestamp != nil {
			why = "it is being deleted"
		} else if !mapsEqual(found.Spec.Selector, Selector(o.Service, o.Colour)) {
			why = "its selector is another"
		}
		if why != "" {
			fmt.Fprintf(o.Log, "%s: deleting the leftover deployment: %s\n", o.Colour, why)
			if err := deleteDeployment(ctx, o.Client, found); err != nil {
				return nil, replaced, err
			}
			if err := o.waitGone(ctx); err != nil {
				return nil, replaced, err
			}
			replaced = true
		}
	}
	if !absent || s.PodDisruptionBudget != nil {
		if err := o.applyBudget(ctx, s); err != nil {
			return nil, replaced, err
		}
	}
	d, err := deployments.Apply(ctx, s.Deployment, applyOptions)
	if err != nil {
		return nil, replaced, o.explainWrite("deployment", name, err)
	}
	// It may have been made by somebody else between the look and the write.
	if why := changedBy(d); why != "" && absent {
		return nil, replaced, fmt.Errorf("%w: deployment %s/%s: %s while it was being applied", ErrForeign, o.Namespace, name, why)
	}
	fmt.Fprintf(o.Log, "%s: applied %s with %d replicas\n", o.Colour, o.Version, o.Replicas)
	return d, replaced, nil
}

func (o Options) applyPreview(ctx context.Context, s Stack) error {
	name := PreviewName(o.Service)
	services := o.Client.CoreV1().Services(o.Namespace)
	found, err := services.Get(ctx, name, metav1.GetOptions{})
	if err := checkExisting("service", found, err, o.Service); err != nil {
		return err
	}
	if _, err := services.Apply(ctx, s.Preview, applyOptions); err != nil {
		return o.explainWrite("service", name, err)
	}
	return nil
}

// checkExisting passes an object that is absent or ours.
func checkExisting(kind string, object metav1.Object, err error, service string) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for a %s: %w", kind, err)
	}
	return owned(kind, object, service)
}

// explainWrite turns a refusal of the API server into a line that says what was refused and why.
func (o Options) explainWrite(kind, name string, err error) error {
	if apierrors.IsInvalid(err) {
		return fmt.Errorf("%w: the API server refuses the %s %s/%s: %s", ErrInvalid, kind, o.Namespace, name, oneLine(err.Error()))
	}
	return fmt.Errorf("applying the %s %s/%s: %w", kind, o.Namespace, name, err)
}

// changedBy says who else has set fields of the Deployment's spec, or "". The number of replicas does not count: it is
// set by every apply.
func changedBy(d *appsv1.Deployment) string {
	for _, entry := range d.ManagedFields {
		// What admission adds to our own writes is under our name, and comes back with every write.
		if entry.Subresource != "" || entry.FieldsV1 == nil || entry.Manager == Manager {
			continue
		}
		var fields struct {
			Spec map[string]json.RawMessage `json:"f:spec"`
		}
		if json.Unmarshal(entry.FieldsV1.GetRawBytes(), &fields) != nil {
			continue
		}
		delete(fields.Spec, "f:replicas")
		if len(fields.Spec) > 0 {
			return fmt.Sprintf("%s has changed its spec", entry.Manager)
		}
	}
	return ""
}

func mapsEqual(s *metav1.LabelSelector, want map[string]string) bool {
	if s == nil || len(s.MatchExpressions) > 0 || len(s.MatchLabels) != len(want) {
		return false
	}
	for k, v := range want {
		if s.MatchLabels[k] != v {
			return false
		}
	}
	return true
}

// waitEndpoints waits until the Service's endpoints hold n ready addresses, so that a question asked of it is answered.
func (o Options) waitEndpoints(ctx context.Context, service string, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	ready := 0
	for {
		slices, err := o.Client.DiscoveryV1().EndpointSlices(o.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + service})
		if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
			return fmt.Errorf("reading the endpoints of %s/%s: %w", o.Namespace, service, err)
		}
		if err == nil {
			addresses := map[string]bool{}
			for _, s := range slices.Items {
				for _, e := range s.Endpoints {
					// The pod must be of this colour: right after the change the slice still holds the other.
					if e.Conditions.Ready != nil && *e.Conditions.Ready && e.TargetRef != nil &&
						strings.HasPrefix(e.TargetRef.Name, DeploymentName(o.Service, o.Colour)+"-") {
						addresses[e.TargetRef.Name] = true
					}
				}
			}
			if ready = len(addresses); ready >= n {
				return nil
			}
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("%w: the endpoints of service %s/%s hold %d of %d ready pods after 30 s: is the endpoint slice controller running?",
				ErrNotReady, o.Namespace, service, ready, n)
		}
	}
}

// deleteDeployment deletes exactly this Deployment. Its pods are left to the garbage collector: see waitGone.
func deleteDeployment(ctx context.Context, client kubernetes.Interface, d *appsv1.Deployment) error {
	background := metav1.DeletePropagationBackground
	err := client.AppsV1().Deployments(d.Namespace).Delete(ctx, d.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &d.UID}, PropagationPolicy: &background,
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting deployment %s/%s: %w", d.Namespace, d.Name, err)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// mergePatch is a patch that fails when the object is no longer the one that was read.
func mergePatch(object metav1.Object, spec any) ([]byte, types.PatchType, error) {
	b, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": object.GetUID(), "resourceVersion": object.GetResourceVersion()},
		"spec":     spec,
	})
	return b, types.MergePatchType, err
}
