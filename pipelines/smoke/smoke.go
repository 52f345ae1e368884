// Package smoke is the gate that says whether the candidate computes the right thing on the right device: golden requests
// with expected values, no NaN or infinity anywhere, the device and versions that were pinned, agreement with live.
package smoke

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/greenlight-ci/greenlight/pipelines/probe/infer"
	"github.com/greenlight-ci/greenlight/pipelines/probe/jsonpath"
)

var (
	// ErrRejected is wrapped by the error of a gate that said no. The Result says why.
	ErrRejected = errors.New("smoke gate rejected the candidate")
	// ErrOptions is wrapped by errors about the options and the golden cases: nothing was sent.
	ErrOptions = errors.New("smoke options")
)

// The devices.
const (
	CPU  = "cpu"
	CUDA = "cuda"
)

// Options are what Run needs. Durations are nanoseconds in JSON.
type Options struct {
	// URL is the preview Service. Required.
	URL string `json:"url"`
	// LiveURL is the live Service for the comparison, "" for none.
	LiveURL string `json:"liveUrl,omitempty"`
	// Device is CPU or CUDA. Required: a CPU answer is never accepted unasked.
	Device string `json:"device"`
	// Cases are golden cases; CasesDir is a directory with more of them. Together at least one.
	Cases    []Case `json:"cases,omitempty"`
	CasesDir string `json:"casesDir,omitempty"`
	// Expect are the pins that /ready must show.
	Expect Pins `json:"expect,omitzero"`
	// Agreement says how far the candidate may be from live.
	Agreement Agreement `json:"agreement,omitzero"`
	// Outputs is the JSON path of the numbers that every good answer must have. Default $.outputs, "-" for none.
	Outputs string `json:"outputs,omitempty"`
	// Classes is the JSON path of the predicted classes. Default $.classes. Where an answer has none, the largest number of each row of Outputs counts.
	Classes string `json:"classes,omitempty"`
	// ReadyPath answers what the service runs on. Default /ready, "-" where the service has none: then no pin can be checked.
	ReadyPath string `json:"readyPath,omitempty"`
	// ReadyTimeout is how long the service may take until ReadyPath answers 200: a Service takes a moment to route to a new pod. Default 15 s.
	ReadyTimeout time.Duration `json:"readyTimeout,omitempty"`
	// Timeout is for one request. Default 10 s.
	Timeout time.Duration `json:"timeout,omitempty"`
	// MaxBody is the largest answer in bytes. Default 4 MiB.
	MaxBody int64 `json:"maxBody,omitempty"`
	// Log is told about the progress, one line at a time. nil: nobody.
	Log func(line string) `json:"-"`
}

// Pins are what the candidate must say about itself. Empty fields are not checked, and reported as not checked.
type Pins struct {
	// Version and Colour are those of the candidate; every answer that names them must agree.
	Version string `json:"version,omitempty"`
	Colour  string `json:"colour,omitempty"`
	// Torch, CUDA, CUDNN, Driver and ComputeCapability are compared from the left, number by number: "2.7" allows "2.7.0+cu126".
	Torch             string `json:"torch,omitempty"`
	CUDA              string `json:"cuda,omitempty"`
	CUDNN             string `json:"cudnn,omitempty"`
	Driver            string `json:"driver,omitempty"`
	ComputeCapability string `json:"computeCapability,omitempty"`
	// WeightsSHA256 is the checksum of the weights in hexadecimal.
	WeightsSHA256 string `json:"weightsSha256,omitempty"`
	// MaxGPUMemoryBytes is the budget of GPU memory in use.
	MaxGPUMemoryBytes int64 `json:"maxGpuMemoryBytes,omitempty"`
	// AllowRoot accepts a service that runs as uid 0.
	AllowRoot bool `json:"allowRoot,omitempty"`
}

// Agreement bounds the difference from live on the golden requests that expect status 200.
type Agreement struct {
	// MinClasses is the least share of equal predicted classes, 0 to 1. Default 0.9; negative: reported only.
	MinClasses float64 `json:"minClasses,omitempty"`
	// MinValues is the least share of output numbers within the tolerance, 0 to 1. Default 0: reported only.
	MinValues float64 `json:"minValues,omitempty"`
	// Absolute and Relative are that tolerance. Default 0.01 absolute where both are 0.
	Absolute float64 `json:"absolute,omitempty"`
	Relative float64 `json:"relative,omitempty"`
}

// Check is one thing that was looked at.
type Check struct {
	Name   string `json:"name"`
	Passed bool   `json:"passed"`
	// Detail is the finding in one line.
	Detail string `json:"detail"`
}

