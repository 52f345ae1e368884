package release

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	core "k8s.io/api/core/v1"

	"github.com/greenlight-ci/greenlight/pipelines/deploy"
	"github.com/greenlight-ci/greenlight/pipelines/latency"
	"github.com/greenlight-ci/greenlight/pipelines/probe"
	"github.com/greenlight-ci/greenlight/pipelines/probe/infer"
	"github.com/greenlight-ci/greenlight/pipelines/report"
	"github.com/greenlight-ci/greenlight/pipelines/smoke"
	"github.com/greenlight-ci/greenlight/pipelines/warmup"
)

// servicePort is the port of the live and the preview Service.
const servicePort = 80

func (r *run) deploy(ctx context.Context) (result, error) {
	r.deployedAt = time.Now()
	deployed, err := deploy.Run(ctx, r.colour(r.entry.Candidate))
	if errors.Is(err, deploy.ErrNotReady) {
		return result{}, rejected(err)
	}
	if err != nil {
		return result{}, err
	}
	detail := fmt.Sprintf("%s: %d/%d ready", deployed.Deployment, deployed.Ready, deployed.Replicas)
	if deployed.GPUs > 0 {
		detail += fmt.Sprintf(", %d GPUs", deployed.GPUs)
	}
	return result{detail: detail}, nil
}

// colour is the candidate as the config wants it.
func (r *run) colour(colour string) deploy.Options {
	c := r.Config
	o := deploy.Options{
		Client: r.Client, Log: r.Progress, Namespace: r.Namespace, Service: c.Service, Colour: colour,
		Version: r.Version, Image: r.Image, Release: r.ID,
		Replicas: c.Replicas, Port: c.Port, ServicePort: servicePort, Env: c.Env,
		Device: c.Device, GPUs: *c.GPU.Count, GPUResource: c.GPU.Resource,
		Requests: c.Resources.Requests, Limits: c.Resources.Limits,
		Probes: deploy.Probes{
			Startup: c.Probes.Ready, StartupSeconds: int(c.Probes.Startup.Std().Seconds()),
			Readiness: c.Probes.Ready, Liveness: c.Probes.Health,
		},
		DrainSeconds: int(c.Drain.Std().Seconds()), NodeSelector: c.Pod.NodeSelector, RuntimeClass: c.Pod.RuntimeClassName,
		PullSecrets: c.Image.PullSecrets, Timeout: c.ReadyTimeout.Std(),
	}
	if o.DrainSeconds == 0 {
		o.DrainSeconds = -1
	}
	for _, t := range c.Pod.Tolerations {
		o.Tolerations = append(o.Tolerations, core.Toleration{
			Key: t.Key, Operator: core.TolerationOperator(t.Operator), Value: t.Value, Effect: core.TaintEffect(t.Effect),
		})
	}
	return o
}

// target is a colour as it is in the cluster.
func (s Service) target(colour string, timeout time.Duration) deploy.Target {
	return deploy.Target{
		Client: s.Client, Log: s.Progress, Namespace: s.Namespace, Service: s.Config.Service, Colour: colour, Timeout: timeout,
	}
}

func (s Service) liveURL() string {
	return deploy.LiveURL(s.Namespace, s.Config.Service, servicePort)
}

func (s Service) previewURL() string {
	return deploy.ServiceURL(deploy.PreviewName(s.Config.Service), s.Namespace, servicePort)
}

// liveURLOrNone is empty while nothing is live, so that gates do not compare with nothing.
func (r *run) liveURLOrNone() string {
	if r.entry.Previous == "" {
		return ""
	}
	return r.liveURL()
}

func (r *run) smoke(ctx context.Context) (result, error) {
	cases, err := r.cases()
	if err != nil {
		return result{}, err
	}
	c := r.Config.Smoke
	o := smoke.Options{
		URL: r.previewURL(), LiveURL: r.liveURLOrNone(), Device: r.Config.Device, Cases: cases,
		Expect:    smoke.Pins{Version: r.Version, Colour: r.entry.Candidate, Torch: c.Torch, CUDA: c.CUDA, CUDNN: c.CuDNN},
		Agreement: smoke.Agreement{MinClasses: float64(c.MinAgreement)},
		ReadyPath: r.Config.Probes.Ready, Timeout: c.Timeout.Std(),
	}
	if c.MinAgreement == 0 {
		o.Agreement.MinClasses = -1
	}
	var found smoke.Result
	limit := o.Timeout*time.Duration(2*len(cases)+2) + leeway
	if err := r.gate(ctx, "smoke", o, &found, limit); err != nil {
		return result{}, err
	}
	if !found.Passed {
		return result{}, rejected(fmt.Errorf("%w: %s", smoke.ErrRejected, found.Reason))
	}
	return result{detail: found.Reason}, nil
}

