// Package cluster finds the Kubernetes API server that a release talks to and says in one line what is wrong when it
// cannot.
package cluster

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"sort"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// ErrConfig is wrapped by every error of this package: the kubeconfig is missing or wrong, or names an API server that
// does not answer or does not let us in. Nothing has been changed when it is returned.
var ErrConfig = errors.New("cluster config")

// Options say which API server to talk to and as whom.
type Options struct {
	// Kubeconfig is the path of a kubeconfig. Default: $KUBECONFIG, then ~/.kube/config, then the pod's own service
	// account when the process runs in a cluster.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// Context is the context to use. Default: the kubeconfig's current-context.
	Context string `json:"context,omitempty"`
	// Namespace overrides the context's namespace. Default: the context's, or "default".
	Namespace string `json:"namespace,omitempty"`
	// Server overrides the API server's URL, for example https://kube-api:6443 when the server is reached through a
	// tunnel or a service binding. Default: the kubeconfig's.
	Server string `json:"server,omitempty"`
	// TLSServerName is the name that the API server's certificate must be for. Default: the kubeconfig's
	// tls-server-name; with Server set, the host that the kubeconfig names, since that is what the certificate is for.
	TLSServerName string `json:"tlsServerName,omitempty"`
	// Timeout limits Connect's first question to the API server. Default 10 s.
	Timeout time.Duration `json:"timeout,omitempty"`
}

// Connection is a client for an API server that has answered.
type Connection struct {
	// Client is ready for use.
	Client kubernetes.Interface
	// Namespace is the one to work in.
	Namespace string
	// Server is the API server's URL, for messages.
	Server string
	// Version is what the API server reported, for example v1.36.3.
	Version string
}

