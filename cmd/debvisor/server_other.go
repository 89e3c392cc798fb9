//go:build !linux

package main

import (
	"errors"

	"github.com/spf13/cobra"
)

// linuxOnly makes a command that says where it runs. Nodes need Linux; this
// system has the commands that manage a cluster.
func linuxOnly(use, short string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short + " (on Linux)", DisableFlagParsing: true, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return &usageError{err: errors.New("debvisor " + cmd.Name() + " runs on Linux only; the other commands work here, with DEBVISOR_ADDR set")}
		},
	}
}

func guardCommand() *cobra.Command {
	cmd := linuxOnly("thaw-guard SOCKET ID LIMIT", "Thaw a frozen guest when its time is over")
	cmd.Hidden = true
	return cmd
}

func devCommand(*app) *cobra.Command  { return linuxOnly("dev", "Run a whole cluster on this machine") }
func initCommand(*app) *cobra.Command { return linuxOnly("init", "Make this machine the first node") }
func joinCommand(*app) *cobra.Command {
	return linuxOnly("join TOKEN@HOST", "Make this machine a node of a cluster")
}
func agentCommand(*app) *cobra.Command { return linuxOnly("agent", "Run the node of this machine") }
func restoreCommand(*app) *cobra.Command {
	return linuxOnly("restore FILE", "Make this machine the first node of a restored cluster")
}
