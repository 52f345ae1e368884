// Command node runs a one-node Kubernetes cluster in namespaces of its own. It is two processes: the supervisor stays in
// the host's namespaces, makes the link to the node and forwards connections; init is pid 1 of the node and runs its
// programs. When either ends, however it ends, the kernel ends the other and everything in the node.
package main

import (
	"fmt"
	"log"
	"os"
	"runtime"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cluster/plan"
)

func main() {
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	// The kernel ties "tell me when my parent dies" and namespaces to the thread, not to the process.
	runtime.LockOSThread()
	if err := run(os.Args); err != nil {
		log.Println("error:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("usage: %s supervise|%s|%s PLAN", args[0], stageGate, stageInit)
	}
	var p plan.Plan
	if err := plan.Read(args[2], &p); err != nil {
		return fmt.Errorf("reading the plan: %w", err)
	}
	switch args[1] {
	case "supervise":
		return supervise(p, args[2])
	case stageGate:
		return passGate(args[2])
	case stageInit:
		return initialise(p)
	default:
		return fmt.Errorf("unknown command %q", args[1])
	}
}
