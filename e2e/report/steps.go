package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Limits of a step.
const (
	lineLengthMax = 1 << 20          // bytes of one line of test output
	killGrace     = 20 * time.Second // between the interrupt and the kill of a step
	quietMax      = time.Minute      // without a line, before what still runs is named
)

// step is one command.
type step struct {
	name  string
	check bool     // any command; otherwise args are those of go test
	args  []string // of the command
	leave []string // package patterns to leave out
}

func parseSteps(args []string) ([]step, error) {
	var steps []step
	for len(args) > 0 {
		if len(args) < 2 {
			return nil, fmt.Errorf("%s needs a value; steps are -check COMMAND and -test \"NAME: ARGUMENTS\"", args[0])
		}
		flag, value := args[0], args[1]
		args = args[2:]
		switch flag {
		case "-check":
			if strings.TrimSpace(value) == "" {
				return nil, errors.New("-check is empty; give it a command")
			}
			steps = append(steps, step{name: value, check: true, args: strings.Fields(value)})
		case "-test":
			name, rest, ok := strings.Cut(value, ":")
			if !ok {
				return nil, fmt.Errorf("-test %q has no name; write it as \"NAME: ARGUMENTS\"", value)
			}
			s := step{name: name}
			for _, arg := range strings.Fields(rest) {
				if pattern, leave := strings.CutPrefix(arg, "!"); leave {
					s.leave = append(s.leave, pattern)
				} else {
					s.args = append(s.args, arg)
				}
			}
			steps = append(steps, s)
		default:
			return nil, fmt.Errorf("unknown step %s; steps are -check COMMAND and -test \"NAME: ARGUMENTS\"", flag)
		}
	}
	if len(steps) == 0 {
		return nil, errors.New("no steps; give at least one -check or -test")
	}
	return steps, nil
}

// run runs one step to its end and adds what came of it.
func (r *report) run(ctx context.Context, s step) {
	if ctx.Err() != nil {
		r.fail(s.name, "not run: interrupted")
		return
	}
	if s.check {
		r.runCheck(ctx, s)
		return
	}
	args, err := packagesLeft(ctx, s)
	if err != nil {
		r.fail(s.name, err.Error())
		return
	}
	r.section("%s: go test %s", s.name, strings.Join(s.args, " "))
	r.group = s.name
	var stderr bytes.Buffer
	cmd := command(ctx, append([]string{"go", "test", "-json"}, args...))
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		r.fail(s.name, err.Error())
		return
	}
	before := r.failed
	r.read(out)
	err = cmd.Wait()
	r.endOfRun()
	// A failure that no event told, such as a pattern that matches nothing.
	if err != nil && r.failed == before {
		r.fail(s.name, fmt.Sprintf("go test: %v\n%s", err, stderr.Bytes()))
	}
}

func (r *report) runCheck(ctx context.Context, s step) {
	r.section("%s", s.name)
	start := time.Now()
	out, err := command(ctx, s.args).CombinedOutput()
	if err != nil {
		r.fail(s.name, fmt.Sprintf("%s\n%v", bytes.TrimRight(out, "\n"), err))
		return
	}
	r.passed++
	r.line("ok    %-44s %6.1f s", s.name, time.Since(start).Seconds())
}

// command is ended by an interrupt to its process group, so that tests can
// take down what they started.
func command(ctx context.Context, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = killGrace
	cmd.Env = os.Environ()
	return cmd
}

// packagesLeft replaces the package patterns of a step by the packages that
// are left once those of its leave patterns are taken out.
func packagesLeft(ctx context.Context, s step) ([]string, error) {
	if len(s.leave) == 0 {
		return s.args, nil
	}
	var flags, patterns []string
	for _, arg := range s.args {
		if strings.HasPrefix(arg, "./") {
			patterns = append(patterns, arg)
		} else {
			flags = append(flags, arg)
		}
	}
	all, err := goList(ctx, patterns)
	if err != nil {
		return nil, err
	}
	out, err := goList(ctx, s.leave)
	if err != nil {
		return nil, err
	}
	for _, name := range out {
		all = removeName(all, name)
	}
	return append(flags, all...), nil
}

func removeName(names []string, name string) []string {
	var left []string
	for _, n := range names {
		if n != name {
			left = append(left, n)
		}
	}
	return left
}

func goList(ctx context.Context, patterns []string) ([]string, error) {
	var stderr bytes.Buffer
	cmd := command(ctx, append([]string{"go", "list"}, patterns...))
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, stderr.Bytes())
	}
	return strings.Fields(string(out)), nil
}

// read adds every event of r to the report, and names what still runs when
// nothing was said for a while.
func (r *report) read(in io.Reader) {
	lines := make(chan []byte)
	go func() {
		defer close(lines)
		scanner := bufio.NewScanner(in)
		scanner.Buffer(nil, lineLengthMax)
		for scanner.Scan() {
			lines <- bytes.Clone(scanner.Bytes())
		}
		_, _ = io.Copy(io.Discard, in) // a line over the limit must not block the writer
	}()
	quiet := time.NewTimer(quietMax)
	defer quiet.Stop()
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				return
			}
			if r.event(line) {
				quiet.Reset(quietMax)
			}
		case <-quiet.C:
			r.stillRunning()
			quiet.Reset(quietMax)
		}
	}
}
