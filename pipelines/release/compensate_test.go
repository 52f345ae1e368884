package release

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/ptr"

	"github.com/greenlight-ci/greenlight/pipelines/config"
	"github.com/greenlight-ci/greenlight/pipelines/deploy"
	"github.com/greenlight-ci/greenlight/pipelines/report"
)

// colours is a cluster with both colours of digits at one replica, a ready pod of each that is in ready, and the live
// Service on live.
func colours(live string, ready ...string) *fake.Clientset {
	client := fake.NewClientset()
	ctx := context.Background()
	labels := func(colour string) map[string]string {
		l := deploy.Selector("digits", colour)
		l[deploy.LabelManagedBy], l[deploy.LabelVersion] = deploy.Manager, "v1.0.0-"+colour
		return l
	}
	for _, colour := range []string{deploy.Blue, deploy.Green} {
		d := &apps.Deployment{
			ObjectMeta: meta.ObjectMeta{Name: "digits-" + colour, Namespace: "ns", Labels: labels(colour)},
			Spec:       apps.DeploymentSpec{Replicas: ptr.To(int32(1))},
		}
		for _, r := range ready {
			if r == colour {
				d.Status.ReadyReplicas = 1
			}
		}
		must(client.AppsV1().Deployments("ns").Create(ctx, d, meta.CreateOptions{}))
	}
	if live != "" {
		must(client.CoreV1().Services("ns").Create(ctx, &core.Service{
			ObjectMeta: meta.ObjectMeta{Name: "digits", Namespace: "ns", Labels: labels(live)},
			Spec:       core.ServiceSpec{Selector: deploy.Selector("digits", live)},
		}, meta.CreateOptions{}))
	}
	for _, colour := range ready {
		// The pods of the colour that is scaled to zero would have to go, and no kubelet is here to end them.
		if colour == live {
			continue
		}
		must(client.CoreV1().Pods("ns").Create(ctx, &core.Pod{
			ObjectMeta: meta.ObjectMeta{Name: "digits-" + colour + "-1", Namespace: "ns", Labels: labels(colour)},
			Status:     core.PodStatus{Phase: core.PodRunning, Conditions: []core.PodCondition{{Type: core.PodReady, Status: core.ConditionTrue}}},
		}, meta.CreateOptions{}))
	}
	return client
}

func must[T any](_ T, err error) {
	if err != nil {
		panic(err)
	}
}

func testRun(t *testing.T, client kubernetes.Interface) *run {
	t.Helper()
	c, err := config.Parse([]byte("service: digits\nimage: {repository: r.example.com/digits}\ndevice: cpu\n"), "greenlight.yaml")
	require.NoError(t, err)
	return newRun(Options{Service: Service{Config: c, Client: client, Namespace: "ns", Holder: "test"}, ID: "new"})
}

// replicas of both colours, and which is live.
func observed(t *testing.T, client kubernetes.Interface) (blue, green int32, live string) {
	t.Helper()
	state, err := deploy.Colours(t.Context(), client, "ns", "digits")
	require.NoError(t, err)
	return state.Colours[deploy.Blue].Replicas, state.Colours[deploy.Green].Replicas, state.Live
}

func TestASuccessorRestoresWhatAnInterruptedReleaseLeft(t *testing.T) {
	cases := map[string]struct {
		live   string
		ready  []string
		entry  Entry
		blue   int32
		green  int32
		after  string
		status report.Status
	}{
		"died before the switch": {
			live: "blue", ready: []string{"blue"}, entry: Entry{Phase: Started, Candidate: "green", Previous: "blue"},
			blue: 1, green: 0, after: "blue", status: report.Failed,
		},
		"died after the intent to switch, before the switch": {
			live: "blue", ready: []string{"blue"}, entry: Entry{Phase: Switching, Candidate: "green", Previous: "blue"},
			blue: 1, green: 0, after: "blue", status: report.Failed,
		},
		"died after the switch": {
			live: "green", ready: []string{"blue", "green"}, entry: Entry{Phase: Switching, Candidate: "green", Previous: "blue"},
			blue: 1, green: 0, after: "blue", status: report.RolledBack,
		},
		"died while moving back": {
			live: "blue", ready: []string{"blue"}, entry: Entry{Phase: RollingBack, Candidate: "green", Previous: "blue"},
			blue: 1, green: 0, after: "blue", status: report.RolledBack,
		},
		"died before the teardown": {
			live: "green", ready: []string{"green"}, entry: Entry{Phase: Baked, Candidate: "green", Previous: "blue"},
			blue: 0, green: 1, after: "green", status: report.Released,
		},
		"a first release died before there was a live Service": {
			live: "", entry: Entry{Phase: Switching, Candidate: "blue"},
			blue: 0, green: 1, after: "", status: report.Failed,
		},
		"a first release died after it": {
			live: "blue", ready: []string{"blue"}, entry: Entry{Phase: Switching, Candidate: "blue"},
			blue: 0, green: 1, after: "", status: report.RolledBack,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			client := colours(c.live, c.ready...)
			journal, _, err := OpenJournal(t.Context(), client, "ns", "digits")
			require.NoError(t, err)
			c.entry.ID, c.entry.Version = "old", "v1.0.0-0123abc"
			require.NoError(t, journal.Write(t.Context(), &c.entry))

			r := testRun(t, client)
			require.NoError(t, r.locked(t.Context(), func(context.Context) error { return nil }))
			blue, green, live := observed(t, client)
			require.Equal(t, c.blue, blue, "blue")
			require.Equal(t, c.green, green, "green")
			require.Equal(t, c.after, live, "live")
			_, left, err := OpenJournal(t.Context(), client, "ns", "digits")
			require.NoError(t, err)
			require.Equal(t, Ended, left.Phase)
			require.EqualValues(t, c.status, left.Status)
		})
	}
}

