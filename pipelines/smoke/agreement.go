package smoke

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strings"

	"github.com/greenlight-ci/greenlight/pipelines/probe/infer"
)

// checkAgreement sends the golden requests to live and compares its answers with the candidate's.
func (r *run) checkAgreement(ctx context.Context) {
	want := r.options.Agreement
	total := AgreementResult{}
	r.result.Agreement = &total
	var sameClasses, classes, sameValues, values int
	skipped := ""
	for i, c := range r.cases {
		if c.Expect.Status != 0 && c.Expect.Status != 200 || r.answers[i].Document == nil {
			continue
		}
		live, err := r.live.Do(ctx, c.Request, 200)
		var liveValues []float64
		if err == nil && r.checkOutputs {
			liveValues, err = infer.Outputs(live.Document, r.outputs)
		}
		if err != nil {
			total.Skipped++
			skipped = err.Error()
			continue
		}
		total.Cases++
		if r.checkOutputs {
			ours, _ := infer.Outputs(r.answers[i].Document, r.outputs) // was checked with the case
			if len(ours) != len(liveValues) {
				r.check("agreement", false, "case %s: %d output numbers, live has %d", c.Name, len(ours), len(liveValues))
				return
			}
			for k := range ours {
				values++
				total.MaxDifference = max(total.MaxDifference, math.Abs(ours[k]-liveValues[k]))
				if within(ours[k], liveValues[k], want.Absolute, want.Relative) {
					sameValues++
				}
			}
		}
		ours, theirs := r.classesOf(r.answers[i].Document), r.classesOf(live.Document)
		classes += max(len(ours), len(theirs))
		for k := range min(len(ours), len(theirs)) {
			if ours[k] == theirs[k] {
				sameClasses++
			}
		}
	}
	total.Classes, total.Values = ratio(sameClasses, classes), ratio(sameValues, values)
	switch {
	case total.Cases == 0 && total.Skipped == 0:
		r.notChecked("agreement with live: no golden case got a good answer from the candidate")
		return
	case total.Cases == 0:
		r.check("agreement", false, "live answered none of %d golden requests: %s (set no live URL where the two cannot be compared)", total.Skipped, skipped)
		return
	case total.Skipped > 0:
		r.notChecked("agreement with live on %d of %d golden requests, which live did not answer: %s", total.Skipped, total.Skipped+total.Cases, skipped)
	}
	if classes == 0 {
		r.notChecked("agreement of classes: the answers have none")
	} else {
		r.check("class agreement", total.Classes >= want.MinClasses, "%d of %d classes equal live's (%.1f %%, at least %.1f %% wanted)",
			sameClasses, classes, 100*total.Classes, 100*max(want.MinClasses, 0))
	}
	if values == 0 {
		r.notChecked("agreement of values: no outputs path is configured")
	} else {
		r.check("value agreement", total.Values >= want.MinValues, "%d of %d output numbers within tolerance of live's (%.1f %%, at least %.1f %% wanted), largest difference %.3g",
			sameValues, values, 100*total.Values, 100*want.MinValues, total.MaxDifference)
	}
}

func ratio(part, whole int) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

// classesOf are the predicted classes as text: those that the answer names, or the place of the largest number in each row of outputs.
func (r *run) classesOf(document any) []string {
	if found, err := r.classes.Find(document); err == nil && len(found) > 0 {
		var classes []string
		for _, f := range found {
			if list, ok := f.Value.([]any); ok {
				for _, element := range list {
					classes = append(classes, className(element))
				}
			} else {
				classes = append(classes, className(f.Value))
			}
		}
		return classes
	}
	if !r.checkOutputs {
		return nil
	}
	found, err := r.outputs.Find(document)
	if err != nil {
		return nil
	}
	var classes []string
	for _, f := range found {
		rows, ok := f.Value.([]any)
		if !ok {
			continue
		}
		for _, row := range rows {
			if best := largest(row); best >= 0 {
				classes = append(classes, fmt.Sprint(best))
			}
		}
	}
	return classes
}

func className(value any) string {
	encoded, err := json.Marshal(value)
	if err != nil {
		return fmt.Sprint(value)
	}
	return strings.TrimSuffix(string(encoded), ".0") // 3 and 3.0 are the same class
}

// largest is the index of the largest number of a row, -1 where it is no row of numbers.
func largest(row any) int {
	list, ok := row.([]any)
	if !ok {
		return -1
	}
	best, most := -1, math.Inf(-1)
	for i, element := range list {
		number, ok := element.(json.Number)
		if !ok {
			return -1
		}
		if value, err := number.Float64(); err == nil && value > most {
			best, most = i, value
		}
	}
	return best
}
