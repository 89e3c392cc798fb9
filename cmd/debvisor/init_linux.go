package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/httpd"
	"github.com/debvisor/debvisor/cluster"
	"github.com/debvisor/debvisor/fsm"
)

// adminKeyName is the name of the key that init makes.
const adminKeyName = "admin"

// placeFlags say where a node lives; init, join and restore share them.
type placeFlags struct {
	dataDir   string
	name      string
	listen    string
	advertise string
	zone      string
	logStore  string
	witness   bool
}

func (p *placeFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.dataDir, "data-dir", dataDirDefault, "directory of the node; made if need be")
	f.StringVar(&p.name, "name", "", "name of the node (default: the first label of the host name)")
	f.StringVar(&p.listen, "listen", listenDefault, "host:port where the agent will listen")
	f.StringVar(&p.advertise, "advertise", "", "host:port where other nodes reach it (default: the address of the default route)")
	f.StringVar(&p.zone, "zone", "", "failure zone, as rack1: voters are spread over zones")
	f.StringVar(&p.logStore, "log-store", "", "form of the Raft log: wal (default) or boltdb; it cannot change later")
	f.BoolVar(&p.witness, "witness", false, "a node that votes and runs no guests")
	_ = cmd.MarkFlagDirname("data-dir")
}

// settle fills in what the flags left out.
func (p *placeFlags) settle() error {
	if p.name == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("read the host name: %w", err)
		}
		p.name, _, _ = strings.Cut(strings.ToLower(host), ".")
	}
	host, port, err := net.SplitHostPort(cmp.Or(p.advertise, p.listen))
	if err != nil {
		return api.Invalid("advertise", "is %q", cmp.Or(p.advertise, p.listen)).Allow("host:port, as 10.0.0.1:7443")
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		if host, err = outgoingAddress(); err != nil {
			return err
		}
	}
	p.advertise = net.JoinHostPort(host, port)
	return nil
}

// outgoingAddress is this machine's address on the way to others. A UDP socket
// that is only connected sends nothing.
func outgoingAddress() (string, error) {
	for _, far := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} { // documentation addresses (RFC 5737, RFC 3849)
		conn, err := net.Dial("udp", far)
		if err != nil {
			continue
		}
		defer conn.Close()
		if a, ok := conn.LocalAddr().(*net.UDPAddr); ok && !a.IP.IsLoopback() {
			return a.IP.String(), nil
		}
	}
	return "", api.Invalid("advertise", "cannot be found out: this machine has no default route").Do("name it with --advertise HOST:PORT")
}

// config is what package cluster needs to make a node there.
func (p *placeFlags) config(a *app) cluster.Config {
	c := defaultNodeConfig()
	c.LogLevel = "warn"
	return cluster.Config{DataDir: p.dataDir, Listen: p.listen, Advertise: p.advertise, LogStore: p.logStore, Version: version, Logger: c.logger(a)}
}

func initCommand(a *app) *cobra.Command {
	var p placeFlags
	var region, keyFile string
	var start bool
	cmd := &cobra.Command{
		Use: "init", Short: "Make this machine the first node of a new cluster",
		Long: `Makes this machine the first node of a new cluster: its CA, its certificate, the
first admin key and a join token for the next machine. Key and token are shown
once; the token is good for 15 minutes, and debvisor node token makes more. Then
start debvisor agent, or let --start run it at once.`,
		Example: "  debvisor init --key-file admin.key\n  debvisor init --name node1 --advertise 10.0.0.1:7443 --start",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := p.settle(); err != nil {
				return err
			}
			key, err := p.init(a, region)
			if err != nil {
				return err
			}
			a.notef("node %s of a new cluster is in %s", p.name, p.dataDir)
			f := founded{Node: p.name, Address: p.advertise, CAFile: cluster.CAFile(p.dataDir), Key: key}
			if f.Token, err = p.firstToken(cmd.Context(), a); err != nil {
				a.notef("no join token could be made yet: %s", describe(err))
			}
			if err := a.showFounded(&f, keyFile); err != nil || !start {
				return err
			}
			return a.startNode(cmd.Context(), p)
		},
	}
	p.flags(cmd)
	cmd.Flags().StringVar(&region, "region", "main", "name of the cluster's region")
	cmd.Flags().StringVar(&keyFile, "key-file", "", "write the admin key into this new file (mode 0600) instead of showing it")
	cmd.Flags().BoolVar(&start, "start", false, "run the agent at once")
	return cmd
}

// init makes the first node and returns the admin key.
func (p *placeFlags) init(a *app, region string) (string, error) {
	secret, hash := httpd.NewSecret()
	_, err := cluster.Init(p.config(a), cluster.InitOptions{
		Name: p.name, Region: region, Zone: p.zone, Witness: p.witness,
		Key: fsm.KeyCreate{Name: adminKeyName, Hash: hash, Role: api.RoleAdmin},
	})
	if err != nil {
		return "", err
	}
	return httpd.FormatKey(adminKeyName, secret), p.keep()
}

// founded is what init tells.
type founded struct {
	Node    string `json:"node"`
	Address string `json:"address"`
	CAFile  string `json:"ca_file"`
	Key     string `json:"key,omitzero"`
	KeyFile string `json:"key_file,omitzero"`
	Token   string `json:"token,omitzero"` // for the next machine
}

const firstTokenWait = 30 * time.Second

