package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// Limits of a development cluster.
const (
	devNodesMax     = 16
	devReadyTimeout = 2 * time.Minute // until all nodes are members and report
	devStopTimeout  = 40 * time.Second
	devStagger      = 500 * time.Millisecond // between the ends of two nodes
	devPoll         = 50 * time.Millisecond
)

// devOptions are the flags of dev.
type devOptions struct {
	dir        string
	nodes      int
	hypervisor string
	sockets    []string
	images     []string // NAME=FILE
	logLevel   string
	respawn    bool
}

func devCommand(a *app) *cobra.Command {
	var o devOptions
	cmd := &cobra.Command{
		Use: "dev", Short: "Run a whole cluster on this machine",
		Long: `Runs a whole cluster on this machine: each node is a process of its own on its
own loopback address, with its files under DIR. When the cluster is ready,
DIR/env appears; load it, and the other commands talk to this cluster. Run again
on the same DIR, it resumes. Ctrl-C ends it.

DIR/env          exports of DEBVISOR_ADDR, DEBVISOR_CACERT and DEBVISOR_KEY
DIR/nodeN/pid    process ID of the node; a node that died or was killed stays
                 dead, unless --respawn is given
DIR/nodeN/log    what it logs
DIR/nodeN/agent.hcl
                 its configuration, with which debvisor agent --config starts it
                 by hand

The nodes share the CPUs and the memory of this machine in equal parts; the
machines of the simulated hypervisor are made up.`,
		Example: "  debvisor dev --nodes 3 --dir /tmp/dev --hypervisor sim\n  . /tmp/dev/env\n  debvisor cluster status",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.nodes < 1 || o.nodes > devNodesMax {
				return usage(cmd, "--nodes is %d (allowed: 1 to %d)", o.nodes, devNodesMax)
			}
			d, err := openDev(a, o)
			if err != nil {
				return err
			}
			defer d.close()
			return d.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", "", "directory of the cluster; made if need be")
	f.IntVar(&o.nodes, "nodes", 3, "how many nodes")
	f.StringVar(&o.hypervisor, "hypervisor", hypervisorAuto, "auto, libvirt or sim")
	f.StringArrayVar(&o.sockets, "libvirt-socket", nil, "socket of a libvirtd: one for all nodes, or one per node; may be repeated")
	f.StringArrayVar(&o.images, "image", nil, "image to upload when it is absent, as NAME=FILE; may be repeated")
	f.StringVar(&o.logLevel, "log-level", "info", "trace, debug, info, warn or error")
	f.BoolVar(&o.respawn, "respawn", false, "start a node that died again")
	_ = cmd.MarkFlagRequired("dir")
	_ = cmd.RegisterFlagCompletionFunc("hypervisor", cobra.FixedCompletions([]string{hypervisorAuto, hypervisorLibvirt, hypervisorSim}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// dev is a running development cluster.
type dev struct {
	a       *app
	options devOptions
	dir     string
	program string
	lock    *os.File
	state   devState
	nodes   []*devNode
	died    chan *devNode
}

// run starts the cluster, waits for the end of ctx, and stops it.
func (d *dev) run(ctx context.Context) error {
	began := d.a.now()
	err := d.start(ctx)
	if err == nil {
		d.a.notef("ready after %.1f s; in another shell:\n  . %s\n  debvisor cluster status", d.a.now().Sub(began).Seconds(), d.file("env"))
		err = d.watch(ctx)
	}
	interrupted := ctx.Err() != nil
	_ = os.Remove(d.file("env"))
	if stopErr := d.stop(); err == nil || interrupted {
		return stopErr
	}
	return err
}

// start brings every node up, the first time or again.
func (d *dev) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, devReadyTimeout)
	defer cancel()
	if err := d.initFirst(); err != nil {
		return err
	}
	for _, n := range d.nodes {
		if err := d.endLeftover(ctx, n); err != nil {
			return err
		}
		if n.member() {
			if err := d.spawn(n); err != nil {
				return err
			}
		}
	}
	c, err := d.client()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := d.waitLeader(ctx, c); err != nil {
		return err
	}
	for _, n := range d.nodes {
		if !n.member() {
			if err := d.admit(ctx, c, n); err != nil {
				return err
			}
		}
	}
	if err := d.waitNodes(ctx, c); err != nil {
		return err
	}
	if err := d.provideImages(ctx, c); err != nil {
		return err
	}
	if err := d.waitVoters(ctx, c); err != nil {
		return err
	}
	return d.writeEnv()
}

// initFirst makes the cluster on node1 unless it exists.
func (d *dev) initFirst() error {
	first := d.nodes[0]
	if first.member() {
		return nil
	}
	p := first.place()
	key, err := p.init(d.a, "dev")
	if err != nil {
		return err
	}
	return writeSecret(d.file("admin.key"), key)
}

// admit makes a node a member and starts it.
func (d *dev) admit(ctx context.Context, c *client.Client, n *devNode) error {
	secret, err := c.CreateJoinToken(ctx, false)
	if err != nil {
		return fmt.Errorf("token for %s: %w", n.name, err)
	}
	p := n.place()
	if err := p.join(ctx, d.a, secret.Token+"@"+d.present()[0].address); err != nil {
		return fmt.Errorf("join %s: %w", n.name, err)
	}
	return d.spawn(n)
}

// client talks to all nodes with the admin key.
func (d *dev) client() (*client.Client, error) {
	key, err := os.ReadFile(d.file("admin.key"))
	if err != nil {
		return nil, api.Errorf(api.CodeUnavailable, "the admin key of this cluster: %v", err).Do("remove %s and start anew", d.dir)
	}
	return client.New(client.Config{
		Addresses: d.addresses(), CAFile: d.caFile(), Key: strings.TrimSpace(string(key)), Timeout: requestTimeout, Agent: "debvisor-dev/" + version,
	})
}

func (d *dev) addresses() []string {
	var out []string
	for _, n := range d.present() {
		out = append(out, n.address)
	}
	return out
}

// present are the nodes that were not removed from the cluster.
func (d *dev) present() []*devNode {
	return slices.DeleteFunc(slices.Clone(d.nodes), func(n *devNode) bool { return n.removed })
}

func (d *dev) caFile() string { return filepath.Join(d.nodes[0].dataDir(), "ca.pem") }

// waitLeader waits until somebody leads, or a node that is needed dies.
func (d *dev) waitLeader(ctx context.Context, c *client.Client) error {
	return d.until(ctx, "a leader", func() (bool, string) {
		status, err := c.Status(ctx)
		if err != nil {
			return false, err.Error()
		}
		return status.Leader != "", status.Summary
	})
}

// waitNodes waits until every node reports its machine.
func (d *dev) waitNodes(ctx context.Context, c *client.Client) error {
	return d.until(ctx, "all nodes", func() (bool, string) {
		list, err := client.Resource[api.Node](c, api.KindNode).All(ctx, client.ListOptions{})
		if err != nil {
			return false, err.Error()
		}
		ready := 0
		var missing []string
		for _, n := range list.Items {
			if n.Lease == api.NodeLive && n.Hypervisor.Healthy && len(n.Pools) > 0 {
				ready++
				continue
			}
			missing = append(missing, strings.TrimSpace(n.Name+" "+n.Hypervisor.Reason))
		}
		wanted := len(d.present())
		return ready >= wanted, fmt.Sprintf("%d of %d nodes report; not yet: %s", ready, wanted, strings.Join(missing, ", "))
	})
}

// waitVoters waits until as many nodes vote as should: before that the loss of
// one would stop the cluster.
func (d *dev) waitVoters(ctx context.Context, c *client.Client) error {
	return d.until(ctx, "the voters", func() (bool, string) {
		status, err := c.Status(ctx)
		if err != nil {
			return false, err.Error()
		}
		wanted := min(len(d.present()), api.VotersMax)
		if wanted%2 == 0 {
			wanted-- // an even number tolerates no more losses
		}
		voters := 0
		for _, m := range status.Members {
			if m.Voter {
				voters++
			}
		}
		return voters >= wanted, fmt.Sprintf("%d of %d nodes vote", voters, wanted)
	})
}

// until polls a condition. The death of a node ends the wait with its last
// words.
func (d *dev) until(ctx context.Context, what string, ready func() (bool, string)) error {
	ticker := time.NewTicker(devPoll)
	defer ticker.Stop()
	for {
		ok, last := ready()
		if ok {
			return nil
		}
		select {
		case n := <-d.died:
			if err := d.bury(n); err != nil {
				return err
			}
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %s; look at the logs in %s", what, context.Cause(ctx), last, filepath.Join(d.dir, "node*", "log"))
		case <-ticker.C:
		}
	}
}

// bury takes note of a node that died while the cluster starts: an error,
// unless it was removed from the cluster, in which case the others go on.
func (d *dev) bury(n *devNode) error {
	if !n.wasRemoved() {
		return n.lastWords()
	}
	n.removed = true
	d.a.notef("%s was removed from the cluster; to make it anew, delete %s", n.name, n.dir)
	if len(d.present()) == 0 {
		return n.lastWords()
	}
	return nil
}

// writeEnv makes the file that says that the cluster is ready, at once.
func (d *dev) writeEnv() error {
	key, err := os.ReadFile(d.file("admin.key"))
	if err != nil {
		return fmt.Errorf("read admin key: %w", err)
	}
	text := fmt.Sprintf("export DEBVISOR_ADDR=%s\nexport DEBVISOR_CACERT=%s\nexport DEBVISOR_KEY=%s\n",
		strings.Join(d.addresses(), ","), shellQuote(d.caFile()), strings.TrimSpace(string(key)))
	return writeSecret(d.file("env"), text)
}

// shellQuote makes s one word of a shell.
func shellQuote(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:,@%+="
	if strings.Trim(s, plain) == "" && s != "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// watch reports nodes that die until ctx ends.
func (d *dev) watch(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			d.a.notef("stopping")
			return nil
		case n := <-d.died:
			d.a.notef("%v", n.lastWords())
			if d.options.respawn && !n.wasRemoved() {
				if err := d.spawn(n); err != nil {
					return err
				}
			} else if d.running() == 0 {
				d.a.notef("no node that was started here runs any more; Ctrl-C ends this, and the same command starts all again")
			}
		}
	}
}

// writeSecret replaces a file that its owner alone may read; it is there
// whole or not at all.
func writeSecret(name, text string) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) }
