package cluster_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/e2e/cluster/harness"
)

// TestReadmeCommandsWork runs every command of the README's console blocks, in
// order, in one shell, as a reader would.
func TestReadmeCommandsWork(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(filepath.Join(harness.Root(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	commands := consoleCommands(string(raw))
	if len(commands) < 10 {
		t.Fatalf("the README shows %d commands: %q", len(commands), commands)
	}
	c := harness.Start(t, harness.Options{})
	says := map[string]string{ // what the README promises of the output
		`^debvisor cluster status$`: `leader node\d`,
		`^debvisor plan `:           `web`,
		`^debvisor apply `:          `vm web is running on node\d`,
		`^debvisor vm list$`:        `web +running`,
		`^debvisor why vm/web$`:     `node\d`,
		`^debvisor audit verify$`:   `the journal is whole`,
		`^debvisor history `:        `create`,
		`^debvisor vm stop web$`:    `web is stopped`,
		`^debvisor vm start web$`:   `web is running`,
		`^debvisor diff `:           `web`,
	}
	session := readmeShell(t, c)
	for _, command := range commands {
		r := session(command)
		if r.Status != 0 {
			t.Fatalf("$ %s\n%s%sexit status %d", command, r.Stdout, r.Stderr, r.Status)
		}
		for which, pattern := range says {
			if !regexp.MustCompile(which).MatchString(command) {
				continue
			}
			delete(says, which)
			if !regexp.MustCompile(pattern).MatchString(r.Stdout + r.Stderr) {
				t.Errorf("$ %s: %s is not in\n%s%s", command, pattern, r.Stdout, r.Stderr)
			}
		}
	}
	for which := range says {
		t.Errorf("the README shows no command like %s", which)
	}
}

// consoleCommands are the lines that begin with "$ " inside ```console blocks.
func consoleCommands(text string) []string {
	var out []string
	inside := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "```"):
			inside = line == "```console"
		case inside && strings.HasPrefix(line, "$ "):
			out = append(out, strings.TrimPrefix(line, "$ "))
		}
	}
	return out
}

// readmeShell runs commands as the README says: DIR/env is sourced and the
// binary is on the PATH.
func readmeShell(t *testing.T, c *harness.Cluster) func(string) harness.Result {
	bin := t.TempDir()
	if err := os.Symlink(harness.Binary(t), filepath.Join(bin, "debvisor")); err != nil {
		t.Fatal(err)
	}
	return func(command string) harness.Result {
		return harness.RunProgram(t, nil, "bash", "-euc", `source "$1"; export PATH="$2:$PATH"; eval "$3"`, "bash", filepath.Join(c.Dir, "env"), bin, command)
	}
}
