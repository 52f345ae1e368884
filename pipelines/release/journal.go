package release

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// ErrJournalMoved says that somebody else wrote the journal since this process read it.
var ErrJournalMoved = errors.New("the journal was written by another release")

const journalKey = "journal.json"

// Phase is how far a release got, as far as that decides what a successor has to do.
type Phase string

// The phases of a release, in order. Between Switching and Ended the live traffic may be on either colour.
const (
	// Started: nothing but the candidate was touched.
	Started Phase = "started"
	// Switching: the traffic is being moved, or was moved and is being watched.
	Switching Phase = "switching"
	// Baked: the candidate is good and only the previous colour is left to take down.
	Baked Phase = "baked"
	// RollingBack: the traffic is being moved back.
	RollingBack Phase = "rolling-back"
	// Ended: nothing is left to do.
	Ended Phase = "ended"
)

// Entry is what the journal holds: the newest release of a service.
type Entry struct {
	Schema    int    `json:"schema"`
	ID        string `json:"id"`
	Version   string `json:"version"`
	Image     string `json:"image"`
	Candidate string `json:"candidate"`
	// Previous is the colour that was live when the release began; empty when nothing was.
	Previous string `json:"previous"`
	Phase    Phase  `json:"phase"`
	// Steps hold each step's intent, written before it, and outcome, written after it.
	Steps     []Record  `json:"steps"`
	StartedAt time.Time `json:"startedAt"`
	// Status and Reason are the release's end, once Phase is Ended.
	Status string `json:"status,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// Record is one step.
type Record struct {
	Name      string     `json:"name"`
	IntentAt  time.Time  `json:"intentAt"`
	OutcomeAt *time.Time `json:"outcomeAt,omitempty"`
	Outcome   string     `json:"outcome,omitempty"`
}

// A Journal is the ConfigMap in which the newest release of a service is recorded. Each write carries the
// resourceVersion of the last read, so that two writers cannot both believe that they hold it.
type Journal struct {
	client    kubernetes.Interface
	namespace string
	name      string
	// version is the ConfigMap's resourceVersion, once it exists.
	version string
	exists  bool
}

// OpenJournal reads the journal of service. The entry is nil where there is no journal yet.
func OpenJournal(ctx context.Context, client kubernetes.Interface, namespace, service string) (*Journal, *Entry, error) {
	j := &Journal{client: client, namespace: namespace, name: "greenlight-" + service + "-journal"}
	cm, err := client.CoreV1().ConfigMaps(namespace).Get(ctx, j.name, meta.GetOptions{})
	if apierrors.IsNotFound(err) {
		return j, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reading the journal %s/%s: %w", namespace, j.name, err)
	}
	j.version, j.exists = cm.ResourceVersion, true
	entry, err := parseEntry([]byte(cm.Data[journalKey]))
	if err != nil {
		return nil, nil, fmt.Errorf("reading the journal: ConfigMap %s/%s: %w; if it was edited by hand, restore it, or delete it when no release is under way", namespace, j.name, err)
	}
	return j, entry, nil
}

func parseEntry(data []byte) (*Entry, error) {
	entry := &Entry{}
	if err := json.Unmarshal(data, entry); err != nil {
		return nil, fmt.Errorf("%s is malformed: %w", journalKey, err)
	}
	if entry.Schema != 1 {
		return nil, fmt.Errorf("%s has schema %d, this greenlight knows 1", journalKey, entry.Schema)
	}
	switch entry.Phase {
	case Started, Switching, Baked, RollingBack, Ended:
	default:
		return nil, fmt.Errorf("%s has the unknown phase %q", journalKey, entry.Phase)
	}
	return entry, nil
}

// Write records the entry.
func (j *Journal) Write(ctx context.Context, entry *Entry) error {
	entry.Schema = 1
	data, err := json.MarshalIndent(entry, "", " ")
	if err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	cm := &core.ConfigMap{
		ObjectMeta: meta.ObjectMeta{
			Name: j.name, Namespace: j.namespace, ResourceVersion: j.version,
			Labels: map[string]string{"app.kubernetes.io/managed-by": "greenlight"},
		},
		Data: map[string]string{journalKey: string(data)},
	}
	configMaps := j.client.CoreV1().ConfigMaps(j.namespace)
	if !j.exists {
		cm, err = configMaps.Create(ctx, cm, meta.CreateOptions{})
	} else {
		cm, err = configMaps.Update(ctx, cm, meta.UpdateOptions{})
	}
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("writing the journal %s/%s: %w", j.namespace, j.name, ErrJournalMoved)
	}
	if err != nil {
		return fmt.Errorf("writing the journal %s/%s: %w", j.namespace, j.name, err)
	}
	j.version, j.exists = cm.ResourceVersion, true
	return nil
}

// Intend records that the step is about to run.
func (j *Journal) Intend(ctx context.Context, entry *Entry, step string) error {
	entry.Steps = append(entry.Steps, Record{Name: step, IntentAt: time.Now().UTC()})
	return j.Write(ctx, entry)
}

// Conclude records the outcome of the step that was intended last.
func (j *Journal) Conclude(ctx context.Context, entry *Entry, outcome string) error {
	at := time.Now().UTC()
	last := &entry.Steps[len(entry.Steps)-1]
	last.OutcomeAt, last.Outcome = &at, outcome
	return j.Write(ctx, entry)
}
