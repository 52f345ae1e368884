package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"

	"github.com/greenlight-ci/greenlight/manifests"
	"github.com/greenlight-ci/greenlight/pipelines/cluster"
	"github.com/greenlight-ci/greenlight/pipelines/deploy"
	"github.com/greenlight-ci/greenlight/pipelines/observe"
	"github.com/greenlight-ci/greenlight/pipelines/traffic"
)

// ask returns the colour that answered.
func ask(client *http.Client, url string) (string, error) {
	response, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d: %s", response.StatusCode, body)
	}
	var answer struct{ Colour string }
	return answer.Colour, json.Unmarshal(body, &answer)
}

// TestColours releases, switches back and forth and takes down under load: no request may be lost.
func TestColours(t *testing.T) {
	s := newSandbox(t)
	blue := s.candidate(deploy.Blue, "v1.0.0-0000001")
	blue.Log, blue.Replicas, blue.MaxUnavailable = testLog{t}, 2, 1
	found, err := deploy.Preflight(t.Context(), blue)
	require.NoError(t, err)
	require.Equal(t, deploy.Blue, found.State.Candidate())
	result, err := deploy.Run(t.Context(), blue)
	require.NoError(t, err)
	t.Logf("first version ready after %.1f s", result.ReadySeconds)
	created, err := deploy.EnsureLiveService(t.Context(), blue)
	require.NoError(t, err)
	require.True(t, created)

	l := s.load(t, 200)
	green := s.candidate(deploy.Green, "v1.1.0-0000002")
	green.Log, green.Replicas = testLog{t}, 2
	_, err = deploy.Run(t.Context(), green)
	require.NoError(t, err)
	state, err := deploy.Colours(t.Context(), s.client, s.namespace, service)
	require.NoError(t, err)
	require.Equal(t, deploy.Blue, state.Live)
	require.EqualValues(t, 2, state.Colours[deploy.Green].Ready)

	router, err := traffic.New("service", traffic.Settings{Client: s.client, Namespace: s.namespace, Service: service, MinReady: 2})
	require.NoError(t, err)
	from, to := deploy.Blue, deploy.Green
	for range 5 {
		moved, err := traffic.Run(t.Context(), traffic.Options{Router: router, Observer: switchObserver{l}, From: from, To: to, Log: testLog{t}})
		require.NoError(t, err)
		require.True(t, moved.Confirmed)
		// Far above what it takes; the figure itself is for the benchmark.
		require.LessOrEqual(t, moved.Seconds, 5.0)
		from, to = to, from
	}
	// Five switches end on green.
	watched, err := observe.Run(t.Context(), observe.Options{
		Client: s.client, Observer: bakeObserver{l}, Namespace: s.namespace, Service: service, Colour: deploy.Green,
		Duration: 3 * time.Second, StrayGrace: time.Second,
	})
	require.NoError(t, err)
	require.Equal(t, 2, watched.MinReady)

	started := time.Now()
	require.NoError(t, deploy.Scale(t.Context(), s.target(deploy.Blue), 0))
	t.Logf("previous version gone after %.1f s", time.Since(started).Seconds())
	before := l.sample()
	time.Sleep(time.Second)
	l.end()
	after := l.sample()
	t.Logf("%d requests, %d failed; fresh %v, kept %v", after.Requests, after.Failed, after.Fresh, after.Kept)
	require.Zero(t, after.Failed, after.Failure)
	require.Equal(t, before.Kept[deploy.Blue], after.Kept[deploy.Blue], "kept connections have moved")

	require.ErrorIs(t, deploy.Scale(t.Context(), s.target(deploy.Green), 0), deploy.ErrLive)
	require.ErrorIs(t, router.Shift(t.Context(), traffic.Weights{deploy.Blue: 100}), traffic.ErrRefused, "a colour without pods gets no traffic")
	require.NoError(t, deploy.Scale(t.Context(), s.target(deploy.Blue), 1), "back from cold")
	require.NoError(t, deploy.Delete(t.Context(), s.target(deploy.Blue)))
}