func TestTrafficStaysWhereItIsWhenThePreviousColourHasNoReadyPod(t *testing.T) {
	client := colours("green", "green")
	journal, _, err := OpenJournal(t.Context(), client, "ns", "digits")
	require.NoError(t, err)
	require.NoError(t, journal.Write(t.Context(), &Entry{ID: "old", Phase: Switching, Candidate: "green", Previous: "blue"}))
	r := testRun(t, client)
	err = r.locked(t.Context(), func(context.Context) error { return nil })
	require.ErrorContains(t, err, "no ready pod")
	_, _, live := observed(t, client)
	require.Equal(t, "green", live)
}

func TestFollowCompensatesAndSaysHowItEnded(t *testing.T) {
	no := errors.New("NaN in answer 3")
	cases := map[string]struct {
		fail   error
		at     Phase
		live   string
		kind   error
		status report.Status
	}{
		"a gate before the switch":   {rejected(no), Started, "blue", ErrRejected, report.Rejected},
		"an error before the switch": {no, Started, "blue", nil, report.Failed},
		"a gate after the switch":    {rejected(no), Switching, "green", ErrRolledBack, report.RolledBack},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			client := colours(c.live, "blue")
			r := testRun(t, client)
			later := false
			err := r.locked(t.Context(), func(ctx context.Context) error {
				r.entry = &Entry{ID: "new", Candidate: "green", Previous: "blue", Phase: Started}
				require.NoError(t, r.journal.Write(ctx, r.entry))
				return r.follow(ctx, []step{
					{name: "good", run: func(context.Context) (result, error) { return result{detail: "fine"}, nil }},
					{name: "bad", phase: c.at, run: func(context.Context) (result, error) { return result{}, c.fail }},
					{name: "later", run: func(context.Context) (result, error) { later = true; return result{}, nil }},
				})
			})
			require.ErrorIs(t, err, no)
			if c.kind != nil {
				require.ErrorIs(t, err, c.kind)
			}
			require.False(t, later, "nothing runs after a no")
			blue, green, live := observed(t, client)
			require.EqualValues(t, 1, blue)
			require.Zero(t, green, "the candidate holds nothing")
			require.Equal(t, "blue", live)
			rep := r.finish(t.Context(), err)
			require.Equal(t, c.status, rep.Status)
			require.Equal(t, no.Error(), rep.Reason)
			require.Equal(t, "blue", rep.Live.Colour)
			require.Len(t, rep.Stages, 2)
		})
	}
}

func TestAReleaseThatLostItsLockTouchesNothingMore(t *testing.T) {
	client := colours("blue", "blue", "green")
	r := testRun(t, client)
	ctx, cancel := context.WithCancelCause(t.Context())
	err := r.locked(ctx, func(context.Context) error {
		r.entry = &Entry{ID: "new", Candidate: "green", Previous: "blue", Phase: Started}
		return r.follow(ctx, []step{{name: "slow", run: func(context.Context) (result, error) {
			cancel(ErrLockLost)
			return result{}, errors.New("interrupted")
		}}})
	})
	require.ErrorIs(t, err, ErrLockLost)
	_, green, _ := observed(t, client)
	require.EqualValues(t, 1, green, "the successor compensates, not we")
}