// Connect loads the configuration, asks the API server for its version and returns a client. Errors wrap ErrConfig and
// say in one line whether the server does not answer, its certificate does not fit, or it refuses the credentials.
func Connect(ctx context.Context, o Options) (Connection, error) {
	cfg, namespace, err := Load(o)
	if err != nil {
		return Connection{}, err
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return Connection{}, fmt.Errorf("%w: %s", ErrConfig, oneLine(err))
	}
	timeout := o.Timeout
	if timeout <= 0 {
		timeout = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	v, err := serverVersion(ctx, client)
	if err != nil {
		return Connection{}, fmt.Errorf("%w: %s", ErrConfig, explainRefusal(cfg.Host, timeout, err))
	}
	return Connection{Client: client, Namespace: namespace, Server: cfg.Host, Version: v.GitVersion}, nil
}

func serverVersion(ctx context.Context, client kubernetes.Interface) (*version.Info, error) {
	type answer struct {
		info *version.Info
		err  error
	}
	// The discovery client takes no context, so the wait is what can be cut short.
	answers := make(chan answer, 1)
	go func() {
		info, err := client.Discovery().ServerVersion()
		answers <- answer{info, err}
	}()
	select {
	case a := <-answers:
		return a.info, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// explainRefusal says what to do about an API server that did not answer a first question.
func explainRefusal(server string, timeout time.Duration, err error) string {
	var (
		unknownCA  x509.UnknownAuthorityError
		wrongHost  x509.HostnameError
		notInTime  x509.CertificateInvalidError
		dns        *net.DNSError
		netTimeout interface{ Timeout() bool }
	)
	switch {
	case apierrors.IsUnauthorized(err):
		return fmt.Sprintf("the API server at %s does not accept the kubeconfig's credentials (401): pass a kubeconfig with a valid token or client certificate", server)
	case apierrors.IsForbidden(err):
		return fmt.Sprintf("the API server at %s does not let these credentials ask for its version (403): %s", server, oneLine(err))
	case errors.As(err, &wrongHost):
		return fmt.Sprintf("the certificate of the API server at %s is for another name (%s): set the TLS server name to one of its names", server, oneLine(wrongHost))
	case errors.As(err, &unknownCA):
		return fmt.Sprintf("the certificate of the API server at %s is not signed by the kubeconfig's certificate authority", server)
	case errors.As(err, &notInTime):
		return fmt.Sprintf("the certificate of the API server at %s is not valid: %s", server, oneLine(notInTime))
	case errors.As(err, &dns):
		return fmt.Sprintf("the API server's name %s cannot be resolved: check the kubeconfig's server, or override it if it is reached through a tunnel", dns.Name)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &netTimeout) && netTimeout.Timeout():
		return fmt.Sprintf("the API server at %s did not answer within %s: check the kubeconfig's server and the network", server, timeout)
	case errors.Is(err, context.Canceled):
		return fmt.Sprintf("interrupted while asking the API server at %s", server)
	default:
		return fmt.Sprintf("the API server at %s cannot be reached: %s", server, oneLine(err))
	}
}

// Load reads the configuration without talking to the API server and returns it with the namespace to work in. Errors
// wrap ErrConfig.
func Load(o Options) (*rest.Config, string, error) {
	raw, source, err := read(o.Kubeconfig)
	if err != nil {
		return nil, "", err
	}
	if raw == nil {
		return inCluster(o)
	}
	overrides := &clientcmd.ConfigOverrides{}
	name, err := pick(raw, o.Context, source)
	if err != nil {
		return nil, "", err
	}
	overrides.CurrentContext = name
	if err := check(raw, name, source); err != nil {
		return nil, "", err
	}
	if err := override(raw.Clusters[raw.Contexts[name].Cluster], o, source); err != nil {
		return nil, "", err
	}
	loader := clientcmd.NewNonInteractiveClientConfig(*raw, name, overrides, nil)
	cfg, err := loader.ClientConfig()
	if err != nil {
		return nil, "", fmt.Errorf("%w: %s: %s", ErrConfig, source, oneLine(err))
	}
	namespace := o.Namespace
	if namespace == "" {
		if namespace, _, err = loader.Namespace(); err != nil {
			return nil, "", fmt.Errorf("%w: %s: %s", ErrConfig, source, oneLine(err))
		}
	}
	tune(cfg)
	return cfg, namespace, nil
}

// read returns the kubeconfig and its name for messages, or nil when there is none and the process runs in a cluster.
func read(path string) (*api.Config, string, error) {
	if path != "" {
		raw, err := readFile(path)
		return raw, path, err
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	source := strings.Join(rules.Precedence, string(os.PathListSeparator))
	found := false
	for _, p := range rules.Precedence {
		if _, err := os.Stat(p); err != nil {
			continue
		}
		// Loaded one by one first, since the merged load does not say which file is wrong.
		if _, err := readFile(p); err != nil {
			return nil, p, err
		}
		found = true
	}
	if !found {
		if os.Getenv("KUBERNETES_SERVICE_HOST") != "" && os.Getenv(clientcmd.RecommendedConfigPathEnvVar) == "" {
			return nil, "", nil
		}
		return nil, source, fmt.Errorf("%w: no kubeconfig: %s does not exist; pass one or set KUBECONFIG", ErrConfig, source)
	}
	rules.WarnIfAllMissing = false
	raw, err := rules.Load()
	if err != nil {
		return nil, source, fmt.Errorf("%w: %s: %s", ErrConfig, source, oneLine(err))
	}
	return raw, source, nil
}

func readFile(path string) (*api.Config, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%w: kubeconfig %s does not exist", ErrConfig, path)
	case err != nil:
		return nil, fmt.Errorf("%w: kubeconfig %s: %s", ErrConfig, path, oneLine(err))
	case info.IsDir():
		return nil, fmt.Errorf("%w: kubeconfig %s is a directory, not a file", ErrConfig, path)
	}
	raw, err := clientcmd.LoadFromFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: kubeconfig %s cannot be read: %s", ErrConfig, path, oneLine(err))
	}
	if len(raw.Clusters) == 0 && len(raw.Contexts) == 0 && len(raw.AuthInfos) == 0 {
		return nil, fmt.Errorf("%w: kubeconfig %s is empty: it has no clusters, contexts or users", ErrConfig, path)
	}
	return raw, nil
}

// pick returns the name of the context to use.
func pick(raw *api.Config, wanted, source string) (string, error) {
	name := wanted
	if name == "" {
		name = raw.CurrentContext
	}
	known := names(raw.Contexts)
	switch {
	case name == "" && len(known) == 0:
		return "", fmt.Errorf("%w: %s has no context", ErrConfig, source)
	case name == "":
		return "", fmt.Errorf("%w: %s has no current-context: name one of its contexts (%s)", ErrConfig, source, strings.Join(known, ", "))
	case raw.Contexts[name] == nil:
		return "", fmt.Errorf("%w: %s has no context %q; it has: %s", ErrConfig, source, name, strings.Join(known, ", "))
	}
	return name, nil
}

// check refuses what client-go would report late, at length, or not at all.
func check(raw *api.Config, name, source string) error {
	c := raw.Contexts[name]
	cluster, user := raw.Clusters[c.Cluster], raw.AuthInfos[c.AuthInfo]
	switch {
	case cluster == nil:
		return fmt.Errorf("%w: %s: context %q names the cluster %q, which is not there", ErrConfig, source, name, c.Cluster)
	case c.AuthInfo != "" && user == nil:
		return fmt.Errorf("%w: %s: context %q names the user %q, which is not there", ErrConfig, source, name, c.AuthInfo)
	}
	if user == nil {
		return nil
	}
	// A plugin is a program on the machine that wrote the kubeconfig; it is neither in the containers that the stages
	// run in nor something that a file should make us execute.
	if user.Exec != nil {
		return fmt.Errorf("%w: %s: user %q gets its credentials from the exec plugin %q, which is not run here: pass a kubeconfig with a token instead (kubectl create token, or the short-lived token of your cloud's CLI)",
			ErrConfig, source, c.AuthInfo, user.Exec.Command)
	}
	if user.AuthProvider != nil {
		return fmt.Errorf("%w: %s: user %q uses the auth provider %q, which no longer exists: pass a kubeconfig with a token instead",
			ErrConfig, source, c.AuthInfo, user.AuthProvider.Name)
	}
	for field, path := range map[string]string{
		"certificate-authority": cluster.CertificateAuthority, "client-certificate": user.ClientCertificate,
		"client-key": user.ClientKey, "tokenFile": user.TokenFile,
	} {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("%w: %s: %s names the file %s, which cannot be read here: pass a self-contained kubeconfig (kubectl config view --flatten --minify)",
				ErrConfig, source, field, path)
		}
	}
	return nil
}