// TestNotReady: what is wrong with a candidate is said in one line, and early where waiting would not help.
func TestNotReady(t *testing.T) {
	s := newSandbox(t)
	_, err := s.client.CoreV1().ConfigMaps(s.namespace).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	fault := func(what string) func(*deploy.Options) {
		return func(o *deploy.Options) { o.Env = map[string]string{"STANDIN": what} }
	}
	for name, c := range map[string]struct {
		change func(*deploy.Options)
		want   []string
		// early says that it does not take the whole timeout.
		early bool
	}{
		"image": {func(o *deploy.Options) { o.Image = s.missing }, []string{"cannot be pulled", "not found"}, true},
		"registry": {func(o *deploy.Options) {
			o.Image = "127.0.0.1:9/none@" + s.image[len(s.image)-71:]
			o.Timeout = 10 * time.Second
		}, []string{"cannot be pulled", "connection refused"}, false},
		"crash":   {fault("crash"), []string{"CrashLoopBackOff", "exit code 3", "RuntimeError: the weights are not there"}, true},
		"memory":  {fault("memory"), []string{"OOMKilled", "64Mi"}, true},
		"unready": {func(o *deploy.Options) { fault("unready")(o); o.Timeout = 15 * time.Second }, []string{"Startup probe failed", "503", "not ready: no device context"}, false},
		"startup": {func(o *deploy.Options) { fault("unready")(o); o.Probes.StartupSeconds = 3 }, []string{"within its startup time", "503"}, true},
		"GPUs":    {func(o *deploy.Options) { o.Device, o.GPUs, o.UnschedulableGrace = "cuda", 99, 5*time.Second }, []string{"unschedulable", "Insufficient nvidia.com/gpu"}, true},
		"root":    {func(o *deploy.Options) { o.Image = s.rootImage }, []string{"CreateContainerConfigError", "runAsNonRoot"}, true},
		"config map": {func(o *deploy.Options) {
			o.EnvFrom = []deploy.EnvFrom{{Name: "X", ConfigMap: "settings", Key: "missing"}}
		}, []string{"CreateContainerConfigError", "missing"}, true},
		"volume": {func(o *deploy.Options) { o.Mounts = []deploy.Mount{{Path: "/keys", Secret: "nowhere"}} }, []string{"volume", `secret "nowhere" not found`}, true},
		"selector": {func(o *deploy.Options) {
			o.NodeSelector = map[string]string{"no": "where"}
			o.UnschedulableGrace = 3 * time.Second
		}, []string{"unschedulable", "affinity/selector"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Each has a service of its own, so that they can run together.
			o := s.candidate(deploy.Blue, "v1.0.0-0000001")
			o.Service, o.Timeout = "standin-"+strings.ReplaceAll(strings.ToLower(name), " ", "-"), time.Minute
			c.change(&o)
			started := time.Now()
			_, err := deploy.Run(t.Context(), o)
			t.Logf("%.1f s: %v", time.Since(started).Seconds(), err)
			require.ErrorIs(t, err, deploy.ErrNotReady)
			for _, want := range c.want {
				require.ErrorContains(t, err, want)
			}
			require.NotContains(t, err.Error(), "\n")
			if c.early {
				require.Less(t, time.Since(started), 50*time.Second)
			}
			require.NoError(t, deploy.Scale(t.Context(), deploy.Target{Client: s.client, Namespace: s.namespace, Service: o.Service, Colour: o.Colour, Timeout: time.Minute}, 0))
		})
	}
}

func TestQuota(t *testing.T) {
	s := newSandbox(t)
	_, err := s.client.CoreV1().ResourceQuotas(s.namespace).Create(t.Context(), &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "small"}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"pods": resource.MustParse("0")}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		q, err := s.client.CoreV1().ResourceQuotas(s.namespace).Get(t.Context(), "small", metav1.GetOptions{})
		return err == nil && len(q.Status.Hard) > 0
	}, 20*time.Second, 100*time.Millisecond)
	o := s.candidate(deploy.Blue, "v1.0.0-0000001")
	o.UnschedulableGrace = 3 * time.Second
	_, err = deploy.Run(t.Context(), o)
	require.ErrorIs(t, err, deploy.ErrNotReady)
	require.ErrorContains(t, err, "exceeded quota: small")
}

// TestLeftover: a colour is replaced whole, whatever was done to it.
func TestLeftover(t *testing.T) {
	s := newSandbox(t)
	o := s.candidate(deploy.Blue, "v1.0.0-0000001")
	o.Env = map[string]string{"STANDIN": "crash", "OLD": "1"}
	_, err := deploy.Run(t.Context(), o)
	require.ErrorIs(t, err, deploy.ErrNotReady)
	deployments := s.client.AppsV1().Deployments(s.namespace)
	name := deploy.DeploymentName(service, deploy.Blue)
	edit := `{"spec":{"template":{"spec":{"priorityClassName":"system-node-critical","hostAliases":[{"ip":"10.0.0.1","hostnames":["x"]}]}}}}`
	_, err = deployments.Patch(t.Context(), name, types.StrategicMergePatchType, []byte(edit), metav1.PatchOptions{FieldManager: "kubectl-edit"})
	require.NoError(t, err)

	o.Version, o.Release, o.Env, o.Log = "v1.1.0-0000002", "r2", nil, testLog{t}
	result, err := deploy.Run(t.Context(), o)
	require.NoError(t, err)
	require.True(t, result.Replaced)
	d, err := deployments.Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	require.Empty(t, d.Spec.Template.Spec.PriorityClassName)
	require.Empty(t, d.Spec.Template.Spec.HostAliases)

	// The same again is no change; after a scale to zero and a new release, nothing of the old one is left either.
	result, err = deploy.Run(t.Context(), o)
	require.NoError(t, err)
	require.False(t, result.Replaced)
	require.NoError(t, deploy.Scale(t.Context(), s.target(deploy.Blue), 0))
	o.Version, o.Release, o.Limits, o.Replicas = "v1.2.0-0000003", "r3", nil, 2
	result, err = deploy.Run(t.Context(), o)
	require.NoError(t, err)
	require.EqualValues(t, 2, result.Ready)
	d, err = deployments.Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	require.Empty(t, d.Spec.Template.Spec.Containers[0].Resources.Limits)
	require.False(t, apierrors.IsNotFound(err))
}

