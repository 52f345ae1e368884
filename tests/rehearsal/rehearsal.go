// Package rehearsal runs whole releases against the sandbox, through `dagger call` as a user would, with load on the live
// Service.
package rehearsal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/greenlight-ci/greenlight/pipelines/report"
	"github.com/greenlight-ci/greenlight/pipelines/sign"
)

// The environment that `sandbox env` sets.
const (
	EnvKubeconfig = "KUBECONFIG"
	EnvRegistry   = "REGISTRY"
	EnvBase       = "GREENLIGHT_BASE"
	EnvTrivyDB    = "GREENLIGHT_TRIVY_DB"
	// EnvTools names a directory with stage binaries to use instead of compiling them in the engine, for a quick turn while
	// working on them.
	EnvTools = "GREENLIGHT_TOOLS"
)

// Sandbox is where releases are rehearsed.
type Sandbox struct {
	// Kubeconfig is the path of the cluster's kubeconfig, KubeAPI its server's host:port.
	Kubeconfig string
	KubeAPI    string
	Client     kubernetes.Interface
	// Registry is the host and port in image references.
	Registry string
	// Base is the service image's base, by digest; TrivyDB the database's repository.
	Base    string
	TrivyDB string
	// Keys is a directory with cosign.key and cosign.pub, made once.
	Keys string
	// Module is the directory of the Dagger module.
	Module string
}

// password protects keys that protect nothing: they sign for the sandbox alone.
const password = "sandbox"

// FromEnvironment finds the sandbox that `sandbox env` describes.
func FromEnvironment() (Sandbox, error) {
	s := Sandbox{
		Kubeconfig: os.Getenv(EnvKubeconfig), Registry: os.Getenv(EnvRegistry),
		Base: os.Getenv(EnvBase), TrivyDB: os.Getenv(EnvTrivyDB),
	}
	for name, value := range map[string]string{EnvKubeconfig: s.Kubeconfig, EnvRegistry: s.Registry, EnvBase: s.Base} {
		if value == "" {
			return s, fmt.Errorf("%s is not set; run `make up` and `eval \"$(go run ./tests/sandbox env)\"`", name)
		}
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig)
	if err != nil {
		return s, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	server, err := url.Parse(cfg.Host)
	if err != nil {
		return s, fmt.Errorf("reading the kubeconfig's server: %w", err)
	}
	s.KubeAPI = server.Host
	if s.Client, err = kubernetes.NewForConfig(cfg); err != nil {
		return s, fmt.Errorf("using the kubeconfig: %w", err)
	}
	if s.Module, err = moduleRoot(); err != nil {
		return s, err
	}
	s.Keys = filepath.Join(filepath.Dir(s.Kubeconfig), "rehearsal-keys")
	return s, s.MakeKeys(s.Keys)
}

// MakeKeys writes a key pair to dir if there is none.
func (s Sandbox) MakeKeys(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, sign.PrivateKeyFile)); err == nil {
		return nil
	}
	return sign.GenerateKeyPair(dir, []byte(password))
}

// moduleRoot is the nearest directory upwards with a dagger.json.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "dagger.json")); err == nil {
			return dir, nil
		}
		if parent := filepath.Dir(dir); parent != dir {
			dir = parent
			continue
		}
		return "", errors.New("no dagger.json here or above; run this in the repository")
	}
}

// Release is one `dagger call release`.
type Release struct {
	// Source is the service's directory.
	Source  string
	Version string
	// Config is the config's path below Source. Default greenlight.yaml.
	Config string
	// BuildArgs are NAME=VALUE.
	BuildArgs []string
	// SigningKey and VerifyKey are files. Default: the sandbox's.
	SigningKey string
	VerifyKey  string
	// Kubeconfig is a file. Default: the sandbox's.
	Kubeconfig string
	// Out gets the report and what came with it.
	Out string
	// Log gets the output of dagger.
	Log io.Writer
}

// Args are the arguments of `dagger call` up to the function's name and flags.
func (s Sandbox) Args(r Release) []string {
	value := func(given, otherwise string) string {
		if given != "" {
			return given
		}
		return otherwise
	}
	_, port, _ := strings.Cut(s.KubeAPI, ":")
	args := []string{"call", "--progress=plain", "-m", s.Module}
	if tools := os.Getenv(EnvTools); tools != "" {
		args = append(args, "--tools", tools)
	}
	args = append(args, "release",
		"--source", r.Source, "--version", r.Version, "--config", value(r.Config, "greenlight.yaml"), "--base", s.Base,
		"--kubeconfig", "file:"+value(r.Kubeconfig, s.Kubeconfig), "--kube-api", "tcp://localhost:"+port,
		"--signing-key", "file:"+value(r.SigningKey, filepath.Join(s.Keys, sign.PrivateKeyFile)),
		"--signing-password", "env:GREENLIGHT_REHEARSAL_PASSWORD",
		"--verify-key", value(r.VerifyKey, filepath.Join(s.Keys, sign.PublicKeyFile)),
	)
	if _, port, ok := strings.Cut(s.Registry, ".localhost:"); ok {
		args = append(args, "--registry", "tcp://localhost:"+port)
	}
	if s.TrivyDB != "" {
		args = append(args, "--trivy-db", s.TrivyDB)
	}
	for _, a := range r.BuildArgs {
		args = append(args, "--build-args", a)
	}
	return args
}

// Run releases, exports the report to r.Out and returns it. A release that ends other than well is no error: the report
// says how.
func (s Sandbox) Run(ctx context.Context, r Release) (*report.Report, error) {
	args := append(s.Args(r), "--allow-failure", "directory", "export", "--path", r.Out)
	if code, tail, err := s.dagger(ctx, args, r.Log); err != nil {
		return nil, err
	} else if code != 0 {
		return nil, fmt.Errorf("dagger call release --allow-failure ended with %d: %s", code, tail)
	}
	return report.Read(filepath.Join(r.Out, "report.json"))
}

// Call releases as a user does, and returns dagger's exit code and the last line that it wrote.
func (s Sandbox) Call(ctx context.Context, r Release) (code int, last string, err error) {
	return s.dagger(ctx, append(s.Args(r), "summary"), r.Log)
}

func (s Sandbox) dagger(ctx context.Context, args []string, log io.Writer) (code int, last string, err error) {
	if log == nil {
		log = io.Discard
	}
	cmd := exec.CommandContext(ctx, "dagger", args...)
	cmd.Env = append(os.Environ(), "GREENLIGHT_REHEARSAL_PASSWORD="+password)
	// An interrupt lets the engine end the session in order.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	var tail tailWriter
	// One writer for both, so that exec copies them with one goroutine and in order.
	output := io.MultiWriter(log, &tail)
	cmd.Stdout, cmd.Stderr = output, output
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), tail.last(), nil
	}
	if err != nil {
		return 0, "", fmt.Errorf("running dagger: %w", err)
	}
	return 0, tail.last(), nil
}

// tailWriter keeps the end of what is written to it.
type tailWriter struct{ kept []byte }

func (t *tailWriter) Write(p []byte) (int, error) {
	const most = 16 << 10
	t.kept = append(t.kept, p...)
	if extra := len(t.kept) - most; extra > 0 {
		t.kept = t.kept[extra:]
	}
	return len(p), nil
}

func (t *tailWriter) last() string {
	lines := bytes.Split(bytes.TrimSpace(t.kept), []byte("\n"))
	return strings.TrimSpace(string(lines[len(lines)-1]))
}
