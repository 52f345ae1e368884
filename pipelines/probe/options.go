package probe

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"

	"github.com/greenlight-ci/greenlight/pipelines/probe/protocol"
)

var (
	// ErrOptions is wrapped by errors about the options: nothing was created.
	ErrOptions = errors.New("probe options")
	// ErrImage is wrapped when the probe's image cannot be pulled or started.
	ErrImage = errors.New("probe image")
	// ErrNotRun is wrapped when the probe could not be run, or ended without a result.
	ErrNotRun = errors.New("probe did not run")
	// ErrTimeout is wrapped when the probe did not end within its timeout.
	ErrTimeout = errors.New("probe timed out")
)

const (
	// DefaultTimeout is how long a probe may take, with the pull of its image.
	DefaultTimeout = 5 * time.Minute
	// MaxTimeout is the longest time a probe may take.
	MaxTimeout = 25 * time.Hour
	// MaxFilesBytes is what the files of a probe may hold together: Kubernetes' limit for a ConfigMap, less some room for its keys.
	MaxFilesBytes = 1<<20 - 16<<10
	// Binary is where the probe's image has the greenlight-probe command.
	Binary = "/greenlight-probe"
)

// Options say what is run and where.
type Options struct {
	// Client reaches the cluster. Required.
	Client kubernetes.Interface `json:"-"`
	// Namespace is where the Job runs. Required.
	Namespace string `json:"namespace"`
	// Name names the Job, with a random end: "<service>-smoke". Required, a DNS label of at most 50 characters.
	Name string `json:"name"`
	// Image is the probe's image. Required.
	Image string `json:"image"`
	// Command is the container's whole command line: Binary, "smoke". Empty: the image's own entry point.
	Command []string `json:"command"`
	// Files are mounted read-only below /etc/greenlight, by their paths from there: "options.json", "cases/zero.json".
	Files map[string][]byte `json:"-"`
	// Timeout is for everything from the creation to the result. Default DefaultTimeout.
	Timeout time.Duration `json:"timeout"`
	// ImagePullSecrets are names of Secrets in Namespace.
	ImagePullSecrets []string `json:"imagePullSecrets,omitempty"`
	// Labels are added to the Job and the ConfigMap. The pod does not get them: a Service that selects by them must never
	// send users to a probe.
	Labels map[string]string `json:"labels,omitempty"`
	// Owner, where given, owns the Job, so that the Job goes when it goes.
	Owner *metav1.OwnerReference `json:"owner,omitempty"`
	// Log gets the probe's progress and other output, line by line. nil: nobody.
	Log io.Writer `json:"-"`
}

func (o *Options) complete() error {
	o.Timeout = cmp.Or(o.Timeout, DefaultTimeout)
	if o.Log == nil {
		o.Log = io.Discard
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrOptions}, args...)...)
	}
	switch {
	case o.Client == nil:
		return bad("there is no cluster client")
	case o.Namespace == "":
		return bad("the namespace is missing")
	case o.Image == "":
		return bad("the probe's image is missing")
	case strings.ContainsAny(o.Image, " \t\n"):
		return bad("the probe's image %q is no image reference", o.Image)
	case len(o.Name) > 50 || len(validation.IsDNS1123Label(o.Name)) > 0:
		return bad("the name %q must be a DNS label of at most 50 characters", o.Name)
	case o.Timeout < 0 || o.Timeout > MaxTimeout:
		return bad("the timeout must be above 0 and at most %s, not %s", MaxTimeout, o.Timeout)
	}
	total := 0
	for _, name := range slices.Sorted(maps.Keys(o.Files)) {
		if name == "" || path.IsAbs(name) || path.Clean(name) != name || name == ".." || strings.HasPrefix(name, "../") || len(name) > 200 {
			return bad("the file name %q must be a path below %s", name, protocol.Dir)
		}
		total += len(o.Files[name]) + len(name)
	}
	if total > MaxFilesBytes {
		largest := slices.MaxFunc(slices.Sorted(maps.Keys(o.Files)), func(a, b string) int { return cmp.Compare(len(o.Files[a]), len(o.Files[b])) })
		return bad("the probe's %d files have %d bytes together, a ConfigMap takes %d: use fewer or smaller golden cases (the largest is %s with %d bytes)",
			len(o.Files), total, MaxFilesBytes, largest, len(o.Files[largest]))
	}
	return nil
}

// configMapData is the files' content by key, and the paths of the keys: a key cannot hold a slash.
func configMapData(files map[string][]byte) (text map[string]string, binary map[string][]byte, items []corev1.KeyToPath) {
	text, binary = make(map[string]string), make(map[string][]byte)
	for i, name := range slices.Sorted(maps.Keys(files)) {
		key := fmt.Sprintf("file-%04d", i)
		items = append(items, corev1.KeyToPath{Key: key, Path: name})
		if utf8.Valid(files[name]) {
			text[key] = string(files[name])
		} else {
			binary[key] = files[name]
		}
	}
	return text, binary, items
}
