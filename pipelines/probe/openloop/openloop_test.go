package openloop

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestOffsets(t *testing.T) {
	constant := Schedule{Rate: 100, Arrivals: Constant}.Offsets()
	for i := range 5 {
		require.Equal(t, time.Duration(i)*10*time.Millisecond, constant())
	}
	schedule := Schedule{Rate: 100, Seed: 7}
	poisson, again := schedule.Offsets(), schedule.Offsets()
	var last time.Duration
	gaps, squares := 0.0, 0.0
	const n = 20_000
	for range n {
		at := poisson()
		require.Equal(t, at, again(), "the same seed, the same schedule")
		gap := (at - last).Seconds()
		gaps, squares, last = gaps+gap, squares+gap*gap, at
	}
	mean := gaps / n
	require.InDelta(t, 0.01, mean, 0.0003)
	require.InDelta(t, mean, math.Sqrt(squares/n-mean*mean), 0.0006, "an exponential's deviation is its mean")
}

func TestCheck(t *testing.T) {
	require.NoError(t, Schedule{Rate: 1}.Check())
	for _, bad := range []Schedule{{}, {Rate: -1}, {Rate: math.NaN()}, {Rate: math.Inf(1)}, {Rate: MaxRate + 1}, {Rate: 1, Arrivals: "x"}} {
		require.Error(t, bad.Check())
	}
}

func TestLanesGetEqualSharesInOrder(t *testing.T) {
	var mu sync.Mutex
	got := make([][]int, 2)
	lane := func(i int) Lane {
		return Lane{Workers: 1, MaxWait: time.Second, Dropped: func(Arrival) { t.Error("dropped") }, Call: func(_ context.Context, arrival Arrival) {
			mu.Lock()
			defer mu.Unlock()
			got[i] = append(got[i], arrival.Index)
		}}
	}
	arrivals, _ := Run(t.Context(), Schedule{Rate: 2000}, []Lane{lane(0), lane(1)}, 20, nil)
	require.Equal(t, 20, arrivals)
	require.Equal(t, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, got[0])
	require.Equal(t, got[0], got[1])
}

// A stuck lane neither stops the schedule nor the other lane, and everything that it could not do is told.
func TestAStuckLane(t *testing.T) {
	var dropped, calls, fast atomic.Int64
	stuck := Lane{Workers: 1, MaxWait: 100 * time.Millisecond, Dropped: func(Arrival) { dropped.Add(1) }, Call: func(context.Context, Arrival) {
		calls.Add(1)
		time.Sleep(400 * time.Millisecond)
	}}
	free := Lane{Workers: 1, MaxWait: 5 * time.Second, Dropped: func(Arrival) { t.Error("dropped") }, Call: func(context.Context, Arrival) { fast.Add(1) }}
	start := time.Now()
	Run(t.Context(), Schedule{Rate: 200, Arrivals: Constant}, []Lane{stuck, free}, 60, nil)
	require.Equal(t, int64(30), calls.Load()+dropped.Load())
	require.LessOrEqual(t, calls.Load(), int64(2))
	require.Equal(t, int64(30), fast.Load())
	require.Less(t, time.Since(start), 3*time.Second)
}

func TestStops(t *testing.T) {
	slow := Schedule{Rate: 0.01, Arrivals: Constant}
	lane := []Lane{{Workers: 1, MaxWait: time.Second, Call: func(context.Context, Arrival) {}, Dropped: func(Arrival) {}}}
	stop := make(chan struct{})
	time.AfterFunc(20*time.Millisecond, func() { close(stop) })
	start := time.Now()
	arrivals, _ := Run(t.Context(), slow, lane, 0, stop)
	require.Equal(t, 1, arrivals)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	Run(ctx, slow, lane, 0, nil)
	require.Less(t, time.Since(start), 5*time.Second)
}
