// Command demo shows debvisor at work on one Linux machine, as root: it starts
// three isolated libvirt daemons and a cluster of three nodes over them,
// applies docs/examples/first-vm.hcl, waits until the guest has booted, shows
// its console, and says what to try next. Every command is printed before it
// runs.
//
// On a terminal it then keeps the cluster until Ctrl-C; elsewhere, or with
// DEMO_EXIT=1, it ends. Either way it takes down and removes what it made.
// `make demo` prepares what it needs: bin/debvisor and bin/guest.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
	"github.com/debvisor/debvisor/e2e/lab"
	"github.com/debvisor/debvisor/e2e/lint"
)

// Limits of the demo.
const (
	nodes          = 3
	readyTimeout   = 2 * time.Minute // until the cluster is ready
	commandTimeout = 5 * time.Minute // of one command
	bootTimeout    = 4 * time.Minute // until the guest says that it is ready, under emulation on a slow machine
	stopTimeout    = 45 * time.Second
)

// What is shown.
const (
	example    = "docs/examples/first-vm.hcl"
	image      = "bin/guest/tiny.qcow2"
	vmName     = "web"
	guestReady = "GUEST-READY" // what the tiny guest prints when it is up
	marker     = ".debvisor-demo"
)

func main() {
	// The cluster's process is bound to the thread that starts it (Pdeathsig),
	// and must not outlive the demo.
	runtime.LockOSThread()
	dir := flag.String("dir", filepath.Join(tempDir(), "debvisor-demo"), "a folder for all files of the demo; removed at its end")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	stay := term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("DEMO_EXIT") != "1"
	err := run(ctx, *dir, stay)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func tempDir() string {
	if dir := os.Getenv("TMPDIR"); dir != "" {
		return dir
	}
	return "/var/tmp" // disk images do not belong into memory
}

func run(ctx context.Context, dir string, stay bool) (err error) {
	root, err := lint.Root(".")
	if err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := claim(dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := prepared(); err != nil {
		return err
	}

	say("Starting %d isolated libvirt daemons, each as if it were alone on a host", nodes)
	daemons, err := lab.Start(ctx, nodes, lab.Config{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, daemons.Close()) }()

	say("Starting a cluster of %d nodes over them", nodes)
	c, err := startCluster(ctx, dir, daemons.Sockets())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	if err := c.show(ctx); err != nil {
		if ctx.Err() != nil {
			return errors.New("interrupted; what it made is removed")
		}
		return err
	}
	tryNext(c)
	if stay {
		say("Press Ctrl-C to end the demo; everything it made is removed then")
		select {
		case <-ctx.Done():
		case <-c.ended:
			return c.failure("the cluster ended by itself")
		}
	}
	say("Taking everything down")
	return nil
}

// prepared checks what make demo makes.
func prepared() error {
	for _, name := range []string{"bin/debvisor", image, example} {
		if _, err := os.Stat(name); err != nil {
			return fmt.Errorf("%w; run make demo, which makes what is missing", err)
		}
	}
	return lab.Unavailable()
}

// claim makes dir, or takes over what a demo that was killed left there. It
// refuses a folder that holds anything else.
func claim(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		if _, err := os.Stat(filepath.Join(dir, marker)); err != nil {
			return fmt.Errorf("%s exists and is not the demo's; name another with -dir", dir)
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, marker), nil, 0o644)
}

// show is the demo itself: plan, apply, the running guest, its console.
func (c *clusterProcess) show(ctx context.Context) error {
	for _, args := range [][]string{
		{"cluster", "status"},
		{"plan", "-f", example},
		{"apply", "-f", example},
	} {
		if err := c.command(ctx, args...); err != nil {
			return err
		}
	}
	say("Waiting for the guest")
	instance, err := c.waitRunning(ctx)
	if err != nil {
		return err
	}
	if instance.Acceleration == "tcg" {
		say("This machine has no KVM: the guest runs under software emulation, many times slower than on a real host")
	}
	if err := c.command(ctx, "vm", "show", vmName); err != nil {
		return err
	}
	if err := c.command(ctx, "vm", "console", vmName, "--replay", "--no-input", "--until", guestReady, "--timeout", bootTimeout.String()); err != nil {
		return err
	}
	return c.command(ctx, "why", "vm/"+vmName)
}

// waitRunning waits until the VM's instance runs, or fails with what its node
// or the placement says.
func (c *clusterProcess) waitRunning(ctx context.Context) (*api.Instance, error) {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	conn, err := c.client()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	instances := client.Resource[api.Instance](conn, api.KindInstance)
	last, index := "it has no instance yet", uint64(0)
	for {
		list, err := instances.List(ctx, client.ListOptions{ReadOptions: client.ReadOptions{Index: index}})
		if ctx.Err() != nil {
			return nil, c.failure(fmt.Sprintf("vm/%s does not run: %s", vmName, last))
		}
		if err != nil {
			return nil, err
		}
		index = list.Index
		for _, i := range list.Items {
			if i.VM != api.Key(api.DefaultTenant, vmName) {
				continue
			}
			last = strings.TrimSpace(i.State + " " + i.Reason)
			if i.State == api.InstanceRunning {
				return &i, nil
			}
		}
	}
}

func tryNext(c *clusterProcess) {
	fmt.Printf(`
It runs. In another terminal, as root, in this folder:

    source %s
    bin/debvisor vm list -o wide
    bin/debvisor vm console %s               # leave it with Ctrl-]
    bin/debvisor vm stop %s --plan           # what would happen
    bin/debvisor history vm/%s               # who changed what, and when
    bin/debvisor events
    kill -9 "$(cat %s/node1/pid)"   # then: bin/debvisor cluster status

`, c.envFile(), vmName, vmName, vmName, c.dir)
}

func say(format string, args ...any) { fmt.Printf("\n-- "+format+"\n", args...) }
