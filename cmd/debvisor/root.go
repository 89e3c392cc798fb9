package main

import (
	"github.com/spf13/cobra"
)

const rootLong = `debvisor turns Debian machines into one cloud.

On the first host: debvisor init, then debvisor agent. On every other: the
debvisor join that init printed, then debvisor agent. From anywhere: describe
VMs in a file and debvisor apply it. To try all of it on one machine:
debvisor dev.

Environment:
  DEBVISOR_ADDR      nodes to talk to, as node1:7443,node2:7443
  DEBVISOR_CACERT    file with the CA certificate of the cluster
  DEBVISOR_KEY       API key; or DEBVISOR_KEY_FILE, a file that holds it
  NO_COLOR           any value: no colours

` + statusHelp

// The groups under which help lists the commands.
const (
	groupFiles   = "files"
	groupObjects = "objects"
	groupCluster = "cluster"
	groupNode    = "node"
)

func rootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "debvisor",
		Short:         "One cloud from Debian machines",
		Long:          rootLong,
		Example:       "  debvisor plan -f shop.hcl\n  debvisor apply -f shop.hcl\n  debvisor vm list --watch",
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          group,
		Args:          cobra.ArbitraryArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return a.checkFormat(cmd)
		},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.errOut)
	root.SetFlagErrorFunc(flagError)
	root.AddGroup(
		&cobra.Group{ID: groupFiles, Title: "Files that describe what you want:"},
		&cobra.Group{ID: groupObjects, Title: "Objects:"},
		&cobra.Group{ID: groupCluster, Title: "The cluster and what happened in it:"},
		&cobra.Group{ID: groupNode, Title: "This machine as a node:"},
	)
	flags := root.PersistentFlags()
	flags.StringVarP(&a.format, "output", "o", formatTable, "table, wide, json or yaml")
	flags.StringVar(&a.tenant, "tenant", "", `tenant (default "default")`)
	flags.StringVar(&a.addr, "addr", "", "nodes to talk to, as host:port,host:port (default $DEBVISOR_ADDR)")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats(), cobra.ShellCompDirectiveNoFileComp))
	_ = root.RegisterFlagCompletionFunc("tenant", a.completeNames(tenants()))

	inGroup(root, groupFiles, planCommand(a), applyCommand(a), destroyCommand(a))
	inGroup(root, groupObjects, vmCommand(a), imageCommand(a), networkCommand(a), firewallCommand(a), poolCommand(a), volumeCommand(a),
		tenantCommand(a), keyCommand(a), roleCommand(a), taskCommand(a))
	inGroup(root, groupCluster, clusterCommand(a), nodeCommand(a), balanceCommand(a), topCommand(a), eventsCommand(a), whyCommand(a), historyCommand(a),
		diffCommand(a), revertCommand(a), auditCommand(a), canCommand(a))
	root.AddCommand(guardCommand())
	inGroup(root, groupNode, devCommand(a), initCommand(a), joinCommand(a), agentCommand(a), doctorCommand(a))
	root.AddCommand(versionCommand(a))
	finishCommands(root)
	return root
}

func inGroup(root *cobra.Command, id string, commands ...*cobra.Command) {
	for _, c := range commands {
		c.GroupID = id
		root.AddCommand(c)
	}
}

// finishCommands gives every command what all have: its exit statuses in the
// help, and an error for a subcommand that does not exist.
func finishCommands(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		if sub.Long == "" {
			sub.Long = sub.Short + "."
		}
		sub.Long += "\n\n" + statusHelp
		if sub.HasSubCommands() && sub.RunE == nil {
			sub.RunE, sub.Args = group, cobra.ArbitraryArgs
		}
		finishCommands(sub)
	}
}
