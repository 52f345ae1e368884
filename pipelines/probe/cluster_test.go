package probe

import (
	"context"
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/greenlight-ci/greenlight/pipelines/probe/watch"
	"github.com/greenlight-ci/greenlight/pipelines/smoke"
)

// TestInACluster needs KUBECONFIG and, in GREENLIGHT_TEST_PROBE_IMAGE, the probe's image as that cluster pulls it. It runs in a namespace
// that enforces the restricted Pod Security standard, since users' namespaces do.
func TestInACluster(t *testing.T) {
	image, kubeconfig := os.Getenv("GREENLIGHT_TEST_PROBE_IMAGE"), os.Getenv("KUBECONFIG")
	if image == "" || kubeconfig == "" {
		t.Skip("needs KUBECONFIG and GREENLIGHT_TEST_PROBE_IMAGE")
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	require.NoError(t, err)
	client, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	created, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "greenlight-probe-test-", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
	}}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		// The test's own context has ended by now.
		require.NoError(t, client.CoreV1().Namespaces().Delete(context.Background(), created.Name, metav1.DeleteOptions{}))
	})
	options := func(subcommand string, content any) Options {
		encoded, err := json.Marshal(content)
		require.NoError(t, err)
		return Options{
			Client: client, Namespace: created.Name, Name: "test-" + subcommand, Image: image, Command: []string{Binary, subcommand},
			Files: map[string][]byte{"options.json": encoded}, Timeout: time.Minute, Log: t.Output(),
		}
	}
	nobody := "http://nobody." + created.Name

	encoded, err := Run(t.Context(), options("smoke", smoke.Options{
		URL: nobody, Device: smoke.CPU, ReadyTimeout: time.Second,
		Cases: []smoke.Case{{Expect: smoke.Expectation{Status: 400}}},
	}))
	require.NoError(t, err)
	var smoked smoke.Result
	require.NoError(t, json.Unmarshal(encoded, &smoked))
	require.False(t, smoked.Passed)
	require.Contains(t, smoked.Reason, "does not resolve")

	_, err = Run(t.Context(), options("smoke", smoke.Options{URL: nobody, Device: "tpu"}))
	require.ErrorIs(t, err, ErrNotRun)
	require.ErrorContains(t, err, `device must be "cpu" or "cuda"`)

	missing := options("smoke", smoke.Options{})
	missing.Image += "-none"
	_, err = Run(t.Context(), missing)
	require.ErrorIs(t, err, ErrImage)

	session, err := Start(t.Context(), options("watch", watch.Options{URL: nobody, Rate: 20}))
	require.NoError(t, err)
	for event := range session.Events() {
		var seen watch.Event
		require.NoError(t, json.Unmarshal(event.JSON, &seen))
		if seen.Type == watch.Tick && seen.Counts.Failed > 5 {
			break
		}
	}
	encoded, err = session.Stop(t.Context())
	require.NoError(t, err, "the result of a stopped probe comes through")
	var watched watch.Result
	require.NoError(t, json.Unmarshal(encoded, &watched))
	require.Equal(t, watched.Requests, watched.Failed)
	require.Equal(t, watched.Failed, watched.Reasons["unreachable"])

	jobs, err := client.BatchV1().Jobs(created.Name).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Empty(t, jobs.Items)
}
