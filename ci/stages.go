package main

import (
	"context"
	"fmt"

	"dagger/greenlight/internal/dagger"
)

// moduleVersion is the version of this module and of the stage binaries that it compiles.
const moduleVersion = "v0.1.0"

// The version of Greenlight.
func (m *Greenlight) Version() string { return moduleVersion }

// Build the service's image as a release would, without publishing it.
//
// +cache="never"
func (m *Greenlight) Build(
	ctx context.Context,
	// Directory of the service: its config, Dockerfile and code.
	//
	// +ignore=["**/.git", "**/__pycache__"]
	source *dagger.Directory,
	// Version to build, such as v1.4.0-3f2a1c9.
	version string,
	// Path of the config, below source.
	//
	// +default="greenlight.yaml"
	config string,
	// Base image to build on, name@sha256:…, instead of image.base of the config.
	//
	// +optional
	base string,
	// More arguments for the Dockerfile, as NAME=VALUE. Not for secrets: they can be read in the image.
	//
	// +optional
	buildArgs []string,
	// Platform of the cluster's nodes.
	//
	// +default="linux/amd64"
	platform dagger.Platform,
	// User name at the registry of the base image.
	//
	// +optional
	registryUsername string,
	// Password or token at the registry of the base image.
	//
	// +optional
	registryPassword *dagger.Secret,
) (*dagger.Container, error) {
	read, err := m.readConfig(ctx, source, config)
	if err != nil {
		return nil, exitWith(err)
	}
	access := registryAccess{username: registryUsername, password: registryPassword}
	if err := access.check(read.Image.Repository); err != nil {
		return nil, exitWith(err)
	}
	if err := access.login(ctx, read.Image.Repository); err != nil {
		return nil, exitWith(err)
	}
	i := image{config: read, service: source, path: config, platform: platform, version: version, base: base, args: buildArgs}
	args, err := i.buildArgs()
	if err != nil {
		return nil, exitWith(err)
	}
	from, err := i.sourceDigest(ctx, args)
	if err != nil {
		return nil, exitWith(err)
	}
	return i.build(args, from), nil
}

// Check all that a release needs, without changing anything.
//
// That is the config, the keys, the rights in the cluster, the lock, and that the candidate's pods can be scheduled.
//
// +cache="never"
func (m *Greenlight) Preflight(
	ctx context.Context,
	// Directory of the service: its config, Dockerfile, code and golden cases.
	//
	// +ignore=["**/.git", "**/__pycache__"]
	source *dagger.Directory,
	// Version that is to be released, such as v1.4.0-3f2a1c9.
	version string,
	// Kubeconfig of the cluster, such as file:PATH or env:NAME. Without exec plugins: no plugin is in the container.
	kubeconfig *dagger.Secret,
	// Encrypted cosign private key to sign with. Default: not checked.
	//
	// +optional
	signingKey *dagger.Secret,
	// Password of the signing key. Default: the key has the empty one.
	//
	// +optional
	signingPassword *dagger.Secret,
	// Public key that the image must be signed with. Default: sign.publicKey of the config.
	//
	// +optional
	verifyKey *dagger.File,
	// Path of the config, below source.
	//
	// +default="greenlight.yaml"
	config string,
	// Context of the kubeconfig. Default: its current one.
	//
	// +optional
	kubeContext string,
	// The Kubernetes API, where only this machine can reach it: tcp://localhost:6443.
	//
	// +optional
	kubeApi *dagger.Service,
	// The registry, where only this machine can reach it: tcp://localhost:5000.
	//
	// +optional
	registry *dagger.Service,
	// User name at the registry.
	//
	// +optional
	registryUsername string,
	// Password or token at the registry.
	//
	// +optional
	registryPassword *dagger.Secret,
) (string, error) {
	r := releaseRun{
		module: m, service: source, config: config, version: version,
		cluster:  clusterAccess{kubeconfig: kubeconfig, context: kubeContext, api: kubeApi},
		registry: registryAccess{service: registry, username: registryUsername, password: registryPassword},
		keys:     keys{signing: signingKey, password: signingPassword, verify: verifyKey},
	}
	done, err := r.command(ctx, "preflight", "--version", version)
	if err != nil {
		return "", exitWith(err)
	}
	return done.stdout, nil
}

