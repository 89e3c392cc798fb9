package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/debvisor/debvisor/api"
)

func TestExitStatusSaysWhatHappened(t *testing.T) {
	t.Parallel()
	for code, want := range map[api.Code]int{
		api.CodeNotFound: 3, api.CodeConflict: 4, api.CodeForbidden: 5, api.CodeUnauthenticated: 5, api.CodeInvalid: 1, api.CodeInternal: 1,
	} {
		f := newFakeCluster(t, map[string]any{"GET /v1/tenants/x": api.Errorf(code, "an answer")})
		got := f.command(t, "tenant", "show", "x")
		if got.status != want {
			t.Errorf("code %s: status %d, want %d", code, got.status, want)
		}
		if !strings.HasPrefix(got.err, "error: an answer") || !strings.Contains(got.err, "request ID: req-1") || got.out != "" {
			t.Errorf("code %s: standard error %q, output %q", code, got.err, got.out)
		}
	}
	for err, want := range map[error]int{
		nil: 0, api.Errorf(api.CodeUnavailable, "x"): 6, api.Errorf(api.CodeUnknown, "x"): 6, api.Errorf(api.CodeNoLeader, "x"): 6,
		fmt.Errorf("wrapped: %w", api.Errorf(api.CodeConflict, "x")): 4, context.Canceled: 130, io.ErrUnexpectedEOF: 1,
	} {
		if got := statusOf(err); got != want {
			t.Errorf("statusOf(%v) = %d, want %d", err, got, want)
		}
	}
}

func TestUnreachableClusterIsUnavailable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // one try is enough
	a := newApp(strings.NewReader(""), io.Discard, io.Discard, func(name string) string { return map[string]string{"DEBVISOR_ADDR": address}[name] })
	if status := run(ctx, a, []string{"vm", "list"}); status != statusUnavailable {
		t.Errorf("status %d, want %d", status, statusUnavailable)
	}
}

func TestWrongCommandLinesSayWhatWasMeant(t *testing.T) {
	t.Parallel()
	tests := []struct{ args, want string }{
		{"vn list", `did you mean "vm"?`},
		{"vm lst", `did you mean "list"?`},
		{"vm list --lable a=b", "did you mean --label?"},
		{"vm list --label a", `label "a" is not key=value`},
		{"vm list extra", `"extra" is one argument too many`},
		{"vm show", "NAME is missing"},
		{"vm list -o jsn", `did you mean "json"?`},
		{"why vm", `"vm" is not KIND/NAME`},
		{"why vn/web", `did you mean "vm"?`},
		{"network create lan", `a network of driver bridge needs --bridge`},
		{"vm create web --memory 1XB", `"1XB" is not a size`},
		{"vm create web --pool fast", "there is no disk to put there"},
		{"events --kind vmm", `did you mean "vm"?`},
		{"plan", `required flag(s) "file" not set`},
		{"node confirm-off", "NAME is missing"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			t.Parallel()
			got := runIn(t, nil, strings.Fields(tt.args)...)
			if got.status != statusUsage || !strings.Contains(got.err, tt.want) {
				t.Errorf("status %d, want %d; standard error %q, want %q in it", got.status, statusUsage, got.err, tt.want)
			}
		})
	}
}

// walk calls f for every command.
func walk(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, sub := range cmd.Commands() {
		walk(sub, f)
	}
}

func newRoot() *cobra.Command {
	return rootCommand(newApp(strings.NewReader(""), io.Discard, io.Discard, func(string) string { return "" }))
}

func TestEveryCommandHasHelpWithAnExampleAndExitStatuses(t *testing.T) {
	t.Parallel()
	walk(newRoot(), func(cmd *cobra.Command) {
		if cmd.Example == "" || cmd.Short == "" {
			t.Errorf("%s has no example or no short help", cmd.CommandPath())
		}
		if !strings.Contains(cmd.Long, "Exit status: 0 done, 1 error, 2 usage, 3 not found, 4 conflict") {
			t.Errorf("the help of %s does not tell its exit statuses", cmd.CommandPath())
		}
		if strings.HasSuffix(cmd.Short, ".") || strings.Contains(cmd.Short, "\n") {
			t.Errorf("%s: short help %q is no single phrase", cmd.CommandPath(), cmd.Short)
		}
		for line := range strings.Lines(cmd.Long) {
			if n := columns(strings.TrimSuffix(line, "\n")); n > widthDefault {
				t.Errorf("%s: a line of its help has %d columns: %s", cmd.CommandPath(), n, line)
			}
		}
	})
}

