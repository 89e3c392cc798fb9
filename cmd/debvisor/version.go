package main

import (
	"runtime"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
)

// versions is what version prints.
type versions struct {
	Version  string       `json:"version"`
	Go       string       `json:"go"`
	Platform string       `json:"platform"`
	Server   *api.Version `json:"server,omitzero"`
}

func versionCommand(a *app) *cobra.Command {
	var server bool
	cmd := &cobra.Command{
		Use: "version", Short: "Show the version of this program", Example: "  debvisor version\n  debvisor version --server",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
			if server {
				c, err := a.client()
				if err != nil {
					return err
				}
				if v.Server, err = c.Version(cmd.Context()); err != nil {
					return err
				}
			}
			if a.structured() {
				return a.emit(v)
			}
			a.printf("debvisor %s (%s, %s)\n", v.Version, v.Go, v.Platform)
			if v.Server != nil {
				a.printf("node %s: debvisor %s, cluster version %d\n", clean(v.Server.Node), clean(v.Server.Version), v.Server.ClusterVersion)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&server, "server", false, "ask the node that answers, too")
	return cmd
}
