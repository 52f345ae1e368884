package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cluster/plan"
)

const (
	// stageGate is init before it is let into its cgroup.
	stageGate = "gate"
	// stageInit is init in all its namespaces.
	stageInit = "init"
	// gateFD is where init waits for one byte, which says that the host's side is ready for it.
	gateFD = 3
)

// supervise starts the node and stays until the node ends or a signal says to end it.
func supervise(p plan.Plan, planPath string) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	state := plan.State{Supervisor: os.Getpid(), SupervisorStart: startTime(os.Getpid())}
	cgroups, err := plannedCgroups(p.CgroupName)
	if err != nil {
		return err
	}
	for _, c := range cgroups {
		state.Cgroups = append(state.Cgroups, c.directory)
		if c.options == "" {
			if state.Controllers, err = missingControllers(cgroupRoot); err != nil {
				return err
			}
		}
	}
	if err := plan.Write(p.State, state); err != nil {
		return fmt.Errorf("recording the node's cgroups: %w", err)
	}
	for _, c := range cgroups {
		if err := c.create(); err != nil {
			return err
		}
	}

	gate, open, err := os.Pipe()
	if err != nil {
		return err
	}
	init := exec.Command("/proc/self/exe", stageGate, planPath)
	init.Stdout, init.Stderr = os.Stdout, os.Stderr
	init.ExtraFiles = []*os.File{gate}
	init.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := init.Start(); err != nil {
		return fmt.Errorf("creating the node's namespaces (this needs root): %w", err)
	}
	_ = gate.Close()
	ended := make(chan error, 1)
	go func() { ended <- init.Wait() }()
	defer func() { _ = init.Process.Kill() }()

	state.Init, state.InitStart = init.Process.Pid, startTime(init.Process.Pid)
	if err := plan.Write(p.State, state); err != nil {
		return fmt.Errorf("recording the node's pid: %w", err)
	}
	for _, c := range cgroups {
		if err := c.enter(init.Process.Pid); err != nil {
			return err
		}
	}
	if err := connect(p.Network, init.Process.Pid); err != nil {
		return err
	}
	for _, f := range p.Forwards {
		if err := forward(f); err != nil {
			return err
		}
	}
	if _, err := open.Write([]byte{1}); err != nil {
		return fmt.Errorf("starting the node: %w", err)
	}
	_ = open.Close()

	select {
	case err := <-ended:
		return fmt.Errorf("the node ended: %w", orEnded(err))
	case s := <-signals:
		log.Println("ending the node:", s)
		_ = init.Process.Kill()
		<-ended
		return nil
	}
}

func orEnded(err error) error {
	if err == nil {
		return io.EOF
	}
	return err
}

// connect makes the link between host and node and the host's routes to pods and Services. All of it goes away with the
// node's network namespace.
func connect(n plan.Network, pid int) error {
	// A link that a dead node left behind: its namespace can outlive its processes for a moment.
	_ = exec.Command("ip", "link", "del", n.HostLink).Run()
	batch := strings.Join([]string{
		fmt.Sprintf("link add %s type veth peer name %s netns %d", n.HostLink, n.NodeInterface, pid),
		fmt.Sprintf("addr add %s/%d dev %s", n.HostAddress, n.PrefixBits, n.HostLink),
		"link set " + n.HostLink + " up",
		fmt.Sprintf("route add %s via %s dev %s", n.PodRange, n.NodeAddress, n.HostLink),
		fmt.Sprintf("route add %s via %s dev %s", n.ServiceRange, n.NodeAddress, n.HostLink),
	}, "\n")
	return ip(batch)
}

func ip(batch string) error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(batch + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("setting up the node's network with ip: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// forward accepts connections at f.Listen until the process ends.
func forward(f plan.Forward) error {
	listener, err := net.Listen("tcp", f.Listen)
	if err != nil {
		return fmt.Errorf("listening for the node: %w (is another sandbox up?)", err)
	}
	var from *net.IPNet
	if f.From != "" {
		if _, from, err = net.ParseCIDR(f.From); err != nil {
			return fmt.Errorf("forwarding %s: %w", f.Listen, err)
		}
	}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				log.Println("forwarding", f.Listen+":", err)
				return
			}
			peer, ok := client.RemoteAddr().(*net.TCPAddr)
			if from != nil && (!ok || !from.Contains(peer.IP)) {
				_ = client.Close()
				continue
			}
			go handOn(client, f.Target)
		}
	}()
	return nil
}

func handOn(client net.Conn, target string) {
	defer func() { _ = client.Close() }()
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	done := make(chan struct{}, 2)
	pass := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		// Half-closes, so that the other direction can end in its own time.
		if tcp, ok := to.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
		done <- struct{}{}
	}
	go pass(server, client)
	go pass(client, server)
	<-done
	<-done
}

// startTime is the kernel's start time of a pid in clock ticks since boot, 0 if it does not run.
func startTime(pid int) uint64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 20 {
		return 0
	}
	ticks, _ := strconv.ParseUint(fields[19], 10, 64)
	return ticks
}