// Move live traffic back to the previous version.
//
// That version is brought back from warm or cold first. After a release that was killed, what that one left is restored.
//
// +cache="never"
func (m *Greenlight) Rollback(
	ctx context.Context,
	// Directory of the service, with its config.
	//
	// +ignore=["**/.git", "**/__pycache__"]
	source *dagger.Directory,
	// Kubeconfig of the cluster, such as file:PATH or env:NAME. Without exec plugins: no plugin is in the container.
	kubeconfig *dagger.Secret,
	// Public key that the previous image must be signed with. Default: sign.publicKey of the config.
	//
	// +optional
	verifyKey *dagger.File,
	// Path of the config, below source.
	//
	// +default="greenlight.yaml"
	config string,
	// Context of the kubeconfig. Default: its current one.
	//
	// +optional
	kubeContext string,
	// The Kubernetes API, where only this machine can reach it: tcp://localhost:6443.
	//
	// +optional
	kubeApi *dagger.Service,
	// The registry, where only this machine can reach it: tcp://localhost:5000.
	//
	// +optional
	registry *dagger.Service,
	// User name at the registry.
	//
	// +optional
	registryUsername string,
	// Password or token at the registry.
	//
	// +optional
	registryPassword *dagger.Secret,
	// Platform of the cluster's nodes.
	//
	// +default="linux/amd64"
	platform dagger.Platform,
	// Who rolls back, for whoever finds the service locked: a person, a job's URL. Default: the container's name.
	//
	// +optional
	holder string,
) (*Report, error) {
	r := releaseRun{
		module: m, service: source, config: config, platform: platform, holder: holder, files: dag.Directory(),
		cluster:  clusterAccess{kubeconfig: kubeconfig, context: kubeContext, api: kubeApi},
		registry: registryAccess{service: registry, username: registryUsername, password: registryPassword},
		keys:     keys{verify: verifyKey},
	}
	var err error
	if r.read, err = m.readConfig(ctx, source, config); err != nil {
		return nil, exitWith(err)
	}
	if err = r.registry.login(ctx, r.read.Image.Repository); err != nil {
		return nil, exitWith(err)
	}
	// The data path is asked whether traffic has arrived, by the probe.
	probe, err := m.publishProbe(ctx, r.read.Image.Repository, platform)
	if err != nil {
		return nil, exitWith(err)
	}
	done, err := r.command(ctx, "rollback", "--probe-image", probe, "--out", outDir)
	if err != nil {
		return nil, exitWith(err)
	}
	return reportOf(ctx, done, done.after.Directory(outDir))
}

// Show what serves, what is a candidate, and whether a release is under way.
//
// +cache="never"
func (m *Greenlight) Status(
	ctx context.Context,
	// Directory of the service, with its config.
	//
	// +ignore=["**/.git", "**/__pycache__"]
	source *dagger.Directory,
	// Kubeconfig of the cluster, such as file:PATH or env:NAME. Without exec plugins: no plugin is in the container.
	kubeconfig *dagger.Secret,
	// Path of the config, below source.
	//
	// +default="greenlight.yaml"
	config string,
	// Context of the kubeconfig. Default: its current one.
	//
	// +optional
	kubeContext string,
	// The Kubernetes API, where only this machine can reach it: tcp://localhost:6443.
	//
	// +optional
	kubeApi *dagger.Service,
) (string, error) {
	r := releaseRun{
		module: m, service: source, config: config,
		cluster: clusterAccess{kubeconfig: kubeconfig, context: kubeContext, api: kubeApi},
	}
	done, err := r.command(ctx, "status")
	if err != nil {
		return "", exitWith(err)
	}
	return done.stdout, nil
}