// override applies Server and TLSServerName to the cluster's entry.
func override(cluster *api.Cluster, o Options, source string) error {
	if cluster.Server == "" && o.Server == "" {
		return fmt.Errorf("%w: %s: the cluster has no server", ErrConfig, source)
	}
	if o.Server != "" {
		u, err := url.Parse(o.Server)
		if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
			return fmt.Errorf("%w: the server %q is not a URL like https://kube-api:6443", ErrConfig, o.Server)
		}
		if original, err := url.Parse(cluster.Server); err == nil && cluster.TLSServerName == "" && u.Scheme == "https" && original.Scheme == "https" {
			cluster.TLSServerName = original.Hostname()
		}
		cluster.Server = o.Server
		// A proxy that leads to the original address does not lead to this one.
		cluster.ProxyURL = ""
	}
	if o.TLSServerName != "" {
		cluster.TLSServerName = o.TLSServerName
	}
	return nil
}

func inCluster(o Options) (*rest.Config, string, error) {
	cfg, err := rest.InClusterConfig()
	if err != nil {
		return nil, "", fmt.Errorf("%w: in the cluster: %s", ErrConfig, oneLine(err))
	}
	if o.Server != "" {
		cfg.Host = o.Server
	}
	if o.TLSServerName != "" {
		cfg.TLSClientConfig.ServerName = o.TLSServerName
	}
	namespace := o.Namespace
	if namespace == "" {
		namespace = "default"
		if b, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace"); err == nil {
			namespace = strings.TrimSpace(string(b))
		}
	}
	tune(cfg)
	return cfg, namespace, nil
}

// tune sets what every client of a release shares. client-go's own limit of 5 requests a second would delay a switch.
func tune(cfg *rest.Config) {
	cfg.QPS, cfg.Burst = 50, 100
	cfg.UserAgent = "greenlight"
}

func names[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

// oneLine makes an error fit into one line of a message.
func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}