// TestSecretsAreNeverArguments looks for flags that would show in lists of
// processes.
func TestSecretsAreNeverArguments(t *testing.T) {
	t.Parallel()
	walk(newRoot(), func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if slices.Contains([]string{"key", "passphrase", "password", "secret"}, f.Name) {
				t.Errorf("%s takes a secret as --%s", cmd.CommandPath(), f.Name)
			}
		})
	})
}

func TestChangesCanBePlannedAndListsWatched(t *testing.T) {
	t.Parallel()
	changing := []string{"create", "delete", "start", "stop", "restart", "apply", "destroy", "remove", "cordon", "uncordon", "confirm-off", "revert", "cancel", "token", "activate"}
	walk(newRoot(), func(cmd *cobra.Command) {
		if slices.Contains(changing, cmd.Name()) && cmd.Flags().Lookup("plan") == nil {
			t.Errorf("%s has no --plan", cmd.CommandPath())
		}
		if cmd.Name() == "list" && cmd.Parent().Name() != "audit" && cmd.Flags().Lookup("watch") == nil {
			t.Errorf("%s has no --watch", cmd.CommandPath())
		}
	})
}

func TestKeyComesFromEnvironmentOrFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("dvk_file_x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		env  map[string]string
		want string
	}{
		{map[string]string{}, ""},
		{map[string]string{"DEBVISOR_KEY": " dvk_env_x "}, "dvk_env_x"},
		{map[string]string{"DEBVISOR_KEY_FILE": file}, "dvk_file_x"},
		{map[string]string{"DEBVISOR_KEY": "dvk_env_x", "DEBVISOR_KEY_FILE": file}, "dvk_env_x"},
	}
	for _, tt := range tests {
		a := newApp(strings.NewReader(""), io.Discard, io.Discard, func(name string) string { return tt.env[name] })
		if got, err := a.key(); err != nil || got != tt.want {
			t.Errorf("key with %v = %q, %v; want %q", tt.env, got, err, tt.want)
		}
	}
	a := newApp(strings.NewReader(""), io.Discard, io.Discard, func(name string) string { return map[string]string{"DEBVISOR_KEY_FILE": file + "x"}[name] })
	if _, err := a.key(); err == nil {
		t.Error("a missing key file is no error")
	}
}

func TestCompletionKnowsTheClustersNames(t *testing.T) {
	t.Parallel()
	f := cannedCluster(t)
	tests := []struct {
		args []string
		want []string
	}{
		{[]string{"vm", "show", ""}, []string{"web", "a-name-that-is"}},
		{[]string{"vm", "show", "w"}, []string{"web"}},
		{[]string{"vm", "create", "x", "--image", ""}, []string{"tiny"}},
		{[]string{"why", ""}, []string{"vm/", "node/"}},
		{[]string{"why", "vm/"}, []string{"vm/web"}},
		{[]string{"node", "cordon", ""}, []string{"node1"}},
		{[]string{"vm", "list", "-o", ""}, []string{"wide", "yaml"}},
	}
	for _, tt := range tests {
		got := f.command(t, append([]string{"__complete"}, tt.args...)...)
		for _, want := range tt.want {
			if !strings.Contains(got.out, want) {
				t.Errorf("completion of %q lacks %q: %s", tt.args, want, got.out)
			}
		}
	}
	if got := f.command(t, "__complete", "vm", "show", "w"); strings.Contains(got.out, "a-name") {
		t.Errorf("completion of w offers names that do not begin so: %s", got.out)
	}
}

func TestNearestWord(t *testing.T) {
	t.Parallel()
	known := []string{"list", "show", "create", "delete", "restart"}
	for word, want := range map[string]string{"lst": "list", "crate": "create", "remove": "", "del": "delete", "x": "", "RESTRAT": "restart"} {
		if got := nearest(word, known); got != want {
			t.Errorf("nearest(%q) = %q, want %q", word, got, want)
		}
	}
}