// Result is what the gate found.
type Result struct {
	// Passed tells whether every check passed.
	Passed bool `json:"passed"`
	// Reason is the finding in one line: the first check that failed, or a summary.
	Reason string `json:"reason"`
	// Checks are all checks in the order they were made.
	Checks []Check `json:"checks"`
	// NotChecked says what was not looked at, and why.
	NotChecked []string `json:"notChecked"`
	// Cases is the number of golden cases sent.
	Cases int `json:"cases"`
	// Ready is what the service says about itself, null where it was not asked.
	Ready *Ready `json:"ready"`
	// Agreement is null without LiveURL.
	Agreement *AgreementResult `json:"agreement"`
	// Seconds is how long it took.
	Seconds float64 `json:"seconds"`
}

// AgreementResult is how near the candidate's answers are to live's.
type AgreementResult struct {
	// Cases is how many requests both answered; Skipped is how many live did not.
	Cases   int `json:"cases"`
	Skipped int `json:"skipped"`
	// Classes and Values are the shares of equal classes and of numbers within the tolerance.
	Classes float64 `json:"classes"`
	Values  float64 `json:"values"`
	// MaxDifference is the largest absolute difference of two output numbers.
	MaxDifference float64 `json:"maxDifference"`
}

// maxUnanswered is after how many requests in a row without any answer the rest is left out: a service that hangs would
// take the timeout for each of a thousand cases.
const maxUnanswered = 3

// run is one smoke run.
type run struct {
	options         Options
	cases           []Case
	outputs         jsonpath.Path
	checkOutputs    bool
	classes         jsonpath.Path
	candidate, live *infer.Client
	answers         []infer.Answer // of the cases, empty Document where the case failed
	result          Result
}

func (r *run) check(name string, passed bool, format string, args ...any) bool {
	check := Check{Name: name, Passed: passed, Detail: fmt.Sprintf(format, args...)}
	r.result.Checks = append(r.result.Checks, check)
	verdict := "ok"
	if !passed {
		verdict = "FAILED"
	}
	r.options.Log(fmt.Sprintf("%s %s: %s", verdict, name, check.Detail))
	return passed
}

func (r *run) notChecked(format string, args ...any) {
	r.result.NotChecked = append(r.result.NotChecked, fmt.Sprintf(format, args...))
}

// Run checks the candidate. A candidate that is rejected gets an error that wraps ErrRejected, with the Result filled; errors about
// the options or the case files wrap ErrOptions.
func Run(ctx context.Context, options Options) (Result, error) {
	r, err := newRun(options)
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrOptions, err)
	}
	defer r.close()
	start := time.Now()
	// A service that is not there, or not ready, fails every case in the same way: say it once.
	if r.checkReady(ctx) {
		r.checkCases(ctx)
		if r.live != nil {
			r.checkAgreement(ctx)
		}
	}
	if ctx.Err() != nil {
		return r.result, fmt.Errorf("smoke: stopped: %w", context.Cause(ctx))
	}
	result := r.result
	result.Seconds = float64(time.Since(start).Milliseconds()) / 1000
	failed := 0
	for _, check := range result.Checks {
		if !check.Passed {
			if failed++; failed == 1 {
				result.Reason = check.Name + ": " + check.Detail
			}
		}
	}
	switch {
	case failed > 1:
		result.Reason += fmt.Sprintf(" (and %d more of %d checks failed)", failed-1, len(result.Checks))
	case failed == 0:
		result.Reason = fmt.Sprintf("%d checks passed on %d golden cases", len(result.Checks), result.Cases)
	}
	if result.Passed = failed == 0 && result.Cases > 0; !result.Passed {
		return result, fmt.Errorf("%w: %s", ErrRejected, result.Reason)
	}
	return result, nil
}

