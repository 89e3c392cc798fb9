package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

func nodeDomainsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "domains NAME", Short: "List the guests of a node that debvisor does not manage",
		Long:    "Lists the guests that others made with the node's hypervisor. debvisor never\ntouches them; what they use of CPU and memory is not counted.",
		Example: "  debvisor node domains node1",
		Args:    exactly("NAME"), ValidArgsFunction: a.completeNames(nodes()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			list, err := c.ForeignDomains(ctx, args[0])
			if err != nil {
				return err
			}
			if a.structured() {
				return a.emit(list)
			}
			for i := range list.Items {
				a.showForeign(&list.Items[i])
			}
			switch {
			case len(list.Items) == 0:
				a.printf("none: every guest of %s is debvisor's\n", clean(args[0]))
			case list.More:
				a.printf("and more; %d are shown\n", len(list.Items))
			}
			return nil
		}),
	}
}

func (a *app) showForeign(d *api.ForeignDomain) {
	a.printf("%s  %s  %d CPUs  %s  %s\n", clean(d.Name), clean(d.State), d.CPUs, api.FormatSize(d.MemoryBytes), clean(d.ID))
	for _, disk := range d.Disks {
		a.printf("    disk %s  %s  %s\n", clean(disk.Device), dash(clean(disk.Format)), dash(clean(disk.Path)))
	}
	for _, nic := range d.NICs {
		a.printf("    nic %s on %s\n", clean(nic.MAC), dash(clean(nic.Bridge)))
	}
}
