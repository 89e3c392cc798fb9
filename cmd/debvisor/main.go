// Command debvisor is the whole product in one file: the node that runs on
// every machine, and the command line that talks to a cluster of them.
//
// Each noun of the command line has a file of its own. Commands that manage a
// cluster use nothing but the public HTTP API through api/client, and build for
// every system; those that run a node build for Linux.
package main

import (
	"context"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// version is set by the linker: go build -ldflags "-X main.version=v1.2.3".
var version = "dev"

func main() {
	// The first signal asks the command to end in order; a second one, after
	// stop, has its usual effect and ends the process at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, newApp(os.Stdin, os.Stdout, os.Stderr, os.Getenv), os.Args[1:]))
}

// run executes one command line and returns its exit status.
func run(ctx context.Context, a *app, args []string) int {
	root := rootCommand(a)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && strings.HasPrefix(err.Error(), "required flag(s)") {
		err = usage(cmd, "%w", err) // cobra gives this error no type
	}
	return a.finish(err)
}
