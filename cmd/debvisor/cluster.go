package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

const (
	statusEvery    = 2 * time.Second // of cluster status --watch
	passphraseMin  = 12              // characters
	passphraseMax  = 1024            // bytes of a passphrase file
	passphraseName = "DEBVISOR_PASSPHRASE_FILE"
)

func clusterCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "cluster", Short: "Work with the cluster as a whole", Example: "  debvisor cluster status\n  debvisor cluster backup --out monday.backup"}
	cmd.AddCommand(clusterStatusCommand(a), backupCommand(a), restoreCommand(a), activateCommand(a))
	return cmd
}

func clusterStatusCommand(a *app) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use: "status", Short: "Show the members, the leader and their health",
		Example: "  debvisor cluster status\n  debvisor cluster status -o json | jq -r .leader",
		Args:    exactly(),
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			for {
				status, err := c.Status(ctx)
				if err != nil {
					return ignoreEnd(ctx, err)
				}
				if !watch {
					if err := a.showStatus(ctx, c, status, a.emit); err != nil || status.Leader != "" {
						return err
					}
					return &exitError{status: statusUnavailable, err: errors.New("nobody leads; most of the voters must run and reach each other")}
				}
				if a.terminal && !a.structured() {
					a.printf("\x1b[H\x1b[2J")
				}
				if err := a.showStatus(ctx, c, status, a.emitLine); err != nil {
					return err
				}
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(statusEvery):
				}
			}
		}),
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again every 2 s")
	return cmd
}

func (a *app) showStatus(ctx context.Context, c *client.Client, s *api.ClusterStatus, emit func(any) error) error {
	if a.structured() {
		return emit(s)
	}
	a.printf("%s\n", clean(s.Summary))
	for _, w := range s.Warnings {
		a.printf("warning: %s\n", clean(w))
	}
	if len(s.Survival) > 0 {
		a.printf("%s\n", clean(api.SurvivalText(s.Survival)))
	}
	a.printf("leader %s, term %d, index %d, cluster version %d\n", clean(dash(s.Leader)), s.Term, s.Index, s.ClusterVersion)
	a.printf("region %s, cluster %s\n\n", clean(s.Region), clean(s.ClusterID))
	t := table{titles: []string{"NODE", "ROLE", "HEALTH", "LEASE", "ADDRESS", "CONTACT", "NOTE"}, keep: []bool{false, true, true, true}}
	wide := a.format == formatWide
	if wide {
		t.titles = append(t.titles, "VERSION", "ID")
	}
	for _, m := range s.Members {
		row := []string{m.Name, roleText(&m), healthText(&m), dash(m.Lease), m.Address, contactText(&m), dash(m.Reason)}
		if wide {
			row = append(row, dash(m.Version), m.ID)
		}
		t.rows = append(t.rows, row)
	}
	a.printf("%s", t.render(a.limit())+a.simulated(ctx, c))
	return nil
}

func roleText(m *api.Member) string {
	switch {
	case m.Leader:
		return "leader"
	case m.Witness:
		return "witness"
	case m.Voter:
		return "voter"
	}
	return "replica"
}

func healthText(m *api.Member) string {
	if m.Healthy {
		return "ok"
	}
	return "no"
}

func contactText(m *api.Member) string {
	if m.LastContactMS == 0 {
		return "-"
	}
	return (time.Duration(m.LastContactMS) * time.Millisecond).String()
}

