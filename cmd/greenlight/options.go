package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/greenlight-ci/greenlight/pipelines/cluster"
	"github.com/greenlight-ci/greenlight/pipelines/config"
	"github.com/greenlight-ci/greenlight/pipelines/image"
	"github.com/greenlight-ci/greenlight/pipelines/release"
	"github.com/greenlight-ci/greenlight/pipelines/sign"
)

// options are the flags that several commands share. Every command takes all of them, so that a front door can pass the
// same set to each.
type options struct {
	config        string
	kubeconfig    string
	kubeContext   string
	kubeServer    string
	tlsServerName string
	signingKey    string
	passwordFile  string
	verifyKey     string
	dockerConfig  string
}

func (o *options) register(flags *pflag.FlagSet) {
	flags.StringVar(&o.config, "config", "greenlight.yaml", "the service's config `file`")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig `file` (default $KUBECONFIG, then ~/.kube/config)")
	flags.StringVar(&o.kubeContext, "context", "", "context of the kubeconfig (default: its current one)")
	flags.StringVar(&o.kubeServer, "kube-server", "", "`URL` of the Kubernetes API instead of the kubeconfig's")
	flags.StringVar(&o.tlsServerName, "kube-tls-server-name", "", "`name` that the API server's certificate must be for")
	flags.StringVar(&o.signingKey, "signing-key", "", "cosign private key `file`")
	flags.StringVar(&o.passwordFile, "signing-password-file", "", "`file` with the signing key's password (default $COSIGN_PASSWORD)")
	flags.StringVar(&o.verifyKey, "verify-key", "", "public key `file` that images must be signed with (default: sign.publicKey of the config)")
	flags.StringVar(&o.dockerConfig, "docker-config", "", "`directory` of a Docker config.json with registry credentials")
}

// loadConfig reads the config. A namespace that it leaves out is the kubeconfig's.
func (o *options) loadConfig() (*config.Config, error) { return config.Load(o.config) }

// connect reaches the cluster and fills in the namespace.
func (o *options) connect(ctx context.Context, c *config.Config) (cluster.Connection, error) {
	return cluster.Connect(ctx, cluster.Options{
		Kubeconfig: o.kubeconfig, Context: o.kubeContext, Namespace: c.Namespace,
		Server: o.kubeServer, TLSServerName: o.tlsServerName,
	})
}

func (o *options) registry() image.Registry { return image.Registry{DockerConfig: o.dockerConfig} }

func (o *options) key() sign.Key {
	return sign.Key{File: o.signingKey, PasswordFile: o.passwordFile}
}

// publicKey is --verify-key, or the one that the config names.
func (o *options) publicKey(c *config.Config) sign.PublicKey {
	if o.verifyKey != "" {
		return sign.PublicKey{File: o.verifyKey}
	}
	return sign.PublicKey{File: filepath.Join(c.Dir, c.Sign.PublicKey)}
}

// service is what every command that works on a service needs.
func (o *options) service(cmd *cobra.Command) (release.Service, error) {
	c, err := o.loadConfig()
	if err != nil {
		return release.Service{}, err
	}
	connection, err := o.connect(cmd.Context(), c)
	if err != nil {
		return release.Service{}, err
	}
	return release.Service{
		Config: c, Client: connection.Client, Namespace: connection.Namespace, Registry: o.registry(),
		Holder: holder(), Progress: cmd.ErrOrStderr(),
	}, nil
}

// holder names this run to whoever finds the lock taken: $GREENLIGHT_HOLDER where a front door knows better than the
// container does.
func holder() string {
	if named := os.Getenv("GREENLIGHT_HOLDER"); named != "" {
		return named
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	name := os.Getenv("GITHUB_ACTOR")
	if name == "" {
		name = os.Getenv("GITLAB_USER_LOGIN")
	}
	if name == "" {
		if u, err := user.Current(); err == nil {
			name = u.Username
		}
	}
	return fmt.Sprintf("%s@%s pid %d", name, host, os.Getpid())
}

// newID is a release's id: sortable by time, unique by chance.
func newID(now time.Time) (string, error) {
	suffix := make([]byte, 4)
	if _, err := rand.Read(suffix); err != nil {
		return "", fmt.Errorf("making the release's id: %w", err)
	}
	return now.UTC().Format("20060102-150405-") + hex.EncodeToString(suffix), nil
}
