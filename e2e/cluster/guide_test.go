package cluster_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/e2e/cluster/harness"
)

// TestGuideCommandsWork runs every command of the console blocks in docs/guide,
// page by page, each page in order in one shell on a new cluster of three
// simulated nodes. A command after which the page shows "# exit status N" must
// end with that status.
func TestGuideCommandsWork(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob(filepath.Join(harness.Root(t), "docs/guide/*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		t.Run(strings.TrimSuffix(filepath.Base(page), ".md"), func(t *testing.T) {
			raw, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			commands := consoleCommands(string(raw))
			if len(commands) == 0 {
				t.Fatalf("%s shows no command", page)
			}
			session := readmeShell(t, harness.Start(t, harness.Options{}))
			for _, command := range commands {
				command, status := wantedStatus(command)
				if r := session(command); r.Status != status {
					t.Fatalf("$ %s\n%s%sexit status %d, want %d", command, r.Stdout, r.Stderr, r.Status, status)
				}
			}
		})
	}
}

// wantedStatus cuts the remark about its exit status off a command.
func wantedStatus(command string) (string, int) {
	const mark = "# exit status "
	before, after, ok := strings.Cut(command, mark)
	if !ok || len(after) != 1 {
		return command, 0
	}
	return strings.TrimSpace(before), int(after[0] - '0')
}