// firstToken runs the new node for a moment, so that it can make a join token.
func (p *placeFlags) firstToken(ctx context.Context, a *app) (_ string, err error) {
	ctx, cancel := context.WithTimeout(ctx, firstTokenWait)
	defer cancel()
	fatal := make(chan cluster.Fatal, 1)
	config := p.config(a)
	config.Logger = hclog.NewNullLogger() // the agent will say what matters
	config.OnFatal = func(f cluster.Fatal) {
		fatal <- f
		cancel()
	}
	server, err := cluster.Open(config)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, server.Shutdown(ctx)) }()
	if err := server.WaitReady(ctx); err != nil {
		select {
		case f := <-fatal:
			return "", f.Err
		default:
			return "", err
		}
	}
	entry, token, err := server.NewToken(api.JoinTokenLife, false)
	if err != nil {
		return "", err
	}
	entry.By = "node:" + p.name
	_, err = replica{server}.Propose(ctx, entry)
	return token, err
}

// showFounded hands over the key, into a file or to the output, and says what
// comes next.
func (a *app) showFounded(f *founded, keyFile string) error {
	if keyFile != "" {
		if err := writeNewSecret(keyFile, f.Key); err != nil {
			a.notef("the admin key could not be written: %v; it is shown instead, once", err)
		} else {
			f.Key, f.KeyFile = "", keyFile
		}
	}
	if a.structured() {
		return a.emit(f)
	}
	if f.Key != "" {
		a.printf("admin key, shown once:\n  %s\n", f.Key)
	} else {
		a.printf("admin key: in %s\n", f.KeyFile)
	}
	a.printf("start this node:\n  systemctl enable --now debvisor    # or: debvisor agent\n")
	if f.Token != "" {
		a.printf("on the next machine, within %v:\n  debvisor join %s@%s\n", api.JoinTokenLife, f.Token, f.Address)
	}
	a.printf("from anywhere:\n  export DEBVISOR_ADDR=%s DEBVISOR_CACERT=%s DEBVISOR_KEY_FILE=%s\n",
		f.Address, shellQuote(f.CAFile), shellQuote(cmp.Or(f.KeyFile, "FILE")))
	return nil
}

// writeNewSecret writes a file that its owner alone may read and that does not
// exist yet.
func writeNewSecret(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text + "\n")
	return errors.Join(err, f.Sync(), f.Close())
}

func joinCommand(a *app) *cobra.Command {
	var p placeFlags
	var start bool
	cmd := &cobra.Command{
		Use: "join TOKEN@HOST[:PORT]", Short: "Make this machine a node of an existing cluster",
		Long: `Makes this machine a node of an existing cluster. The token comes from debvisor
node token; it admits one node, and names the cluster's CA, so that no other
cluster can answer in its place. Then start debvisor agent.`,
		Example: "  debvisor join TOKEN@10.0.0.1\n  debvisor join TOKEN@10.0.0.1:7443 --witness --start",
		Args:    exactly("TOKEN@HOST"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.settle(); err != nil {
				return err
			}
			if err := p.join(cmd.Context(), a, args[0]); err != nil {
				return err
			}
			a.notef("node %s has joined; its files are in %s", p.name, p.dataDir)
			if start {
				return a.startNode(cmd.Context(), p)
			}
			a.notef("next:\n  systemctl start debvisor    or: debvisor agent")
			return nil
		},
	}
	p.flags(cmd)
	cmd.Flags().BoolVar(&start, "start", false, "run the agent at once")
	return cmd
}

func (p *placeFlags) join(ctx context.Context, a *app, token string) error {
	_, err := cluster.Join(ctx, p.config(a), cluster.JoinOptions{Token: token, Name: p.name, Zone: p.zone, Witness: p.witness})
	if err != nil {
		return err
	}
	return p.keep()
}

func restoreCommand(a *app) *cobra.Command {
	var p placeFlags
	var passphrase, reason string
	var verify, start bool
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Make this machine the first node of a cluster restored from a backup",
		Long: `Makes this machine the first node of a cluster restored from a backup: its
state, CA and journal. The former nodes are no members any more and must not
run. Others join with debvisor node token. --verify only reads the file.`,
		Example: "  debvisor cluster restore monday.backup --passphrase-file passphrase\n  debvisor cluster restore monday.backup --verify",
		Args:    exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			secret, err := a.passphrase(passphrase, false)
			if err != nil {
				return err
			}
			f, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("open backup: %w", err)
			}
			defer f.Close()
			if verify {
				info, err := cluster.VerifyBackup(f, secret)
				if err != nil {
					return err
				}
				return a.showBackup(info)
			}
			if err := p.settle(); err != nil {
				return err
			}
			o := cluster.RestoreOptions{Name: p.name, Zone: p.zone, Witness: p.witness, Reason: reason}
			info, err := cluster.RestoreBackup(cmd.Context(), p.config(a), f, secret, o)
			if err != nil {
				return err
			}
			if err := errors.Join(a.showBackup(info), p.keep()); err != nil {
				return err
			}
			if start {
				return a.startNode(cmd.Context(), p)
			}
			a.notef("next:\n  systemctl start debvisor    or: debvisor agent\n  debvisor node token         for every other machine")
			return nil
		},
	}
	p.flags(cmd)
	cmd.Flags().StringVar(&passphrase, "passphrase-file", "", "file with the passphrase")
	cmd.Flags().StringVar(&reason, "reason", "", "why, shown where the former nodes are missing")
	cmd.Flags().BoolVar(&verify, "verify", false, "only read and verify the file")
	cmd.Flags().BoolVar(&start, "start", false, "run the agent at once")
	return cmd
}

func (a *app) showBackup(i cluster.BackupInfo) error {
	shown := struct {
		cluster.BackupInfo
		Index   uint64 `json:"index"`
		Records uint64 `json:"records"`
	}{i, i.Index, i.Records}
	return a.result(shown, "a whole backup of cluster %s, made %s by %s: state at index %d, %d journal records",
		i.ClusterID, i.Created.Local().Format(timeLayout), clean(i.Node), i.Index, i.Records)
}
