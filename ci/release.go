package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"sync"
	"time"

	"go.opentelemetry.io/otel/codes"

	"dagger/greenlight/internal/dagger"
)

// Release a version of a service: build, scan, sign, verify, deploy beside live, smoke, latency, switch, bake, teardown.
//
// A release that does not end as "released" is an error whose exit code is greenlight's: 1 failed, 2 usage or config,
// 3 a gate said no (live is untouched), 4 rolled back, 5 another release holds the lock. To have the report then too, pass
// --allow-failure and read exit-code in the report's directory.
//
// +cache="never"
func (m *Greenlight) Release(
	ctx context.Context,
	// Directory of the service: its config, Dockerfile, code and golden cases.
	//
	// +ignore=["**/.git", "**/__pycache__"]
	source *dagger.Directory,
	// Version to release, such as v1.4.0-3f2a1c9. It is immutable: other source needs another version.
	version string,
	// Kubeconfig of the cluster, such as file:PATH or env:NAME. Without exec plugins: no plugin is in the container.
	kubeconfig *dagger.Secret,
	// Encrypted cosign private key to sign with, such as file:cosign.key or env:COSIGN_KEY.
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
	// The registry, where only this machine can reach it: tcp://localhost:5000. The stages then find it under the host name
	// of image.repository; the engine and the cluster must know that name by themselves.
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
	// Repository of Trivy's vulnerability database. Default: Trivy's own.
	//
	// +optional
	trivyDb string,
	// Repository of Trivy's Java database, for images with JARs. Default: Trivy's own.
	//
	// +optional
	trivyJavaDb string,
	// Accept plain HTTP and unknown certificates from the registries that Trivy reads.
	//
	// +optional
	trivyInsecure bool,
	// Who releases, for whoever finds the service locked: a person, a job's URL. Default: the container's name.
	//
	// +optional
	holder string,
	// Return the report however the release ended, instead of an error.
	//
	// +optional
	allowFailure bool,
) (*Report, error) {
	r := releaseRun{
		module:   m,
		service:  source,
		config:   config,
		version:  version,
		base:     base,
		args:     buildArgs,
		platform: platform,
		holder:   holder,
		cluster:  clusterAccess{kubeconfig: kubeconfig, context: kubeContext, api: kubeApi},
		registry: registryAccess{service: registry, username: registryUsername, password: registryPassword},
		keys:     keys{signing: signingKey, password: signingPassword, verify: verifyKey},
		scanner:  scanner{database: trivyDb, javaDatabase: trivyJavaDb, platform: platform, insecure: trivyInsecure},
		files:    dag.Directory(),
	}
	report, err := r.run(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if report, err = earlyReport(r.read.Service, version, r.record, r.stages, endingOf(err), r.files); err != nil {
			return nil, err
		}
	}
	if report.ExitCode != 0 && !allowFailure {
		return nil, exitWith(&ending{code: report.ExitCode, reason: fmt.Sprintf("release of %s: %s: %s", version, report.Status, report.Reason)})
	}
	return report, nil
}

// keys are what images are signed and verified with.
type keys struct {
	signing  *dagger.Secret
	password *dagger.Secret
	verify   *dagger.File
}

// attach mounts the keys that there are and returns their flags.
func (k keys) attach(ctx context.Context, ctr *dagger.Container) (*dagger.Container, []string, error) {
	var args []string
	for _, secret := range []struct {
		flag, name string
		value      *dagger.Secret
	}{
		{"--signing-key", "signing-key", k.signing},
		{"--signing-password-file", "signing-password", k.password},
	} {
		if secret.value == nil {
			continue
		}
		if _, err := secret.value.Plaintext(ctx); err != nil {
			return nil, nil, usage("--%s cannot be read: %v", secret.name, err)
		}
		target := path.Join(secretsDir, secret.name)
		ctr = ctr.WithMountedSecret(target, secret.value)
		args = append(args, secret.flag, target)
	}
	if k.verify != nil {
		target := path.Join(secretsDir, "verify-key")
		ctr = ctr.WithMountedFile(target, k.verify)
		args = append(args, "--verify-key", target)
	}
	return ctr, args, nil
}

// releaseRun is one release under way.
type releaseRun struct {
	module   *Greenlight
	service  *dagger.Directory
	config   string
	version  string
	base     string
	args     []string
	platform dagger.Platform
	holder   string
	cluster  clusterAccess
	registry registryAccess
	keys     keys
	scanner  scanner

	// What is known so far.
	read   serviceConfig
	record buildRecord
	probe  string
	stages []stage
	files  *dagger.Directory
}

