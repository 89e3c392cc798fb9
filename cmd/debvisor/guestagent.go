package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

func guestCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "guest", Short: "Ask the agent inside a VM's guest (qemu-guest-agent)",
		Example: "  debvisor vm guest info web\n  debvisor vm guest set-password web root --password-file secret",
	}
	cmd.AddCommand(guestInfoCommand(a), guestPasswordCommand(a), guestFreezeCommand(a), guestThawCommand(a), guestTimeCommand(a))
	return cmd
}

func guestInfoCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "info NAME", Short: "Show what the guest says of itself", Example: "  debvisor vm guest info web -o yaml",
		Args: exactly("NAME"), ValidArgsFunction: a.completeNames(vms()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			info, err := c.GuestInfo(ctx, a.tenantName(), args[0])
			if err != nil {
				return err
			}
			if a.structured() {
				return a.emit(info)
			}
			a.printf("%s", guestText(info))
			return nil
		}),
	}
}

// guestText shows what a guest says.
func guestText(info *api.GuestInfo) string {
	var t table
	t.titles = []string{"FIELD", "VALUE"}
	add := func(name, value string) { t.rows = append(t.rows, []string{name, dash(value)}) }
	add("hostname", info.Hostname)
	add("os", info.OS)
	add("kernel", info.Kernel)
	add("addresses", strings.Join(info.Addresses, ", "))
	add("frozen", yes(info.Frozen))
	if !info.Time.IsZero() {
		add("clock", info.Time.UTC().Format(time.RFC3339))
	}
	for _, f := range info.Filesystems {
		add("file system "+f.Mount, fmt.Sprintf("%s on %s, %s of %s used", dash(f.Type), dash(f.Device), api.FormatSize(f.UsedBytes), api.FormatSize(f.TotalBytes)))
	}
	_, rows, _ := strings.Cut(t.render(0), "\n")
	return rows
}

func guestPasswordCommand(a *app) *cobra.Command {
	var ch change
	var file string
	cmd := &cobra.Command{
		Use: "set-password NAME ACCOUNT", Short: "Set the password of an account in the guest",
		Long: `Sets the password of an account in the guest. The password comes from
--password-file, with "-" from the standard input, or is asked for. It is stored
nowhere; that it was set, of which account and by whom, is in the journal.`,
		Example: "  debvisor vm guest set-password web root\n  debvisor vm guest set-password web root --password-file -",
		Args:    exactly("NAME", "ACCOUNT"), ValidArgsFunction: a.completeNames(vms()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			password, err := a.guestPassword(file)
			if err != nil {
				return err
			}
			planned, err := ch.do(a, func(o ...client.Option) error {
				return c.SetGuestPassword(ctx, a.tenantName(), args[0], api.GuestPasswordSet{Account: args[1], Password: password}, o...)
			})
			if err == nil && !planned {
				a.notef("the password of %s in vm %s is set", clean(args[1]), clean(args[0]))
			}
			return err
		}),
	}
	cmd.Flags().StringVar(&file, "password-file", "", `file with the password; "-" for the standard input`)
	ch.flags(cmd)
	return cmd
}

// guestPassword reads a password from a file, the standard input or the
// terminal.
func (a *app) guestPassword(file string) (string, error) {
	var from io.Reader = a.in
	switch {
	case file == "-":
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("read password: %w", err)
		}
		defer f.Close()
		from = f
	default:
		stdin, ok := a.in.(*os.File)
		if !a.asking || !ok {
			return "", &usageError{err: errors.New("no password: name a file with --password-file, or - for the standard input")}
		}
		first, err := a.askSecret(stdin, "password: ")
		if err != nil {
			return "", err
		}
		second, err := a.askSecret(stdin, "again: ")
		if err == nil && first != second {
			err = &usageError{err: errors.New("the two passwords differ")}
		}
		return first, err
	}
	raw, err := io.ReadAll(io.LimitReader(from, api.GuestPasswordMax+3))
	if err != nil {
		return "", fmt.Errorf("read password: %w", err)
	}
	return strings.TrimRight(string(raw), "\r\n"), nil
}

// guestVerb is a command that asks the guest of one VM for something.
func guestVerb(a *app, verb, short, long string, do func(ctx context.Context, c *client.Client, vm string, o ...client.Option) (string, error)) *cobra.Command {
	var ch change
	cmd := &cobra.Command{
		Use: verb + " NAME", Short: short, Long: long, Example: "  debvisor vm guest " + verb + " web",
		Args: exactly("NAME"), ValidArgsFunction: a.completeNames(vms()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			said := ""
			planned, err := ch.do(a, func(o ...client.Option) (err error) {
				said, err = do(ctx, c, args[0], o...)
				return err
			})
			if err == nil && !planned {
				a.notef("vm %s: %s", clean(args[0]), said)
			}
			return err
		}),
	}
	ch.flags(cmd)
	return cmd
}

func guestFreezeCommand(a *app) *cobra.Command {
	limit := api.GuestFreezeDefault
	cmd := guestVerb(a, "fsfreeze", "Freeze the guest's file systems for a while", `Flushes and freezes the guest's file systems. They thaw by fsthaw, and by
themselves after --for, whatever becomes of the node's agent meanwhile.`,
		func(ctx context.Context, c *client.Client, vm string, o ...client.Option) (string, error) {
			answer, err := c.FreezeGuest(ctx, a.tenantName(), vm, limit, o...)
			if err != nil || answer == nil {
				return "", err
			}
			return fmt.Sprintf("%d file systems are frozen, for %v at most", answer.Freezing.Filesystems, limit), nil
		})
	cmd.Flags().DurationVar(&limit, "for", limit, "thaw by themselves after this time; 10m at most")
	return cmd
}

func guestThawCommand(a *app) *cobra.Command {
	return guestVerb(a, "fsthaw", "Thaw the guest's file systems", "", func(ctx context.Context, c *client.Client, vm string, o ...client.Option) (string, error) {
		answer, err := c.ThawGuest(ctx, a.tenantName(), vm, o...)
		if err != nil || answer == nil {
			return "", err
		}
		return fmt.Sprintf("%d file systems thawed", answer.Freezing.Filesystems), nil
	})
}

func guestTimeCommand(a *app) *cobra.Command {
	return guestVerb(a, "set-time", "Set the guest's clock to that of its host", "", func(ctx context.Context, c *client.Client, vm string, o ...client.Option) (string, error) {
		return "its clock is that of its host", c.SetGuestTime(ctx, a.tenantName(), vm, o...)
	})
}
