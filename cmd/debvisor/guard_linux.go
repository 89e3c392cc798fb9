package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/plugins/libvirt"
)

// guardWord is the command by which an agent starts the guard of a frozen
// guest.
const guardWord = "thaw-guard"

// guardCommand thaws a guest when its agent has died or its time is over. It is
// for the agent alone.
func guardCommand() *cobra.Command {
	return &cobra.Command{
		Use: guardWord + " SOCKET ID LIMIT", Hidden: true, Short: "Thaw a frozen guest when its time is over",
		Example: "  debvisor " + guardWord + " /run/libvirt/libvirt-sock ID 30s",
		Args:    exactly("SOCKET", "ID", "LIMIT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			limit, err := time.ParseDuration(args[2])
			if err != nil {
				return usage(cmd, "%q is no duration", args[2])
			}
			ctx, stop := signal.NotifyContext(context.WithoutCancel(cmd.Context()), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
			defer stop()
			return libvirt.Guard(ctx, os.Stdin, os.Stdout, args[0], args[1], limit)
		},
	}
}