func backupCommand(a *app) *cobra.Command {
	var out, passphrase string
	cmd := &cobra.Command{
		Use: "backup --out FILE", Short: "Write the whole state of the cluster into one encrypted file",
		Long: `Writes the replicated state, the CA and the journal of the cluster into one
file, encrypted with a passphrase of at least 12 characters. The passphrase
comes from --passphrase-file, from the file that DEBVISOR_PASSPHRASE_FILE names,
or from a question. Disks of VMs are not part of it.`,
		Example: "  debvisor cluster backup --out monday.backup --passphrase-file passphrase",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			secret, err := a.passphrase(passphrase, true)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			size, err := a.backup(cmd.Context(), c, out, secret)
			if err != nil {
				return err
			}
			return a.result(map[string]any{"file": out, "size_bytes": size}, "%s: %s; restore it with: debvisor cluster restore %s", out, api.FormatSize(size), out)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file to write; it must not exist")
	cmd.Flags().StringVar(&passphrase, "passphrase-file", "", "file with the passphrase")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

// backup writes beside the file and renames at the end: a file of that name
// is a whole backup.
func (a *app) backup(ctx context.Context, c *client.Client, out, secret string) (size int64, err error) {
	if fileExists(out) {
		return 0, api.Errorf(api.CodeConflict, "%s exists", out).Do("name another file")
	}
	f, err := os.CreateTemp(filepath.Dir(out), ".debvisor-backup-*")
	if err != nil {
		return 0, fmt.Errorf("write backup: %w", err)
	}
	defer os.Remove(f.Name())
	if err = c.Backup(ctx, secret, f); err == nil {
		err = f.Sync()
	}
	stat, statErr := f.Stat()
	if err = errors.Join(err, statErr, f.Close()); err != nil {
		return 0, err
	}
	// A link does not replace a file that appeared in the meantime.
	if err := os.Link(f.Name(), out); err != nil {
		return 0, fmt.Errorf("write backup: %w", err)
	}
	return stat.Size(), nil
}

// passphrase reads a passphrase from a file or from the terminal.
func (a *app) passphrase(file string, twice bool) (string, error) {
	if file == "" {
		file = a.env(passphraseName)
	}
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("read passphrase: %w", err)
		}
		defer f.Close()
		raw, err := io.ReadAll(io.LimitReader(f, passphraseMax))
		if err != nil {
			return "", fmt.Errorf("read passphrase: %w", err)
		}
		return checkPassphrase(strings.TrimRight(string(raw), "\r\n"))
	}
	stdin, ok := a.in.(*os.File)
	if !a.asking || !ok {
		return "", &usageError{err: errors.New("no passphrase: name a file with --passphrase-file or " + passphraseName)}
	}
	first, err := a.askSecret(stdin, "passphrase: ")
	if err != nil {
		return "", err
	}
	if twice {
		second, err := a.askSecret(stdin, "again: ")
		if err != nil {
			return "", err
		}
		if first != second {
			return "", &usageError{err: errors.New("the two passphrases differ")}
		}
	}
	return checkPassphrase(first)
}

func (a *app) askSecret(stdin *os.File, question string) (string, error) {
	fmt.Fprint(a.errOut, question)
	raw, err := term.ReadPassword(int(stdin.Fd()))
	fmt.Fprintln(a.errOut)
	if err != nil {
		return "", fmt.Errorf("read passphrase: %w", err)
	}
	return string(raw), nil
}

func checkPassphrase(s string) (string, error) {
	if len([]rune(s)) < passphraseMin {
		return "", &usageError{err: fmt.Errorf("the passphrase has %d characters; at least %d are wanted", len([]rune(s)), passphraseMin)}
	}
	return s, nil
}

func activateCommand(a *app) *cobra.Command {
	var to uint32
	var yes bool
	var ch change
	cmd := &cobra.Command{
		Use: "activate --to VERSION", Short: "Raise the cluster version after all nodes were upgraded",
		Long: `Raises the cluster version, which decides what entries of the log mean. Every
node must run a binary that understands it. There is no way back.`,
		Example: "  debvisor cluster activate --to 2",
		Args:    exactly(),
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			if !yes && !ch.plan {
				if ok, err := a.confirm(fmt.Sprintf("raise the cluster version to %d, with no way back?", to), true); err != nil || !ok {
					return err
				}
			}
			planned, err := ch.do(a, func(o ...client.Option) error { return c.Activate(ctx, to, o...) })
			if err == nil && !planned {
				a.notef("cluster version %d is active", to)
			}
			return err
		}),
	}
	ch.flags(cmd)
	cmd.Flags().Uint32Var(&to, "to", 0, "the version; cluster status shows the active one")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	_ = cmd.MarkFlagRequired("to")
	return cmd
}
