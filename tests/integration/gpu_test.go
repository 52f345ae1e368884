package integration

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const gpu = corev1.ResourceName("nvidia.com/gpu")

// TestGPUsAreExclusive: a pod that wants more GPUs than are free waits, and starts when they are given back. The devices
// are fake, the scheduling is not.
func TestGPUsAreExclusive(t *testing.T) {
	s := newSandbox(t)
	nodes, err := s.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Len(t, nodes.Items, 1)
	allocatable := nodes.Items[0].Status.Allocatable[gpu]
	require.EqualValues(t, 2, allocatable.Value(), "the sandbox has two fake GPUs")
	free := allocatable.Value() - s.heldGPUs(t)
	require.Positive(t, free, "somebody else holds all GPUs")

	s.gpuPod(t, "holder", free)
	s.waitRunning(t, "holder")
	s.gpuPod(t, "waiting", 1)
	require.Eventually(t, func() bool {
		pod, err := s.client.CoreV1().Pods(s.namespace).Get(t.Context(), "waiting", metav1.GetOptions{})
		require.NoError(t, err)
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonUnschedulable {
				require.Contains(t, c.Message, "Insufficient nvidia.com/gpu")
				return true
			}
		}
		return false
	}, 30*time.Second, 100*time.Millisecond)
	require.NoError(t, s.client.CoreV1().Pods(s.namespace).Delete(t.Context(), "holder", metav1.DeleteOptions{}))
	s.waitRunning(t, "waiting")
}

func (s sandbox) heldGPUs(t *testing.T) (held int64) {
	t.Helper()
	pods, err := s.client.CoreV1().Pods(metav1.NamespaceAll).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	for _, pod := range pods.Items {
		for _, c := range pod.Spec.Containers {
			q := c.Resources.Limits[gpu]
			held += q.Value()
		}
	}
	return held
}

func (s sandbox) gpuPod(t *testing.T, name string, gpus int64) {
	t.Helper()
	grace := int64(1)
	_, err := s.client.CoreV1().Pods(s.namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: "service", Image: s.image,
				Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{gpu: *resource.NewQuantity(gpus, resource.DecimalSI)}},
			}},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
}

func (s sandbox) waitRunning(t *testing.T, name string) {
	t.Helper()
	require.Eventually(t, func() bool {
		pod, err := s.client.CoreV1().Pods(s.namespace).Get(t.Context(), name, metav1.GetOptions{})
		require.NoError(t, err)
		return pod.Status.Phase == corev1.PodRunning
	}, time.Minute, 100*time.Millisecond, "%s does not run", name)
}
