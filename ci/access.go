package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"dagger/greenlight/address"
	"dagger/greenlight/internal/dagger"
)

// kubeAPIAlias is the name under which a container finds the Kubernetes API that --kube-api stands for.
const kubeAPIAlias = "kube-api"

// clusterAccess is how the stages reach Kubernetes.
type clusterAccess struct {
	kubeconfig *dagger.Secret
	// context of the kubeconfig; "" is its current one.
	context string
	// api stands for an API server that only the caller's machine can reach. Optional.
	api *dagger.Service
}

// attach mounts the kubeconfig and returns the flags that go with it. Errors are usage errors.
func (c clusterAccess) attach(ctx context.Context, ctr *dagger.Container) (*dagger.Container, []string, error) {
	target := secretsDir + "/kubeconfig"
	args := []string{"--kubeconfig", target}
	if c.context != "" {
		args = append(args, "--context", c.context)
	}
	text, err := c.kubeconfig.Plaintext(ctx)
	if err != nil {
		return nil, nil, usage("the kubeconfig cannot be read: %v", err)
	}
	if strings.TrimSpace(text) == "" {
		return nil, nil, usage("the kubeconfig is empty; pass --kubeconfig file:PATH or --kubeconfig env:NAME")
	}
	ctr = ctr.WithMountedSecret(target, c.kubeconfig)
	servers := address.Servers(text)
	if c.api == nil {
		if local := address.OnlyLocal(servers); local != nil {
			return nil, nil, usage("the kubeconfig's server %s is an address of this machine, which a container cannot reach; pass --kube-api tcp://localhost:%s as well", local, cmp.Or(local.Port(), "443"))
		}
		return ctr, args, nil
	}
	// A service has its ports once it runs. The CLI has started it already, another module may not have.
	api, err := c.api.Start(ctx)
	if err != nil {
		return nil, nil, usage("--kube-api: %v", err)
	}
	ports, err := api.Ports(ctx)
	if err != nil {
		return nil, nil, usage("--kube-api: %v", err)
	}
	if len(ports) == 0 {
		return nil, nil, usage("--kube-api names no port; write it like tcp://localhost:6443")
	}
	port, err := ports[0].Port(ctx)
	if err != nil {
		return nil, nil, usage("--kube-api: %v", err)
	}
	scheme, serverName := address.Common(servers)
	args = append(args, "--kube-server", fmt.Sprintf("%s://%s:%d", scheme, kubeAPIAlias, port))
	// The certificate was made out to the name that the kubeconfig uses, not to the alias in the container.
	if serverName != "" && !strings.Contains(text, "tls-server-name") {
		args = append(args, "--kube-tls-server-name", serverName)
	}
	return ctr.WithServiceBinding(kubeAPIAlias, c.api), args, nil
}

// registryAccess is how the stages and the engine reach the registry.
type registryAccess struct {
	// service stands for a registry that only the caller's machine can reach. Optional.
	service *dagger.Service
	// username and password are both given or both not.
	username string
	password *dagger.Secret
}

// check refuses what cannot work, before anything is built.
func (r registryAccess) check(repository string) error {
	host := address.Registry(repository)
	if host == "" {
		return usage("image.repository %q names no registry; write it like registry.example.com/team/service", repository)
	}
	if r.service != nil && address.IsLocal(address.Hostname(host)) {
		return usage("image.repository is on %s, which inside a container is the container; give the registry a name, such as registry.localhost", host)
	}
	if (r.username == "") != (r.password == nil) {
		return usage("--registry-username and --registry-password go together")
	}
	return nil
}

// attach binds the registry's name and mounts its credentials, where there are any.
func (r registryAccess) attach(ctx context.Context, ctr *dagger.Container, reference string) (*dagger.Container, []string, error) {
	host := address.Registry(reference)
	if r.service != nil {
		ctr = ctr.WithServiceBinding(address.Hostname(host), r.service)
	}
	if r.password == nil {
		return ctr, nil, nil
	}
	login, err := r.dockerConfig(ctx, host)
	if err != nil {
		return nil, nil, err
	}
	dir := secretsDir + "/docker"
	return ctr.
		WithMountedSecret(dir+"/config.json", login).
		// The path of the directory, for the programs that have no flag for it.
		WithEnvVariable("DOCKER_CONFIG", dir), []string{"--docker-config", dir}, nil
}

// dockerConfig is a config.json with the registry's credentials, as a secret.
func (r registryAccess) dockerConfig(ctx context.Context, host string) (*dagger.Secret, error) {
	password, err := r.password.Plaintext(ctx)
	if err != nil {
		return nil, usage("--registry-password cannot be read: %v", err)
	}
	if host == "docker.io" {
		host = "https://index.docker.io/v1/"
	}
	auth := base64.StdEncoding.EncodeToString([]byte(r.username + ":" + strings.TrimRight(password, "\r\n")))
	data, err := json.Marshal(map[string]any{"auths": map[string]any{host: map[string]string{"auth": auth}}})
	if err != nil {
		return nil, fmt.Errorf("writing the registry credentials: %w", err)
	}
	// A second registry in the same session must not replace the first one's secret.
	return dag.SetSecret("greenlight-docker-config "+r.username+"@"+host, string(data)), nil
}

// login lets the engine pull from and push to the repository's registry for the rest of the session.
func (r registryAccess) login(ctx context.Context, repository string) error {
	if r.password == nil {
		return nil
	}
	if _, err := dag.Container().WithRegistryAuth(address.Registry(repository), r.username, r.password).Sync(ctx); err != nil {
		return fmt.Errorf("logging in to %s: %w", address.Registry(repository), err)
	}
	return nil
}