func (r *run) warmup(ctx context.Context) (result, error) {
	request, err := r.request()
	if err != nil {
		return result{}, err
	}
	c := r.Config.Warmup
	o := warmup.Options{URL: r.previewURL(), Requests: []infer.Request{request}, MaxDuration: c.Timeout.Std()}
	var found warmup.Result
	if err := r.gate(ctx, "warmup", o, &found, o.MaxDuration+leeway); err != nil {
		return result{}, err
	}
	if !found.Passed {
		return result{}, rejected(fmt.Errorf("%w: %s", warmup.ErrRejected, found.Reason))
	}
	return result{detail: found.Reason}, nil
}

// latencyOptions are the gate's, with live beside the candidate or without.
func (s Service) latencyOptions(version, liveURL string) (latency.Options, error) {
	request, err := s.request()
	if err != nil {
		return latency.Options{}, err
	}
	c := s.Config.Latency
	o := latency.Options{
		CandidateURL: s.previewURL(), LiveURL: liveURL, CandidateVersion: version, Requests: []infer.Request{request},
		Rate: c.Rate, Arrivals: c.Arrivals, Connections: c.Connections, Duration: c.Budget.Std(), Timeout: c.Timeout.Std(),
		MaxRequests: max(1, int(c.Rate*c.Budget.Std().Seconds())), Alpha: float64(c.FalseAlarm),
	}
	for _, l := range c.Limits {
		limit := latency.Limit{Quantile: l.Quantile, MaxMillis: float64(l.Max.Std().Microseconds()) / 1000}
		if o.LiveURL != "" {
			limit.MaxRegressionPercent = 100 * float64(l.MaxRegression)
		}
		if limit.MaxMillis > 0 || limit.MaxRegressionPercent > 0 {
			o.Limits = append(o.Limits, limit)
		}
	}
	return o, nil
}

func (r *run) latency(ctx context.Context) (result, error) {
	o, err := r.latencyOptions(r.Version, r.liveURLOrNone())
	if err != nil {
		return result{}, err
	}
	if len(o.Limits) == 0 {
		return result{skipped: true, detail: "nothing is live to compare with, and no limit is absolute"}, nil
	}
	var found latency.Result
	if err := r.gate(ctx, "latency", o, &found, o.Duration+o.Timeout+leeway); err != nil {
		return result{}, err
	}
	r.report.Latency = &report.Latency{Samples: found.Samples, Decision: found.Decision}
	if found.Candidate != nil {
		r.report.Latency.Candidate = percentiles(*found.Candidate)
	}
	if found.Live != nil {
		live := percentiles(*found.Live)
		r.report.Latency.Live = &live
	}
	if !found.Passed {
		return result{}, rejected(fmt.Errorf("%w: %s", latency.ErrRejected, found.Reason))
	}
	return result{detail: found.Reason}, nil
}

func percentiles(p latency.Percentiles) report.Percentiles {
	return report.Percentiles{P50: p.P50, P95: p.P95, P99: p.P99}
}

// gate runs one subcommand of the probe as a Job in the cluster and reads its result.
func (r *run) gate(ctx context.Context, name string, options, into any, limit time.Duration) error {
	content, err := json.Marshal(options)
	if err != nil {
		return fmt.Errorf("preparing the %s gate: %w", name, err)
	}
	answer, err := probe.Run(ctx, r.probe(name, content, limit))
	if err != nil {
		return fmt.Errorf("running the %s gate: %w", name, err)
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("reading the result of the %s gate: %w", name, err)
	}
	return nil
}

func (r *run) probe(name string, options []byte, limit time.Duration) probe.Options {
	return probe.Options{
		Client: r.Client, Namespace: r.Namespace, Name: r.Config.Service + "-" + name, Image: r.ProbeImage,
		Command: []string{probe.Binary, name}, Files: map[string][]byte{"options.json": options},
		Timeout: limit, ImagePullSecrets: r.Config.Image.PullSecrets, Log: r.Progress,
		Labels: map[string]string{deploy.LabelManagedBy: deploy.Manager, deploy.LabelName: r.Config.Service},
	}
}

func (s Service) cases() ([]smoke.Case, error) {
	cases, err := smoke.ReadCases(filepath.Join(s.Config.Dir, s.Config.Smoke.Cases))
	if err != nil {
		return nil, usage(err)
	}
	return cases, nil
}

// request is the golden request that warm-up and latency send.
func (s Service) request() (infer.Request, error) {
	cases, err := s.cases()
	if err != nil {
		return infer.Request{}, err
	}
	name := s.Config.Latency.Case
	for _, c := range cases {
		// A case that expects an error would measure how fast the service refuses.
		if c.Name == name || name == "" && c.Answers() {
			return c.Request, nil
		}
	}
	if name == "" {
		return infer.Request{}, usage(fmt.Errorf("no golden case in %s expects status 200", s.Config.Smoke.Cases))
	}
	return infer.Request{}, usage(fmt.Errorf("latency.case %q is none of the golden cases in %s", name, s.Config.Smoke.Cases))
}
