package deploy

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sync/errgroup"
	authv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Access is one thing that a release must be allowed to do.
type Access struct {
	// Group is the API group, "" for the core.
	Group string `json:"group,omitempty"`
	// Resource is plural, with its subresource, such as pods/log.
	Resource string `json:"resource"`
	Verb     string `json:"verb"`
	// Name limits it to one object. Default: all.
	Name string `json:"name,omitempty"`
}

func (a Access) String() string {
	resource := a.Resource
	if a.Group != "" {
		resource += "." + a.Group
	}
	if a.Name != "" {
		resource += "/" + a.Name
	}
	return a.Verb + " " + resource
}

// NeededAccess lists what a release does in the namespace of the service: this package, the router, the gates that run
// in the cluster, the journal and the lock. manifests/kubernetes/rbac.yaml grants it.
func NeededAccess() []Access {
	var out []Access
	add := func(group, resource string, verbs ...string) {
		for _, verb := range verbs {
			out = append(out, Access{Group: group, Resource: resource, Verb: verb})
		}
	}
	add("apps", "deployments", "get", "list", "watch", "create", "patch", "delete")
	add("", "services", "get", "list", "watch", "create", "patch", "delete")
	add("", "serviceaccounts", "get", "create", "patch")
	add("", "pods", "get", "list", "watch", "delete", "deletecollection")
	add("", "pods/log", "get")
	add("", "events", "list")
	add("", "configmaps", "get", "create", "update", "delete")
	add("batch", "jobs", "get", "list", "watch", "create", "delete")
	add("coordination.k8s.io", "leases", "get", "create", "update", "delete")
	add("discovery.k8s.io", "endpointslices", "list")
	add("policy", "poddisruptionbudgets", "get", "create", "patch", "delete")
	return out
}

// MissingAccess asks the API server which of the accesses it would refuse, sorted as given. One request answers for
// most clusters; what that does not settle is asked for one by one.
func MissingAccess(ctx context.Context, client kubernetes.Interface, namespace string, accesses []Access) ([]Access, error) {
	review, err := client.AuthorizationV1().SelfSubjectRulesReviews().Create(ctx, &authv1.SelfSubjectRulesReview{
		Spec: authv1.SelfSubjectRulesReviewSpec{Namespace: namespace},
	}, metav1.CreateOptions{})
	var open []Access
	for _, a := range accesses {
		if err != nil || !granted(review.Status.ResourceRules, a) {
			open = append(open, a)
		}
	}
	refused := make([]bool, len(open))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i, a := range open {
		group.Go(func() error {
			resource, sub, _ := strings.Cut(a.Resource, "/")
			answer, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authv1.SelfSubjectAccessReview{
				Spec: authv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authv1.ResourceAttributes{
					Namespace: namespace, Group: a.Group, Resource: resource, Subresource: sub, Verb: a.Verb, Name: a.Name,
				}},
			}, metav1.CreateOptions{})
			if err != nil {
				return fmt.Errorf("asking whether %q is allowed in %s: %w", a, namespace, err)
			}
			refused[i] = !answer.Status.Allowed
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var missing []Access
	for i, a := range open {
		if refused[i] {
			missing = append(missing, a)
		}
	}
	return missing, nil
}

// granted says whether the rules grant a for certain. It never says yes wrongly: a rule is a grant, whatever else the
// server has not listed.
func granted(rules []authv1.ResourceRule, a Access) bool {
	has := func(list []string, value string) bool {
		return slices.Contains(list, value) || slices.Contains(list, "*")
	}
	for _, r := range rules {
		if !has(r.Verbs, a.Verb) || !has(r.APIGroups, a.Group) || !has(r.Resources, a.Resource) {
			continue
		}
		if len(r.ResourceNames) == 0 || (a.Name != "" && slices.Contains(r.ResourceNames, a.Name)) {
			return true
		}
	}
	return false
}

// describe writes accesses as "create, patch deployments.apps; get pods/log".
func describe(accesses []Access) string {
	verbs := map[string][]string{}
	var order []string
	for _, a := range accesses {
		_, what, _ := strings.Cut(a.String(), " ")
		if verbs[what] == nil {
			order = append(order, what)
		}
		verbs[what] = append(verbs[what], a.Verb)
	}
	sort.Strings(order)
	parts := make([]string, 0, len(order))
	for _, what := range order {
		parts = append(parts, strings.Join(verbs[what], ", ")+" "+what)
	}
	return strings.Join(parts, "; ")
}
