// Greenlight releases GPU inference services blue/green.
//
// It builds the service's image, scans it with Trivy, signs it with cosign, deploys it beside the version that serves,
// proves on the device that it computes the right thing fast enough, moves the traffic without losing a request, and
// takes the old version down. `release` does all of it; the other functions are its stages, callable alone.
//
// Exit codes of `dagger call`: 0 done, 1 failed, 2 usage or config, 3 a gate said no (live is untouched), 4 rolled back,
// 5 another release holds the lock.
package main

import (
	"dagger/greenlight/internal/dagger"
)

// Greenlight releases one service, blue/green.
type Greenlight struct {
	// +private
	ModuleSource *dagger.Directory
	// +private
	Tools *dagger.Directory
	// +private
	GoImage string
	// +private
	GoProxy string
	// +private
	GoSumDB string
	// +private
	GoModCache *dagger.CacheVolume
	// +private
	GoBuildCache *dagger.CacheVolume
	// +private
	TrivyCache *dagger.CacheVolume
}

// New takes what all functions share: where the stage binaries come from and the caches they use. Nothing of it needs to
// be given.
func New(
	// Greenlight's own source, from which the stage binaries are compiled. Leave it out: it is this module's repository.
	//
	// +defaultPath="/"
	// +ignore=["*", "!go.mod", "!go.sum", "!cmd", "!pipelines", "!manifests", "!policies", "**/*_test.go", "**/testdata"]
	moduleSource *dagger.Directory,
	// Directory with stage binaries for the engine's platform that were built before (greenlight, greenlight-probe,
	// greenlight-scan). Those that are in it are not compiled.
	//
	// +optional
	tools *dagger.Directory,
	// Image with the Go toolchain, CA certificates and a shell that compiles the stage binaries. Name it with a digest to
	// pin it.
	//
	// +default="docker.io/library/golang:1.26"
	goImage string,
	// GOPROXY for compiling the stage binaries. Default: the image's.
	//
	// +optional
	goProxy string,
	// GOSUMDB for compiling the stage binaries. Default: the image's.
	//
	// +optional
	goSumDB string,
	// Cache volume for Go modules. Default: greenlight-go-mod.
	//
	// +optional
	goModCache *dagger.CacheVolume,
	// Cache volume for compiled Go packages. Default: greenlight-go-build.
	//
	// +optional
	goBuildCache *dagger.CacheVolume,
	// Cache volume for Trivy's database and layer analyses. Default: greenlight-trivy.
	//
	// +optional
	trivyCache *dagger.CacheVolume,
) *Greenlight {
	if goModCache == nil {
		goModCache = dag.CacheVolume("greenlight-go-mod")
	}
	if goBuildCache == nil {
		goBuildCache = dag.CacheVolume("greenlight-go-build")
	}
	if trivyCache == nil {
		trivyCache = dag.CacheVolume("greenlight-trivy")
	}
	return &Greenlight{
		ModuleSource: moduleSource,
		Tools:        tools,
		GoImage:      goImage,
		GoProxy:      goProxy,
		GoSumDB:      goSumDB,
		GoModCache:   goModCache,
		GoBuildCache: goBuildCache,
		TrivyCache:   trivyCache,
	}
}
