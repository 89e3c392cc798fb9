package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netns"

	"github.com/debvisor/debvisor/api"
)

const (
	programTimeout = 30 * time.Second // for one run of nft
	outputMax      = 16 << 20         // bytes of its answer
	complaintMax   = 300              // bytes of what it says about an error
)

// within runs f in the network namespace of this Network. What f starts stays
// there.
func (n *Network) within(f func() error) error {
	if !n.ns.IsOpen() {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine, and nobody else
		// wakes up in the namespace.
		runtime.LockOSThread()
		if err := netns.Set(n.ns); err != nil {
			done <- fmt.Errorf("enter the network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// environment is what programs get: the path, and messages in English.
func environment() []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
}

// find looks for a program where Debian installs it.
func find(program, debianPackage string) (string, error) {
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"} {
		if info, err := os.Stat(dir + program); err == nil && info.Mode().IsRegular() {
			return dir + program, nil
		}
	}
	return "", api.Errorf(api.CodeUnavailable, "the program %s is missing", program).Do("apt-get install %s", debianPackage)
}

// nft runs nft(8) with input on its standard input, and returns what it
// wrote.
func (n *Network) nft(ctx context.Context, input string, args ...string) (string, error) {
	program, err := find("nft", "nftables")
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, programTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = environment()
	cmd.Stdin = strings.NewReader(input)
	stdout, stderr := &capped{limit: outputMax}, &capped{limit: complaintMax}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err = n.within(func() error {
		if err := cmd.Start(); err != nil {
			return err
		}
		return cmd.Wait()
	})
	if err != nil {
		return "", fmt.Errorf("nft %s: %w: %s", strings.Join(args, " "), errors.Join(ctx.Err(), err), strings.Join(strings.Fields(stderr.String()), " "))
	}
	return stdout.String(), nil
}

// capped keeps the beginning of what is written to it.
type capped struct {
	bytes.Buffer
	limit int
}

// Write implements io.Writer.
func (c *capped) Write(p []byte) (int, error) {
	if room := c.limit - c.Len(); room > 0 {
		c.Buffer.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}
