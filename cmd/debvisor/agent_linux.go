package main

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/httpd"
	"github.com/debvisor/debvisor/cluster"
	"github.com/debvisor/debvisor/cluster/control"
)

const (
	configDefault = "/etc/debvisor/agent.hcl"
	catchUpPause  = 100 * time.Millisecond
	drainTimeout  = 30 * time.Second // for requests in progress when the node stops
)

func agentCommand(a *app) *cobra.Command {
	var file string
	flags := defaultNodeConfig()
	cmd := &cobra.Command{
		Use: "agent", Short: "Run the node of this machine",
		Long: `Runs the node of this machine, which debvisor init or debvisor join made, until
it is told to stop. What the configuration file says is overruled by flags. The
file is read where it is named, or at ` + configDefault + ` if it exists.

Exit status 75: a store is damaged in a way that the next start heals. 78: this
node was removed from the cluster.`,
		Example: "  debvisor agent\n  debvisor agent --config /etc/debvisor/agent.hcl --log-level debug",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := agentConfig(cmd, file, &flags)
			if err != nil {
				return &usageError{err: err}
			}
			return a.runAgent(cmd.Context(), config)
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "config", "", "configuration file (default "+configDefault+", if it exists)")
	f.StringVar(&flags.DataDir, "data-dir", flags.DataDir, "directory of the node")
	f.StringVar(&flags.Listen, "listen", "", "host:port to listen on, TCP and UDP (default: as it was made)")
	f.StringVar(&flags.Advertise, "advertise", "", "host:port where other nodes reach this one (default: as it was made)")
	f.StringVar(&flags.Hypervisor, "hypervisor", flags.Hypervisor, "auto, libvirt or sim")
	f.StringVar(&flags.LibvirtSocket, "libvirt-socket", "", "socket of libvirtd")
	f.StringVar(&flags.LogLevel, "log-level", flags.LogLevel, "trace, debug, info, warn or error")
	f.StringVar(&flags.LogFormat, "log-format", flags.LogFormat, "text or json")
	f.BoolVar(&flags.Witness, "witness", false, "the node votes and runs no guests; it must have joined as one")
	_ = cmd.MarkFlagFilename("config", "hcl")
	_ = cmd.MarkFlagDirname("data-dir")
	return cmd
}

// agentConfig reads the file and lets the flags that were given win.
func agentConfig(cmd *cobra.Command, file string, flags *nodeConfig) (nodeConfig, error) {
	config := defaultNodeConfig()
	if file == "" && fileExists(configDefault) {
		file = configDefault
	}
	if file != "" {
		var err error
		if config, err = loadNodeConfig(file); err != nil {
			return config, err
		}
	}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		switch f.Name {
		case "data-dir":
			config.DataDir = flags.DataDir
		case "listen":
			config.Listen = flags.Listen
		case "advertise":
			config.Advertise = flags.Advertise
		case "hypervisor":
			config.Hypervisor = flags.Hypervisor
		case "libvirt-socket":
			config.LibvirtSocket = flags.LibvirtSocket
		case "log-level":
			config.LogLevel = flags.LogLevel
		case "log-format":
			config.LogFormat = flags.LogFormat
		case "witness":
			config.Witness = flags.Witness
		}
	})
	if dir, err := filepath.Abs(config.DataDir); err == nil {
		config.DataDir = dir
	}
	if err := config.settlePlace(); err != nil {
		return config, err
	}
	return config, config.validate()
}

// node is a running agent, with all its parts.
type node struct {
	app      *app
	config   nodeConfig
	logger   hclog.Logger
	server   *cluster.Server
	tunnels  *tunnels
	gossip   *gossiper
	stamps   *control.Stamps
	control  *control.Control
	renewals *renewals
	machine  *machine // nil on a witness
	agent    *agent.Agent
	api      *httpd.Server
	http     *http.Server
	survival survival
	caughtUp atomic.Bool   // once since the start the state was the leader's
	stopping chan struct{} // closed when streams and waits must end
	fatal    chan cluster.Fatal
}

// gcPercent lets the heap grow to three times of what lives before it is
// collected: under load that saves a tenth of the processor, and an idle node
// still takes less than 64 MiB. GOGC in the environment wins.
const gcPercent = 200

// runAgent is the life of a node: construct, wire, run, and stop in order.
func (a *app) runAgent(ctx context.Context, config nodeConfig) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	n, err := openNode(a, config)
	if err != nil {
		return err
	}
	fatal, err := n.run(ctx)
	if fatal != nil {
		// What makes a process end may hang, a disk for one, and a leader that
		// hangs holds up the cluster: nothing is waited for, as in a crash.
		return fatalError(*fatal)
	}
	return errors.Join(err, n.stop())
}

// startNode runs the agent of a node that was made just now.
func (a *app) startNode(ctx context.Context, p placeFlags) error {
	config := defaultNodeConfig()
	config.DataDir, config.Listen, config.Advertise, config.Witness = p.dataDir, p.listen, p.advertise, p.witness
	if dir, err := filepath.Abs(config.DataDir); err == nil {
		config.DataDir = dir
	}
	return a.runAgent(ctx, config)
}

