package release

import (
	"testing"

	"github.com/stretchr/testify/require"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestJournalKeepsIntentAndOutcome(t *testing.T) {
	client := fake.NewClientset()
	j, left, err := OpenJournal(t.Context(), client, "ns", "digits")
	require.NoError(t, err)
	require.Nil(t, left)
	entry := &Entry{ID: "1", Version: "v1.0.0-0123abc", Candidate: "blue", Phase: Started}
	require.NoError(t, j.Write(t.Context(), entry))
	require.NoError(t, j.Intend(t.Context(), entry, "deploy"))

	_, left, err = OpenJournal(t.Context(), client, "ns", "digits")
	require.NoError(t, err)
	require.Equal(t, "deploy", left.Steps[0].Name)
	require.Nil(t, left.Steps[0].OutcomeAt, "a process that died here left an intent without an outcome")

	require.NoError(t, j.Conclude(t.Context(), entry, "passed"))
	_, left, err = OpenJournal(t.Context(), client, "ns", "digits")
	require.NoError(t, err)
	require.Equal(t, "passed", left.Steps[0].Outcome)
	require.NotNil(t, left.Steps[0].OutcomeAt)
}

func TestAJournalThatCannotBeReadIsAnError(t *testing.T) {
	cases := map[string]struct{ content, message string }{
		"empty":         {"", "malformed"},
		"not JSON":      {"phase: started", "malformed"},
		"other schema":  {`{"schema": 2, "phase": "started"}`, "schema 2"},
		"unknown phase": {`{"schema": 1, "phase": "dancing"}`, "dancing"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset()
			j, _, err := OpenJournal(t.Context(), client, "ns", "digits")
			require.NoError(t, err)
			require.NoError(t, j.Write(t.Context(), &Entry{Phase: Started}))
			cm, err := client.CoreV1().ConfigMaps("ns").Get(t.Context(), "greenlight-digits-journal", meta.GetOptions{})
			require.NoError(t, err)
			cm.Data[journalKey] = c.content
			_, err = client.CoreV1().ConfigMaps("ns").Update(t.Context(), cm, meta.UpdateOptions{})
			require.NoError(t, err)
			_, _, err = OpenJournal(t.Context(), client, "ns", "digits")
			require.ErrorContains(t, err, c.message)
			require.ErrorContains(t, err, "greenlight-digits-journal")
		})
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add([]byte(`{"schema":1,"id":"1","phase":"started","steps":[{"name":"deploy"}]}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, data []byte) {
		entry, err := parseEntry(data)
		require.True(t, (entry == nil) == (err != nil))
	})
}