func newRun(options Options) (*run, error) {
	setDefault(&options.ReadyPath, "/ready")
	setDefault(&options.ReadyTimeout, 15*time.Second)
	setDefault(&options.Classes, "$.classes")
	setDefault(&options.Agreement.MinClasses, 0.9)
	if options.Agreement.Absolute == 0 && options.Agreement.Relative == 0 {
		options.Agreement.Absolute = 0.01
	}
	if options.Log == nil {
		options.Log = func(string) {}
	}
	r := &run{options: options, cases: append([]Case(nil), options.Cases...), result: Result{Checks: []Check{}, NotChecked: []string{}}}
	var err error
	switch {
	case options.Device != CPU && options.Device != CUDA:
		return nil, fmt.Errorf("device must be %q or %q, not %q", CPU, CUDA, options.Device)
	case options.Timeout < 0 || options.ReadyTimeout < 0 || options.MaxBody < 0:
		return nil, errors.New("timeout, readyTimeout and maxBody must not be negative")
	case options.Agreement.MinClasses > 1 || options.Agreement.MinValues > 1:
		return nil, errors.New("agreement.minClasses and agreement.minValues are shares between 0 and 1")
	}
	if r.outputs, r.checkOutputs, err = infer.OutputsPath(options.Outputs); err != nil {
		return nil, fmt.Errorf("outputs: %w", err)
	}
	if r.classes, err = jsonpath.Parse(options.Classes); err != nil {
		return nil, fmt.Errorf("classes: %w", err)
	}
	for i := range r.cases {
		setDefault(&r.cases[i].Name, fmt.Sprintf("case-%d", i+1))
		if err := r.cases[i].check(); err != nil {
			return nil, fmt.Errorf("golden case %s: %w", r.cases[i].Name, err)
		}
	}
	if options.CasesDir != "" {
		fromFiles, err := ReadCases(options.CasesDir)
		if err != nil {
			return nil, err
		}
		r.cases = append(r.cases, fromFiles...)
	}
	if len(r.cases) == 0 {
		return nil, errors.New("there is no golden case: an empty set would let any service pass")
	}
	how := infer.Options{Timeout: options.Timeout, MaxBody: options.MaxBody, Connections: 2}
	if r.candidate, err = infer.NewClient(options.URL, how); err != nil {
		return nil, err
	}
	if options.LiveURL != "" {
		if r.live, err = infer.NewClient(options.LiveURL, how); err != nil {
			return nil, fmt.Errorf("live: %w", err)
		}
	}
	return r, nil
}

func (r *run) close() {
	r.candidate.Close()
	if r.live != nil {
		r.live.Close()
	}
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// checkCases sends every golden case.
func (r *run) checkCases(ctx context.Context) {
	devices, versions, colours := 0, 0, 0
	unanswered := 0
	r.answers = make([]infer.Answer, len(r.cases))
	for i, c := range r.cases {
		if unanswered == maxUnanswered {
			r.notChecked("%d golden cases: the service left %d in a row without an answer", len(r.cases)-i, unanswered)
			break
		}
		r.result.Cases++
		name := "case " + c.Name
		status := c.Expect.Status
		setDefault(&status, 200)
		answer, err := r.candidate.Do(ctx, c.Request, status)
		switch infer.KindOf(err) {
		case infer.Refused, infer.Unreachable, infer.TimedOut, infer.Closed:
			unanswered++
		default:
			unanswered = 0
		}
		if err == nil && r.checkOutputs && status == 200 {
			_, err = infer.Outputs(answer.Document, r.outputs)
		}
		if err != nil {
			r.check(name, false, "%v", err)
			continue
		}
		if differences := c.Expect.differences(answer.Document); len(differences) > 0 {
			r.check(name, false, "%s", differences[0])
			continue
		}
		if status == 200 {
			if problem := r.identity(answer); problem != "" {
				r.check(name, false, "%s", problem)
				continue
			}
			devices += count(answer.Device)
			versions += count(answer.Version)
			colours += count(answer.Colour)
		}
		r.answers[i] = answer
		r.check(name, true, "%d values and %d shapes as expected in %.1f ms", len(c.Expect.Values), len(c.Expect.Shape), answer.Elapsed.Seconds()*1000)
	}
	if devices == 0 && r.options.Device == CPU {
		r.notChecked("device of each answer: no answer names one")
	}
	if versions == 0 && r.options.Expect.Version != "" {
		r.notChecked("version of each answer: no answer names one")
	}
	if colours == 0 && r.options.Expect.Colour != "" {
		r.notChecked("colour of each answer: no answer names one")
	}
}

func count(text string) int {
	if text == "" {
		return 0
	}
	return 1
}

// identity says which of the answer's own statements is not the candidate's.
func (r *run) identity(answer infer.Answer) string {
	want := r.options.Expect
	switch {
	case answer.Device == "" && r.options.Device == CUDA:
		return `the answer does not say that it was computed on cuda: it has no "device"`
	case answer.Device != "" && answer.Device != r.options.Device:
		return fmt.Sprintf("computed on %s instead of %s", answer.Device, r.options.Device)
	case answer.Version != "" && want.Version != "" && answer.Version != want.Version:
		return fmt.Sprintf("answered by version %s instead of the candidate %s: the preview Service does not lead to the candidate", answer.Version, want.Version)
	case answer.Colour != "" && want.Colour != "" && answer.Colour != want.Colour:
		return fmt.Sprintf("answered by %s instead of the candidate's colour %s: the preview Service does not lead to the candidate", answer.Colour, want.Colour)
	}
	return ""
}