// openNode opens the data directory and puts the parts together. Requests are
// not served yet.
func openNode(a *app, config nodeConfig) (*node, error) {
	n := &node{
		app: a, config: config, logger: config.logger(a),
		stopping: make(chan struct{}), fatal: make(chan cluster.Fatal, 1),
	}
	server, err := cluster.Open(cluster.Config{
		DataDir: config.DataDir, Listen: config.Listen, Advertise: config.Advertise, LogStore: config.LogStore,
		Version: version, Logger: n.logger, OnFatal: func(f cluster.Fatal) { n.fatal <- f },
	})
	if err != nil {
		return nil, err
	}
	n.server = server
	if err := n.assemble(); err != nil {
		ended, cancel := context.WithCancel(context.Background())
		cancel() // nothing has begun that could be drained
		return nil, errors.Join(err, server.Shutdown(ended))
	}
	return n, nil
}

// assemble makes the parts that need the server.
func (n *node) assemble() error {
	n.tunnels = &tunnels{server: n.server, logger: n.logger.Named("tunnel"), services: map[string]tunnelService{
		tunnelForeign: n.serveForeign,
		tunnelConsole: n.serveConsole, tunnelScreen: n.serveScreenshot, tunnelLog: n.serveLog, tunnelTicket: n.serveTicket, tunnelStats: n.serveStats,
		tunnelImage: n.serveImage, tunnelRenew: n.serveRenewals, tunnelStatus: n.serveStatus, tunnelGuest: n.serveGuest, tunnelMigrate: n.serveMigration,
	}}
	n.gossip = &gossiper{server: n.server, logger: n.logger.Named("gossip")}
	n.renewals = &renewals{node: n}
	if err := n.newControl(map[string]control.Doer{api.TaskApply: httpd.ApplyParts(replica{n.server})}); err != nil {
		return err
	}
	if err := n.openMachine(); err != nil {
		return err
	}
	handler, err := n.newAPI(newRegistry(n))
	if err != nil {
		return err
	}
	n.api = handler
	n.http = httpd.NewServer(handler, n.logger.Named("http"))
	return nil
}

// run serves until ctx ends, and then ends what it started. It returns at once
// when the process must end, and why.
func (n *node) run(ctx context.Context) (*cluster.Fatal, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, loops := errgroup.WithContext(context.WithoutCancel(ctx))
	loops, endLoops := context.WithCancel(loops)
	defer endLoops()
	group.Go(n.serveAPI)
	for _, loop := range []func(context.Context) error{n.tunnels.accept, n.gossip.run, n.stamps.Run, n.lead, n.runGuests} {
		group.Go(func() error { return loop(loops) })
	}
	group.Go(func() error {
		n.announce(ctx)
		return nil
	})
	select {
	case <-ctx.Done():
	case <-loops.Done():
	case f := <-n.fatal:
		return &f, nil
	}
	cancel()
	n.logger.Info("stopping")
	_ = notifySystemd(n.app.env, "STOPPING=1") // it finds out anyway
	n.drain()
	endLoops()
	return nil, removalError(group.Wait())
}

// removalError gives the exit status to the agent's word that this node is no
// member any more.
func removalError(err error) error {
	if errors.Is(err, agent.ErrRemoved) {
		return &exitError{status: statusRemoved, err: err}
	}
	return err
}

// announce says that the node serves, once it has the leader's state.
func (n *node) announce(ctx context.Context) {
	for !n.caughtUp.Load() {
		if err := n.server.WaitReady(ctx); err != nil {
			return // it is stopping
		}
		if _, err := n.server.ReadIndex(ctx); err == nil {
			n.caughtUp.Store(true)
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(catchUpPause):
		}
	}
	n.logger.Info("ready", "node", n.server.Self().Name, "address", n.server.Self().Address, "cluster", n.server.ClusterID())
	if err := notifySystemd(n.app.env, "READY=1"); err != nil {
		n.logger.Warn("the service manager was not told", "error", err)
	}
}

// drain takes no new requests, ends streams, and waits for the rest.
func (n *node) drain() {
	close(n.stopping)
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := n.http.Shutdown(ctx); err != nil {
		n.logger.Warn("requests were still in progress", "error", err)
		_ = n.http.Close()
	}
}

// stop closes the rest, in the order that the cluster knows: leadership,
// listeners, Raft, stores.
func (n *node) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	return errors.Join(n.machine.close(), n.server.Shutdown(ctx))
}

// fatalError is the error with which a process ends that must end.
func fatalError(f cluster.Fatal) error {
	status := f.ExitStatus
	if status == cluster.ExitError && api.CodeOf(f.Err) == api.CodeForbidden {
		status = statusRemoved
	}
	return &exitError{status: status, err: f.Err}
}
