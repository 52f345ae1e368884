// Package openloop calls a function on a schedule that does not wait for the previous calls. A client that waits for one
// answer before it sends the next request sends fewer requests the slower the service is, and so leaves out just the
// samples that matter (coordinated omission). Here every arrival has its time beforehand; a call that starts late because
// all workers are busy still counts from that time.
package openloop

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"
)

// The arrival processes.
const (
	// Poisson arrivals are those of many independent users: exponential gaps. The default.
	Poisson = "poisson"
	// Constant arrivals have equal gaps.
	Constant = "constant"
)

// MaxRate is the largest rate in calls per second.
const MaxRate = 20_000

// Schedule makes the arrival times.
type Schedule struct {
	// Rate is the mean number of arrivals per second. Required.
	Rate float64
	// Arrivals is Poisson (default) or Constant.
	Arrivals string
	// Seed makes the gaps and the order of the lanes repeatable.
	Seed uint64
}

// Check says what is wrong with the schedule.
func (s Schedule) Check() error {
	switch {
	case !(s.Rate > 0) || s.Rate > MaxRate:
		return fmt.Errorf("the rate must be above 0 and at most %d requests per second, not %v", MaxRate, s.Rate)
	case s.Arrivals != "" && s.Arrivals != Poisson && s.Arrivals != Constant:
		return fmt.Errorf("arrivals must be %q or %q, not %q", Poisson, Constant, s.Arrivals)
	}
	return nil
}

// Offsets returns a function that gives each next arrival's time from the start.
func (s Schedule) Offsets() func() time.Duration {
	random := rand.New(rand.NewPCG(s.Seed, 0x6f70656e6c6f6f70))
	mean := float64(time.Second) / s.Rate
	at := 0.0
	return func() time.Duration {
		now := at
		if s.Arrivals == Constant {
			at += mean
		} else {
			at += mean * random.ExpFloat64()
		}
		return time.Duration(math.Min(now, math.MaxInt64/2))
	}
}

// Arrival is one call that is due.
type Arrival struct {
	// Index counts the lane's arrivals from 0.
	Index int
	// Worker is the lane's worker that makes the call, from 0 to Workers-1: it lets a lane keep one connection per worker.
	Worker int
	// Scheduled is when the call was due. Latency counts from here.
	Scheduled time.Time
}

// Lane is a group of workers that share the arrivals given to them. Lanes do not wait for each other.
type Lane struct {
	// Workers is how many calls of the lane run at a time. At least 1.
	Workers int
	// Call does one arrival's work.
	Call func(ctx context.Context, arrival Arrival)
	// Dropped is told of an arrival that could not be called within MaxWait of its time, instead of Call.
	Dropped func(arrival Arrival)
	// MaxWait is how long an arrival may wait for a free worker. Required.
	MaxWait time.Duration
}

// Run gives arrivals to the lanes until stop is closed (nil: never), the context ends, or limit arrivals were made (0: no
// limit). Within each round of len(lanes) arrivals every lane gets one, in random order, so that noise hits all lanes alike.
// It returns after the last call has. late is the largest time by which the schedule itself was late: a loaded machine, not
// the service.
func Run(ctx context.Context, schedule Schedule, lanes []Lane, limit int, stop <-chan struct{}) (arrivals int, late time.Duration) {
	queues := make([]chan Arrival, len(lanes))
	var workers sync.WaitGroup
	for i, lane := range lanes {
		// The queue holds what may arrive within MaxWait; what does not fit would have been dropped from it anyway.
		queues[i] = make(chan Arrival, min(int(schedule.Rate*lane.MaxWait.Seconds())+lane.Workers+1, 1<<17))
		for worker := range lane.Workers {
			workers.Go(func() {
				for arrival := range queues[i] {
					arrival.Worker = worker
					switch {
					case ctx.Err() != nil:
					case time.Since(arrival.Scheduled) > lane.MaxWait:
						lane.Dropped(arrival)
					default:
						lane.Call(ctx, arrival)
					}
				}
			})
		}
	}
	defer workers.Wait()
	defer func() {
		for _, queue := range queues {
			close(queue)
		}
	}()

	order := rand.New(rand.NewPCG(schedule.Seed, 0x6c616e6573))
	next := schedule.Offsets()
	start := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	var round []int
	given := make([]int, len(lanes))
	for limit <= 0 || arrivals < limit {
		scheduled := start.Add(next())
		if wait := time.Until(scheduled); wait > 0 {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
				return arrivals, late
			case <-stop:
				return arrivals, late
			case <-timer.C:
			}
		}
		select {
		case <-ctx.Done():
			return arrivals, late
		case <-stop:
			return arrivals, late
		default:
		}
		late = max(late, time.Since(scheduled))
		if len(round) == 0 {
			round = order.Perm(len(lanes))
		}
		lane := round[0]
		round = round[1:]
		arrival := Arrival{Index: given[lane], Scheduled: scheduled}
		given[lane]++
		arrivals++
		select {
		case queues[lane] <- arrival:
		default:
			lanes[lane].Dropped(arrival)
		}
	}
	return arrivals, late
}
