package smoke

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/greenlight-ci/greenlight/pipelines/probe/infer"
)

// Ready is what a service says about itself. Fields that do not apply, such as CUDA's on a CPU, are null.
type Ready struct {
	Status             string   `json:"status"`
	Colour             string   `json:"colour"`
	Version            string   `json:"version"`
	Device             string   `json:"device"`
	DeviceName         *string  `json:"deviceName"`
	Torch              *string  `json:"torch"`
	CUDA               *string  `json:"cuda"`
	CUDNN              *version `json:"cudnn"`
	Driver             *string  `json:"driver"`
	ComputeCapability  *string  `json:"computeCapability"`
	GPUMemoryUsedBytes *int64   `json:"gpuMemoryUsedBytes"`
	GPUMemoryBytes     *int64   `json:"gpuMemoryTotalBytes"`
	WeightsSHA256      *string  `json:"weightsSha256"`
	UID                *int64   `json:"uid"`
}

// version is a version that a service may write as a string or, as torch does for cuDNN, as a number: 90100.
type version string

// UnmarshalJSON takes "9.1.0" and 90100.
func (v *version) UnmarshalJSON(content []byte) error {
	var text string
	if json.Unmarshal(content, &text) == nil {
		*v = version(text)
		return nil
	}
	var number json.Number
	if err := json.Unmarshal(content, &number); err != nil {
		return fmt.Errorf("a version must be a string or a number: %w", err)
	}
	*v = version(number)
	return nil
}

// checkReady asks the service what it is and compares that with the pins. false: there is no use in going on.
func (r *run) checkReady(ctx context.Context) bool {
	if r.options.ReadyPath == "-" {
		r.notChecked("everything that /ready says (device, versions, weights, user): readyPath is \"-\"")
		return true
	}
	answer, err := r.waitReady(ctx)
	if err != nil {
		return r.check("ready", false, "%v", err)
	}
	encoded, err := json.Marshal(answer.Document)
	if err == nil {
		r.result.Ready = new(Ready)
		err = json.Unmarshal(encoded, r.result.Ready)
	}
	if err != nil {
		r.result.Ready = nil
		return r.check("ready", false, "%s answered something else than documented: %v", r.options.ReadyPath, err)
	}
	ready := *r.result.Ready
	r.check("ready", true, "%s answered after %.1f ms", r.options.ReadyPath, answer.Elapsed.Seconds()*1000)
	r.comparePins(ready)
	return true
}

func (r *run) waitReady(ctx context.Context) (infer.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, r.options.ReadyTimeout)
	defer cancel()
	var last error
	for {
		answer, err := r.candidate.Get(ctx, r.options.ReadyPath, 200)
		if err == nil {
			return answer, nil
		}
		// The wait's own end is not the reason; what came before it is.
		if last == nil || ctx.Err() == nil {
			last = err
		}
		switch infer.KindOf(err) {
		case infer.Refused, infer.Unreachable, infer.Closed, infer.TimedOut, infer.BadStatus:
		default:
			return answer, last // an HTML page or NaN does not go away by waiting
		}
		select {
		case <-ctx.Done():
			return answer, fmt.Errorf("%w (for %s)", last, r.options.ReadyTimeout)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (r *run) comparePins(ready Ready) {
	want := r.options.Expect
	device := ready.Device
	if device == "" {
		device = "nothing"
	}
	detail := fmt.Sprintf("runs on %s", device)
	if ready.DeviceName != nil {
		detail += " (" + *ready.DeviceName + ")"
	}
	if ready.Device != r.options.Device {
		detail += fmt.Sprintf(" instead of %s", r.options.Device)
		if r.options.Device == CUDA && ready.Device == CPU {
			detail += `: no GPU reached the process, or torch was built without CUDA`
		}
	}
	r.check("device", ready.Device == r.options.Device, "%s", detail)
	r.compare("version", want.Version, &ready.Version, equal)
	r.compare("colour", want.Colour, &ready.Colour, equal)
	r.compare("torch", want.Torch, ready.Torch, startsWithVersion)
	if r.options.Device == CUDA {
		r.compare("cuda", want.CUDA, ready.CUDA, startsWithVersion)
		r.compare("cudnn", want.CUDNN, cudnnVersion(ready.CUDNN), startsWithVersion)
		r.compare("driver", want.Driver, ready.Driver, startsWithVersion)
		r.compare("compute capability", want.ComputeCapability, ready.ComputeCapability, equal)
		r.checkMemory(ready)
	} else {
		r.notChecked("cuda, cudnn, driver, compute capability, GPU memory: the device is cpu")
	}
	r.compare("weights checksum", strings.ToLower(want.WeightsSHA256), ready.WeightsSHA256, func(want, got string) bool { return strings.EqualFold(want, got) })
	switch {
	case want.AllowRoot:
		r.notChecked("user: root is allowed")
	case ready.UID == nil:
		r.notChecked("user: %s does not say the uid", r.options.ReadyPath)
	default:
		detail := fmt.Sprintf("runs as uid %d", *ready.UID)
		if *ready.UID == 0 {
			detail += " (root): give the image a USER"
		}
		r.check("user", *ready.UID != 0, "%s", detail)
	}
}

func (r *run) checkMemory(ready Ready) {
	budget := r.options.Expect.MaxGPUMemoryBytes
	switch {
	case budget == 0:
		r.notChecked("GPU memory: no budget is configured")
	case ready.GPUMemoryUsedBytes == nil:
		r.check("GPU memory", false, "%s does not say gpuMemoryUsedBytes, so the budget of %d bytes cannot be checked", r.options.ReadyPath, budget)
	default:
		used := *ready.GPUMemoryUsedBytes
		r.check("GPU memory", used <= budget, "%d bytes in use, the budget is %d", used, budget)
	}
}

func (r *run) compare(name, want string, got *string, same func(want, got string) bool) {
	switch {
	case want == "":
		r.notChecked("%s: no pin is configured", name)
	case got == nil || *got == "":
		r.check(name, false, "%s does not say it; %s is pinned", r.options.ReadyPath, want)
	case same(want, *got):
		r.check(name, true, "%s", *got)
	default:
		r.check(name, false, "%s instead of %s", *got, want)
	}
}

func equal(want, got string) bool { return want == got }

// startsWithVersion tells whether got is want or a more exact form of it: 2.7 allows 2.7.0+cu126, not 2.70.
func startsWithVersion(want, got string) bool {
	rest, ok := strings.CutPrefix(got, want)
	return ok && (rest == "" || strings.ContainsRune(".+-", rune(rest[0])))
}

// cudnnVersion writes torch's number 90100 as 9.1.0 (major·10000 + minor·100 + patch, since cuDNN 9; before, major·1000).
func cudnnVersion(got *version) *string {
	if got == nil {
		return nil
	}
	text := string(*got)
	var number int
	if _, err := fmt.Sscanf(text, "%d", &number); err == nil && !strings.Contains(text, ".") {
		major := 10000
		if number < 10000 {
			major = 1000
		}
		text = fmt.Sprintf("%d.%d.%d", number/major, number%major/100, number%100)
	}
	return &text
}
