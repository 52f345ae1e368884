// Consumer is another team's module that releases its service with Greenlight. It is there to see that the module can be
// depended on: that its types can be used, and that its stage binaries are compiled from its own repository.
package main

import (
	"context"

	"dagger/consumer/internal/dagger"
)

// Consumer releases one service of its team.
type Consumer struct{}

// The version of the Greenlight module.
func (c *Consumer) Greenlight(ctx context.Context) (string, error) {
	return dag.Greenlight().Version(ctx)
}

// Release the service and return the report in one line, however it ended.
//
// +cache="never"
func (c *Consumer) Ship(
	ctx context.Context,
	source *dagger.Directory,
	version string,
	kubeconfig *dagger.Secret,
	signingKey *dagger.Secret,
	// +optional
	kubeApi *dagger.Service,
	// +optional
	registry *dagger.Service,
) (string, error) {
	return dag.Greenlight().
		Release(source, version, kubeconfig, signingKey, dagger.GreenlightReleaseOpts{
			KubeAPI:      kubeApi,
			Registry:     registry,
			AllowFailure: true,
		}).
		Summary(ctx)
}
