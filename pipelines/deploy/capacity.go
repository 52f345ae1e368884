package deploy

import (
	"context"
	"fmt"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// capacity says in one line what is missing for all pods of the candidate to find a node, or "" when nothing is. Pods
// of the same colour do not count: they go before the candidate comes.
func (o Options) capacity(ctx context.Context) (string, error) {
	nodes, err := o.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	pods, err := o.Client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
		FieldSelector: "status.phase!=Succeeded,status.phase!=Failed",
	})
	if err != nil {
		return "", err
	}
	need := corev1.ResourceList{}
	requests, limits := o.resources()
	for name, text := range limits {
		// Without a request the limit is the request.
		if _, ok := requests[name]; !ok {
			requests[name] = text
		}
	}
	for name, text := range requests {
		if q, err := resource.ParseQuantity(text); err == nil && q.Sign() > 0 {
			need[corev1.ResourceName(name)] = q
		}
	}
	return o.shortage(nodes.Items, pods.Items, need), nil
}

// nodeRoom is what one node has left.
type nodeRoom struct {
	name string
	free corev1.ResourceList
	pods int64
}

func (o Options) shortage(nodes []corev1.Node, pods []corev1.Pod, need corev1.ResourceList) string {
	used := map[string]corev1.ResourceList{}
	count := map[string]int64{}
	for i := range pods {
		p := &pods[i]
		if p.Spec.NodeName == "" || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		if p.Namespace == o.Namespace && p.Labels[LabelService] == o.Service && p.Labels[LabelColour] == o.Colour {
			continue
		}
		if used[p.Spec.NodeName] == nil {
			used[p.Spec.NodeName] = corev1.ResourceList{}
		}
		add(used[p.Spec.NodeName], podRequests(p))
		count[p.Spec.NodeName]++
	}
	var rooms []nodeRoom
	offered := map[string]bool{}
	for i := range nodes {
		n := &nodes[i]
		for name := range n.Status.Allocatable {
			if strings.Contains(string(name), "/") {
				offered[string(name)] = true
			}
		}
		if !o.fits(n) {
			continue
		}
		free := corev1.ResourceList{}
		for name, q := range n.Status.Allocatable {
			left := q.DeepCopy()
			left.Sub(used[n.Name][name])
			free[name] = left
		}
		allowed := n.Status.Allocatable[corev1.ResourcePods]
		rooms = append(rooms, nodeRoom{n.Name, free, allowed.Value() - count[n.Name]})
	}
	if len(rooms) == 0 {
		return fmt.Sprintf("none of %d nodes is ready, matches the node selector %s and has only tolerated taints", len(nodes), o.selectorText())
	}
	return o.place(rooms, need, offered)
}

// place puts the pods on the nodes one after the other and says what runs out first.
func (o Options) place(rooms []nodeRoom, need corev1.ResourceList, offered map[string]bool) string {
	fit := int64(0)
	for _, r := range rooms {
		n := max(r.pods, 0)
		for name, q := range need {
			n = min(n, times(r.free[name], q))
		}
		fit += n
	}
	if fit >= int64(o.Replicas) {
		return ""
	}
	gpu := corev1.ResourceName(o.GPUResource)
	if _, ok := need[gpu]; ok && !offered[o.GPUResource] {
		known := make([]string, 0, len(offered))
		for name := range offered {
			known = append(known, name)
		}
		sort.Strings(known)
		if len(known) == 0 {
			return fmt.Sprintf("no node offers %s, and none any other device: is the device plugin running?", gpu)
		}
		return fmt.Sprintf("no node offers %s; nodes offer %s", gpu, strings.Join(known, ", "))
	}
	var short []string
	for name, q := range need {
		free, alone := resource.Quantity{}, int64(0)
		for _, r := range rooms {
			left := r.free[name]
			if left.Sign() > 0 {
				free.Add(left)
			}
			alone += times(left, q)
		}
		if alone < int64(o.Replicas) {
			short = append(short, fmt.Sprintf("%s: %d × %s needed, %s free", name, o.Replicas, q.String(), free.String()))
		}
	}
	sort.Strings(short)
	if len(short) == 0 {
		short = []string{"each resource is there, but not together on one node"}
	}
	return fmt.Sprintf("room for %d of %d pods on %d matching nodes (%s)", fit, o.Replicas, len(rooms), strings.Join(short, "; "))
}

// fits says whether the scheduler would consider the node.
func (o Options) fits(n *corev1.Node) bool {
	if n.Spec.Unschedulable || n.DeletionTimestamp != nil {
		return false
	}
	for key, value := range o.NodeSelector {
		if n.Labels[key] != value {
			return false
		}
	}
	ready := false
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			ready = c.Status == corev1.ConditionTrue
		}
	}
	for _, taint := range n.Spec.Taints {
		if taint.Effect != corev1.TaintEffectPreferNoSchedule && !o.tolerates(taint) {
			return false
		}
	}
	return ready
}

func (o Options) tolerates(taint corev1.Taint) bool {
	for _, t := range o.Tolerations {
		if (t.Effect != "" && t.Effect != taint.Effect) || (t.Key != "" && t.Key != taint.Key) {
			continue
		}
		if t.Operator == corev1.TolerationOpExists || (t.Key != "" && t.Value == taint.Value) {
			return true
		}
	}
	return false
}

func (o Options) selectorText() string {
	if len(o.NodeSelector) == 0 {
		return "(none)"
	}
	return metav1.FormatLabelSelector(metav1.SetAsLabelSelector(o.NodeSelector))
}

// podRequests is what the scheduler reserves for a pod.
func podRequests(p *corev1.Pod) corev1.ResourceList {
	total, sidecars, starting := corev1.ResourceList{}, corev1.ResourceList{}, corev1.ResourceList{}
	for _, c := range p.Spec.Containers {
		add(total, c.Resources.Requests)
	}
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(total, c.Resources.Requests)
			add(sidecars, c.Resources.Requests)
			continue
		}
		step := sidecars.DeepCopy()
		if step == nil {
			step = corev1.ResourceList{}
		}
		add(step, c.Resources.Requests)
		atLeast(starting, step)
	}
	atLeast(total, starting)
	add(total, p.Spec.Overhead)
	return total
}

func add(to, what corev1.ResourceList) {
	for name, q := range what {
		sum := to[name].DeepCopy()
		sum.Add(q)
		to[name] = sum
	}
}

func atLeast(to, what corev1.ResourceList) {
	for name, q := range what {
		if has := to[name]; has.Cmp(q) < 0 {
			to[name] = q.DeepCopy()
		}
	}
}

// times says how often need fits into free.
func times(free, need resource.Quantity) int64 {
	if free.Sign() <= 0 {
		return 0
	}
	return free.MilliValue() / max(need.MilliValue(), 1)
}