// run takes the release to its end. An error is an end before greenlight could write its own report.
func (r *releaseRun) run(ctx context.Context) (*Report, error) {
	var runner *dagger.Container
	var common []string
	err := r.stage(ctx, "preflight", func(ctx context.Context) (detail string, err error) {
		if r.read, err = r.module.readConfig(ctx, r.service, r.config); err != nil {
			return "", err
		}
		if err = r.registry.check(r.read.Image.Repository); err != nil {
			return "", err
		}
		if runner, common, err = r.runner(ctx); err != nil {
			return "", err
		}
		done, err := execute(ctx, runner, append([]string{greenlightTool.name, "preflight", "--version", r.version}, common...))
		if err == nil && done.failed() {
			err = &ending{code: done.verdict(), reason: done.reason()}
		}
		return "", err
	})
	if err != nil {
		return nil, err
	}
	var scanning *dagger.Container
	// The scanner takes longest to compile when nothing is cached, and the build leaves the machine idle at times.
	err = together(ctx,
		func(ctx context.Context) error { return r.stage(ctx, "build", r.build) },
		func(ctx context.Context) (err error) {
			r.probe, err = r.module.publishProbe(ctx, r.read.Image.Repository, r.platform)
			return err
		},
		func(ctx context.Context) (err error) {
			if scanning, err = r.module.container(ctx, scannerTool, ""); err == nil {
				_, err = scanning.Sync(ctx)
			}
			return err
		},
	)
	if err != nil {
		return nil, err
	}
	err = r.stage(ctx, "scan", func(ctx context.Context) (string, error) { return r.scan(ctx, scanning) })
	if err != nil {
		return nil, err
	}
	done, err := execute(ctx,
		runner.WithMountedDirectory(scanDir, r.files),
		append([]string{
			greenlightTool.name, "release", "--version", r.version, "--image", r.record.Reference, "--probe-image", r.probe,
			"--scan-dir", scanDir, "--build-record", path.Join(scanDir, "build.json"), "--out", outDir,
		}, common...))
	if err != nil {
		return nil, fmt.Errorf("the release was interrupted; run it again and it continues: %w", err)
	}
	return reportOf(ctx, done, r.files.WithDirectory("/", done.after.Directory(outDir)))
}

// runner is greenlight with the service, the cluster, the registry and the keys at hand, and the flags that name them.
func (r *releaseRun) runner(ctx context.Context) (*dagger.Container, []string, error) {
	ctr, err := r.module.container(ctx, greenlightTool, "")
	if err != nil {
		return nil, nil, err
	}
	ctr = ctr.
		WithMountedDirectory(serviceDir, r.service).
		WithWorkdir(serviceDir).
		WithMountedTemp("/tmp").
		WithDirectory(outDir, dag.Directory())
	if r.holder != "" {
		ctr = ctr.WithEnvVariable("GREENLIGHT_HOLDER", r.holder)
	}
	// Relative to the workdir, so that messages name files as the caller knows them.
	args := []string{"--config", path.Clean(r.config)}
	ctr, more, err := r.cluster.attach(ctx, ctr)
	if err != nil {
		return nil, nil, err
	}
	args = append(args, more...)
	if ctr, more, err = r.registry.attach(ctx, ctr, r.read.Image.Repository); err != nil {
		return nil, nil, err
	}
	args = append(args, more...)
	if ctr, more, err = r.keys.attach(ctx, ctr); err != nil {
		return nil, nil, err
	}
	return ctr, append(args, more...), nil
}

func (r *releaseRun) build(ctx context.Context) (string, error) {
	if err := r.registry.login(ctx, r.read.Image.Repository); err != nil {
		return "", err
	}
	var err error
	r.record, err = image{
		config: r.read, service: r.service, path: r.config, platform: r.platform, version: r.version, base: r.base, args: r.args,
	}.publish(ctx)
	if err != nil {
		return "", err
	}
	data, err := json.Marshal(r.record)
	if err != nil {
		return "", fmt.Errorf("writing the build record: %w", err)
	}
	r.files = r.files.WithNewFile("build.json", string(data)+"\n")
	return r.record.Reference, nil
}

func (r *releaseRun) scan(ctx context.Context, ctr *dagger.Container) (string, error) {
	r.scanner.service = r.service
	if r.read.Scan.IgnoreFile != "" {
		r.scanner.ignoreFile = path.Join(path.Dir(r.config), r.read.Scan.IgnoreFile)
	}
	found, err := r.scanner.scan(ctx, r.module, ctr, r.registry, r.record.Reference)
	if err != nil {
		return "", err
	}
	r.files = r.files.WithDirectory("/", found)
	return "", nil
}

// stage runs one stage of the plan as a span of its own and notes how it went, for the report of a release that ends here.
func (r *releaseRun) stage(ctx context.Context, name string, do func(context.Context) (string, error)) error {
	ctx, span := dagger.Tracer().Start(ctx, name)
	defer span.End()
	started := time.Now()
	detail, err := do(ctx)
	s := stage{Name: name, Status: "passed", StartedAt: started.UTC().Format(time.RFC3339Nano), Seconds: time.Since(started).Seconds(), Detail: detail}
	if err != nil {
		s.Status, s.Detail = "failed", endingOf(err).reason
		span.SetStatus(codes.Error, s.Detail)
	}
	r.stages = append(r.stages, s)
	return err
}

// together does several things at a time. The first error ends the others and is returned.
func together(ctx context.Context, tasks ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	for _, task := range tasks {
		group.Go(func() {
			if err := task(ctx); err != nil {
				cancel(err)
			}
		})
	}
	group.Wait()
	return context.Cause(ctx)
}
