package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/debvisor/debvisor/api/client"
)

const (
	pollEvery     = 100 * time.Millisecond
	logTailMax    = 4 << 10         // bytes of the cluster's log that an error shows
	commandGrace  = 5 * time.Second // between the interrupt and the kill of a command
	envLineMax    = 64              // lines of the environment file
	programPath   = "bin/debvisor"
	clusterFolder = "cluster"
)

// clusterProcess is a running `debvisor dev`.
type clusterProcess struct {
	dir     string // the cluster's own folder
	logName string
	cmd     *exec.Cmd
	ended   chan struct{}     // closed when the process has ended
	env     map[string]string // what the commands find in their environment
}

// startCluster starts the cluster and waits until it is ready. After an error
// it does not run.
func startCluster(ctx context.Context, dir string, sockets []string) (*clusterProcess, error) {
	c := &clusterProcess{dir: filepath.Join(dir, clusterFolder), logName: filepath.Join(dir, "cluster.log"), ended: make(chan struct{})}
	args := []string{"dev", "--nodes", fmt.Sprint(len(sockets)), "--dir", c.dir, "--hypervisor", "libvirt", "--image", "tiny=" + image}
	for _, socket := range sockets {
		args = append(args, "--libvirt-socket", socket)
	}
	fmt.Printf("$ %s %s\n", programPath, strings.Join(args, " "))
	log, err := os.Create(c.logName)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	c.cmd = exec.Command(programPath, args...)
	c.cmd.Stdout, c.cmd.Stderr = log, log
	// A group of its own, so that Ctrl-C reaches it through stop only, after
	// the commands that use it.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = c.cmd.Wait() // what it came to stands in ProcessState
		close(c.ended)
	}()
	if err := c.waitReady(ctx); err != nil {
		return nil, errors.Join(err, c.stop())
	}
	return c, nil
}

func (c *clusterProcess) envFile() string { return filepath.Join(c.dir, "env") }

// waitReady waits for the environment file, which appears when the cluster
// answers.
func (c *clusterProcess) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for {
		text, err := os.ReadFile(c.envFile())
		if err == nil {
			c.env, err = parseEnv(text)
			return err
		}
		select {
		case <-c.ended:
			return c.failure("the cluster ended before it was ready")
		case <-ctx.Done():
			return c.failure("the cluster is not ready")
		case <-poll.C:
		}
	}
}

// parseEnv reads lines of the form: export NAME='VALUE'.
func parseEnv(text []byte) (map[string]string, error) {
	env := map[string]string{}
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		if !ok || i >= envLineMax {
			return nil, fmt.Errorf("line %d of the environment file is not understood", i+1)
		}
		env[name] = strings.Trim(value, `'"`)
	}
	if env["DEBVISOR_ADDR"] == "" || env["DEBVISOR_KEY"] == "" {
		return nil, errors.New("the environment file names no address or no key")
	}
	return env, nil
}

func (c *clusterProcess) client() (*client.Client, error) {
	return client.New(client.Config{
		Addresses: strings.Split(c.env["DEBVISOR_ADDR"], ","),
		CAFile:    c.env["DEBVISOR_CACERT"],
		Key:       c.env["DEBVISOR_KEY"],
	})
}

// command prints and runs one command against the cluster.
func (c *clusterProcess) command(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	fmt.Printf("\n$ %s %s\n", programPath, strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, programPath, args...)
	cmd.Env = os.Environ()
	for name, value := range c.env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = commandGrace
	if err := cmd.Run(); err != nil {
		return c.failure(fmt.Sprintf("%s %s: %v", programPath, strings.Join(args, " "), err))
	}
	return nil
}

// stop ends the cluster in order and waits for it. Guests are not its to end.
func (c *clusterProcess) stop() error {
	select {
	case <-c.ended:
		return nil
	default:
	}
	if err := c.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-c.ended:
		return nil
	case <-time.After(stopTimeout):
	}
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
	<-c.ended
	return fmt.Errorf("the cluster did not end within %v and was killed", stopTimeout)
}

// failure adds the end of the cluster's log to a problem.
func (c *clusterProcess) failure(problem string) error {
	log, err := os.ReadFile(c.logName)
	if err != nil {
		return errors.New(problem)
	}
	if len(log) > logTailMax {
		log = log[len(log)-logTailMax:]
		if _, rest, ok := bytes.Cut(log, []byte("\n")); ok {
			log = rest
		}
	}
	return fmt.Errorf("%s; the cluster's log ends with\n%s", problem, log)
}
