package release

import (
	"context"
	"time"
)

// A step is one line of the plan.
type step struct {
	name string
	// phase is what the journal says from this step's intent on. Empty: as before.
	phase Phase
	run   func(ctx context.Context) (result, error)
}

// result is what a step has to say when it succeeded.
type result struct {
	detail string
	// skipped says that there was nothing to do.
	skipped bool
	// startedAt and seconds are set by steps that report what was done earlier, elsewhere.
	startedAt time.Time
	seconds   float64
}

// plan is a release after its preflight, in order. What a step leaves behind when it fails is undone by the phase that
// it failed in, see compensate.
func (r *run) plan() []step {
	return []step{
		{name: "build", run: r.build},
		{name: "scan", run: r.scan},
		{name: "sign", run: r.sign},
		{name: "verify", run: r.verify},
		{name: "deploy", run: r.deploy},
		{name: "smoke", run: r.smoke},
		{name: "warmup", run: r.warmup},
		{name: "latency", run: r.latency},
		{name: "switch", phase: Switching, run: r.switchTraffic},
		{name: "bake", run: r.bake},
		{name: "teardown", phase: Baked, run: r.teardown},
	}
}