// TestPermissions: the RBAC that is handed to administrators is enough for a release, and preflight says what misses.
func TestPermissions(t *testing.T) {
	s := newSandbox(t)
	text, err := manifests.RenderRBAC(manifests.Permissions{Namespace: s.namespace})
	require.NoError(t, err)
	apply(t, s.client, text)
	t.Cleanup(func() {
		_ = s.client.RbacV1().ClusterRoleBindings().Delete(context.Background(), "greenlight-capacity-"+s.namespace+"-greenlight", metav1.DeleteOptions{})
	})
	limited := s.as(t, "greenlight")
	o := s.candidate(deploy.Blue, "v1.0.0-0000001")
	o.Client, o.MaxUnavailable = limited, 1
	require.Eventually(t, func() bool {
		found, err := deploy.Preflight(t.Context(), o)
		return err == nil && len(found.Notes) == 0
	}, 10*time.Second, 200*time.Millisecond, "RBAC takes a moment")
	_, err = deploy.Run(t.Context(), o)
	require.NoError(t, err)
	_, err = deploy.EnsureLiveService(t.Context(), o)
	require.NoError(t, err)
	o.Colour, o.Version, o.Release = deploy.Green, "v1.1.0-0000002", "r2"
	_, err = deploy.Run(t.Context(), o)
	require.NoError(t, err)
	router, err := traffic.New("service", traffic.Settings{Client: limited, Namespace: s.namespace, Service: service})
	require.NoError(t, err)
	require.NoError(t, router.Shift(t.Context(), traffic.Weights{deploy.Green: 100}))
	_, err = observe.Run(t.Context(), observe.Options{Client: limited, Namespace: s.namespace, Service: service, Colour: deploy.Green, Duration: time.Second})
	require.NoError(t, err)
	blue := s.target(deploy.Blue)
	blue.Client = limited
	require.NoError(t, deploy.Scale(t.Context(), blue, 0))
	require.NoError(t, deploy.Delete(t.Context(), blue))

	o.Client = s.as(t, "default")
	_, err = deploy.Preflight(t.Context(), o)
	require.ErrorIs(t, err, deploy.ErrPreflight)
	require.ErrorContains(t, err, "patch, delete deployments.apps")
	require.NotContains(t, err.Error(), "\n")
	t.Log(err)
	_, err = deploy.Run(t.Context(), o)
	require.True(t, apierrors.IsForbidden(err), err)
}

// as is a client with the rights of a service account.
func (s sandbox) as(t *testing.T, account string) kubernetes.Interface {
	t.Helper()
	var token *authenticationv1.TokenRequest
	require.Eventually(t, func() bool {
		var err error
		token, err = s.client.CoreV1().ServiceAccounts(s.namespace).CreateToken(t.Context(), account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
		return err == nil
	}, 20*time.Second, 200*time.Millisecond)
	cfg, _, err := cluster.Load(cluster.Options{})
	require.NoError(t, err)
	cfg.BearerToken, cfg.CertData, cfg.KeyData, cfg.CertFile, cfg.KeyFile = token.Status.Token, nil, nil, "", ""
	client, err := kubernetes.NewForConfig(cfg)
	require.NoError(t, err)
	return client
}

// apply creates the objects of the RBAC file.
func apply(t *testing.T, client kubernetes.Interface, text []byte) {
	t.Helper()
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		var raw json.RawMessage
		err := decoder.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
		var kind metav1.TypeMeta
		require.NoError(t, json.Unmarshal(raw, &kind))
		switch kind.Kind {
		case "ServiceAccount":
			o := decode[corev1.ServiceAccount](t, raw)
			_, err = client.CoreV1().ServiceAccounts(o.Namespace).Create(t.Context(), o, metav1.CreateOptions{})
		case "Role":
			o := decode[rbacv1.Role](t, raw)
			_, err = client.RbacV1().Roles(o.Namespace).Create(t.Context(), o, metav1.CreateOptions{})
		case "RoleBinding":
			o := decode[rbacv1.RoleBinding](t, raw)
			_, err = client.RbacV1().RoleBindings(o.Namespace).Create(t.Context(), o, metav1.CreateOptions{})
		case "ClusterRole":
			_, err = client.RbacV1().ClusterRoles().Create(t.Context(), decode[rbacv1.ClusterRole](t, raw), metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) {
				err = nil
			}
		case "ClusterRoleBinding":
			_, err = client.RbacV1().ClusterRoleBindings().Create(t.Context(), decode[rbacv1.ClusterRoleBinding](t, raw), metav1.CreateOptions{})
		default:
			t.Fatalf("unexpected %s", kind.Kind)
		}
		require.NoError(t, err)
	}
}

func decode[T any](t *testing.T, raw []byte) *T {
	t.Helper()
	o := new(T)
	require.NoError(t, json.Unmarshal(raw, o))
	return o
}
