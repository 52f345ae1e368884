package config

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

func (c *Config) setDefaults() {
	setDefault(&c.Image.Dockerfile, "Dockerfile")
	setDefault(&c.Replicas, 1)
	setDefault(&c.Port, 8080)
	if c.GPU.Count == nil {
		count := int64(0)
		if c.Device == "cuda" || c.GPU.Resource != "" {
			count = 1
		}
		c.GPU.Count = &count
	}
	if *c.GPU.Count > 0 {
		setDefault(&c.GPU.Resource, "nvidia.com/gpu")
	}
	setDefault(&c.Probes.Health, "/health")
	setDefault(&c.Probes.Ready, "/ready")
	setDefault(&c.Drain, Duration(5*time.Second))
	setDefault(&c.ReadyTimeout, Duration(10*time.Minute))
	setDefault(&c.Probes.Startup, c.ReadyTimeout)
	if c.Scan.Fail == nil {
		c.Scan.Fail = []string{"CRITICAL"}
	}
	setDefault(&c.Sign.PublicKey, "cosign.pub")
	setDefault(&c.Smoke.Cases, "cases")
	setDefault(&c.Smoke.Timeout, Duration(10*time.Second))
	setDefault(&c.Warmup.Timeout, Duration(2*time.Minute))
	setDefault(&c.Latency.Rate, 50)
	setDefault(&c.Latency.Budget, Duration(2*time.Minute))
	setDefault(&c.Latency.Timeout, Duration(5*time.Second))
	setDefault(&c.Latency.Connections, 8)
	setDefault(&c.Latency.Arrivals, "poisson")
	setDefault(&c.Latency.FalseAlarm, 0.01)
	if c.Latency.Limits == nil {
		c.Latency.Limits = []LatencyLimit{{Quantile: 0.99, Max: Duration(time.Second)}}
	}
	setDefault(&c.Switch.Router, "service")
	setDefault(&c.Switch.Timeout, Duration(30*time.Second))
	setDefault(&c.Switch.ProbeRate, 20)
	setDefault(&c.Bake.Duration, Duration(time.Minute))
	setDefault(&c.Keep.Cold, Duration(24*time.Hour))
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

var (
	dnsLabel   = regexp.MustCompile(`^[a-z]([-a-z0-9]*[a-z0-9])?$`)
	repository = regexp.MustCompile(`^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+$`)
	severities = []string{"CRITICAL", "HIGH", "MEDIUM", "LOW", "UNKNOWN"}
	routers    = []string{"service"}
)

// validate returns the first thing that is wrong, by key.
func (c *Config) validate() error {
	checks := []struct {
		ok      bool
		message string
	}{
		{c.Service != "", "service is missing"},
		{dnsLabel.MatchString(c.Service) && len(c.Service) <= 40, fmt.Sprintf("service %q must be lower-case letters, digits and dashes, at most 40, and start with a letter", c.Service)},
		{c.Namespace == "" || dnsLabel.MatchString(c.Namespace) && len(c.Namespace) <= 63, fmt.Sprintf("namespace %q is not a Kubernetes namespace name", c.Namespace)},
		{c.Image.Repository != "", "image.repository is missing"},
		{repository.MatchString(c.Image.Repository), fmt.Sprintf("image.repository %q must be host/path without tag or digest", c.Image.Repository)},
		{c.Image.Base == "" || strings.Contains(c.Image.Base, "@sha256:"), fmt.Sprintf("image.base %q is not pinned; write it as name@sha256:…", c.Image.Base)},
		{inside(c.Image.Context), fmt.Sprintf("image.context %q leaves the directory of the config", c.Image.Context)},
		{inside(c.Image.Dockerfile), fmt.Sprintf("image.dockerfile %q leaves the build context", c.Image.Dockerfile)},
		{c.Device != "", "device is missing; write cuda, or cpu if that is meant"},
		{c.Device == "cuda" || c.Device == "cpu", fmt.Sprintf("device %q is neither cuda nor cpu", c.Device)},
		{c.Replicas > 0, "replicas must be at least 1"},
		{c.Port > 0 && c.Port < 65536, fmt.Sprintf("port %d is no port", c.Port)},
		{*c.GPU.Count >= 0, "gpu.count must not be negative"},
		{c.Device != "cuda" || *c.GPU.Count > 0, "device is cuda but gpu.count is 0"},
		{strings.HasPrefix(c.Probes.Health, "/"), "probes.health must be a path that starts with /"},
		{strings.HasPrefix(c.Probes.Ready, "/"), "probes.ready must be a path that starts with /"},
		{c.Smoke.MinAgreement <= 1, "smoke.minAgreement must be at most 100%"},
		{c.Latency.Rate > 0 && c.Latency.Rate <= 10000, "latency.rate must be between 0 and 10000 requests a second"},
		{c.Latency.Connections > 0 && c.Latency.Connections <= 1000, "latency.connections must be between 1 and 1000"},
		{slices.Contains([]string{"poisson", "constant"}, c.Latency.Arrivals), fmt.Sprintf("latency.arrivals %q is neither poisson nor constant", c.Latency.Arrivals)},
		{len(c.Latency.Limits) > 0, "latency.limits is empty: a gate without limits would pass anything"},
		{c.Latency.FalseAlarm > 0 && c.Latency.FalseAlarm < 0.5, "latency.falseAlarm must be above 0% and below 50%"},
		{slices.Contains(routers, c.Switch.Router), fmt.Sprintf("switch.router %q is not known; known: %s", c.Switch.Router, strings.Join(routers, ", "))},
		{c.Switch.ProbeRate > 0 && c.Switch.ProbeRate <= 1000, "switch.probeRate must be between 0 and 1000 requests a second"},
		{c.Bake.MaxFailed < 1, "bake.maxFailed must be below 100%"},
	}
	for _, check := range checks {
		if !check.ok {
			return fmt.Errorf("%s", check.message)
		}
	}
	for i, s := range c.Scan.Fail {
		if !slices.Contains(severities, s) {
			return fmt.Errorf("scan.fail[%d] %q is no severity; known: %s", i, s, strings.Join(severities, ", "))
		}
	}
	for i, l := range c.Latency.Limits {
		if !(l.Quantile > 0 && l.Quantile < 1) {
			return fmt.Errorf("latency.limits[%d].quantile %v must be between 0 and 1, for example 0.99", i, l.Quantile)
		}
		if l.Max == 0 && l.MaxRegression == 0 {
			return fmt.Errorf("latency.limits[%d] sets neither max nor maxRegression", i)
		}
	}
	return nil
}

// inside says whether a relative path stays below where it starts.
func inside(path string) bool {
	return path == "" || filepath.IsLocal(path)
}