// Delete what previous versions left in the cluster and is older than keep.cold of the config.
//
// +cache="never"
func (m *Greenlight) Prune(
	ctx context.Context,
	// Directory of the service, with its config.
	//
	// +ignore=["**/.git", "**/__pycache__"]
	source *dagger.Directory,
	// Kubeconfig of the cluster, such as file:PATH or env:NAME. Without exec plugins: no plugin is in the container.
	kubeconfig *dagger.Secret,
	// Path of the config, below source.
	//
	// +default="greenlight.yaml"
	config string,
	// Context of the kubeconfig. Default: its current one.
	//
	// +optional
	kubeContext string,
	// The Kubernetes API, where only this machine can reach it: tcp://localhost:6443.
	//
	// +optional
	kubeApi *dagger.Service,
) (string, error) {
	r := releaseRun{
		module: m, service: source, config: config,
		cluster: clusterAccess{kubeconfig: kubeconfig, context: kubeContext, api: kubeApi},
	}
	done, err := r.command(ctx, "prune")
	if err != nil {
		return "", exitWith(err)
	}
	return done.stdout, nil
}

// Sign a published image with a cosign key pair.
//
// +cache="never"
func (m *Greenlight) Sign(
	ctx context.Context,
	// Image to sign, by digest.
	image string,
	// Encrypted cosign private key, such as file:cosign.key or env:COSIGN_KEY.
	signingKey *dagger.Secret,
	// Password of the signing key. Default: the key has the empty one.
	//
	// +optional
	signingPassword *dagger.Secret,
	// The registry, where only this machine can reach it: tcp://localhost:5000.
	//
	// +optional
	registry *dagger.Service,
	// User name at the registry.
	//
	// +optional
	registryUsername string,
	// Password or token at the registry.
	//
	// +optional
	registryPassword *dagger.Secret,
) (string, error) {
	access := registryAccess{service: registry, username: registryUsername, password: registryPassword}
	return m.onImage(ctx, "sign", image, access, keys{signing: signingKey, password: signingPassword})
}

// Verify that a published image is signed with a key.
//
// +cache="never"
func (m *Greenlight) Verify(
	ctx context.Context,
	// Image to verify, by digest.
	image string,
	// Public key in PEM.
	verifyKey *dagger.File,
	// The registry, where only this machine can reach it: tcp://localhost:5000.
	//
	// +optional
	registry *dagger.Service,
	// User name at the registry.
	//
	// +optional
	registryUsername string,
	// Password or token at the registry.
	//
	// +optional
	registryPassword *dagger.Secret,
) (string, error) {
	access := registryAccess{service: registry, username: registryUsername, password: registryPassword}
	return m.onImage(ctx, "verify", image, access, keys{verify: verifyKey})
}

// onImage runs a command of greenlight that needs an image and keys, but no cluster.
func (m *Greenlight) onImage(ctx context.Context, name, image string, access registryAccess, k keys) (string, error) {
	if err := access.check(image); err != nil {
		return "", exitWith(err)
	}
	ctr, err := m.container(ctx, greenlightTool, "")
	if err != nil {
		return "", exitWith(err)
	}
	args := []string{greenlightTool.name, name, "--image", image}
	ctr, more, err := access.attach(ctx, ctr.WithMountedTemp("/tmp"), image)
	if err != nil {
		return "", exitWith(err)
	}
	args = append(args, more...)
	if ctr, more, err = k.attach(ctx, ctr); err != nil {
		return "", exitWith(err)
	}
	done, err := execute(ctx, ctr, append(args, more...))
	if err != nil {
		return "", exitWith(err)
	}
	if done.failed() {
		return "", exitWith(&ending{code: done.verdict(), reason: done.reason()})
	}
	return done.stdout, nil
}

// command runs a command of greenlight on the service and its cluster.
func (r *releaseRun) command(ctx context.Context, name string, args ...string) (outcome, error) {
	var err error
	if r.read.Service == "" {
		if r.read, err = r.module.readConfig(ctx, r.service, r.config); err != nil {
			return outcome{}, err
		}
	}
	if err = r.registry.check(r.read.Image.Repository); err != nil {
		return outcome{}, err
	}
	ctr, common, err := r.runner(ctx)
	if err != nil {
		return outcome{}, err
	}
	done, err := execute(ctx, ctr, append(append([]string{greenlightTool.name, name}, args...), common...))
	if err != nil {
		return done, fmt.Errorf("%s: %w", name, err)
	}
	if done.failed() {
		return done, &ending{code: done.verdict(), reason: done.reason()}
	}
	return done, nil
}
