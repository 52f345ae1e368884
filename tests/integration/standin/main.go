// Command standin answers like a service that greenlight releases, so that the library can be tested against a real
// cluster without a model. What goes wrong with it is said in the environment variable STANDIN: nothing, "crash",
// "memory" (takes more than it may) or "unready" (never gets ready).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	fault := os.Getenv("STANDIN")
	switch fault {
	case "crash":
		fmt.Println("loading the model\nRuntimeError: the weights are not there")
		os.Exit(3)
	case "memory":
		var held [][]byte
		for {
			block := make([]byte, 1<<20)
			for i := range block {
				block[i] = 1
			}
			held = append(held, block)
			time.Sleep(time.Duration(len(held)) * time.Microsecond)
		}
	}
	var draining atomic.Bool
	answer := func(w http.ResponseWriter, status int, body map[string]string) {
		if draining.Load() {
			w.Header().Set("Connection", "close")
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, map[string]string{"status": "ok"}) })
	mux.HandleFunc("/ready", func(w http.ResponseWriter, _ *http.Request) {
		if fault == "unready" {
			fmt.Println("not ready: no device context")
			answer(w, 503, map[string]string{"reason": "no device context"})
			return
		}
		answer(w, 200, map[string]string{"status": "ready", "colour": os.Getenv("GREENLIGHT_COLOUR"), "version": os.Getenv("GREENLIGHT_VERSION")})
	})
	server := &http.Server{Addr: ":" + os.Getenv("GREENLIGHT_PORT"), Handler: mux}
	stopped := make(chan struct{})
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		defer close(stopped)
		<-signals
		draining.Store(true)
		seconds, _ := strconv.Atoi(os.Getenv("GREENLIGHT_DRAIN_SECONDS"))
		time.Sleep(time.Duration(seconds) * time.Second)
		_ = server.Shutdown(context.Background())
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		fmt.Println(err)
		os.Exit(1)
	}
	<-stopped
}
