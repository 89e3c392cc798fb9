package main_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// build makes the program once for a test and returns its path.
func build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "report")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// run runs the program in a module of its own that has the given files.
func run(t *testing.T, bin string, files map[string]string, args ...string) (output string, status int) {
	t.Helper()
	dir := t.TempDir()
	files["go.mod"] = "module example.com/planted\n\ngo 1.26\n"
	for name, source := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(bin, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func lastLine(output string) string {
	lines := strings.Split(strings.TrimRight(output, "\n"), "\n")
	return lines[len(lines)-1]
}

func testFile(body string) string {
	return "package planted\n\nimport \"testing\"\n\n" + body + "\n"
}

func TestReportTellsWhatHappened(t *testing.T) {
	t.Parallel()
	bin := build(t)
	const pass = "func TestPass(t *testing.T) {}"
	tests := []struct {
		name, body string
		args       []string
		last       string
		status     int
		contains   []string
	}{
		{"pass", pass, nil, "1 passed, 0 failed, 0 skipped", 0, nil},
		{"fail", pass + "\nfunc TestFail(t *testing.T) { t.Error(\"broken wheel\") }", nil,
			"1 passed, 1 failed, 0 skipped", 1, []string{"broken wheel", "TestFail"}},
		{"failing subtest counts once", "func TestFail(t *testing.T) {\n\tt.Run(\"a\", func(t *testing.T) { t.Error(\"x\") })\n\tt.Run(\"b\", func(t *testing.T) {})\n}", nil,
			"1 passed, 1 failed, 0 skipped", 1, []string{"TestFail/a"}},
		{"parent fails by itself", "func TestFail(t *testing.T) {\n\tt.Run(\"b\", func(t *testing.T) {})\n\tt.Error(\"after\")\n}", nil,
			"1 passed, 1 failed, 0 skipped", 1, []string{"after"}},
		{"skip with a reason", pass + "\nfunc TestSkip(t *testing.T) { t.Skip(\"requires KVM\") }", nil,
			"1 passed, 0 failed, 1 skipped", 0, []string{"TestSkip", "requires KVM"}},
		{"skip without a reason", pass + "\nfunc TestSkip(t *testing.T) { t.Skip(\"flaky\") }", nil,
			"1 passed, 1 failed, 0 skipped", 1, []string{"flaky", "refused"}},
		{"panic", "func TestPanic(t *testing.T) { panic(\"no ground\") }", nil,
			"0 passed, 1 failed, 0 skipped", 1, []string{"no ground"}},
		{"exit", "func TestMain(m *testing.M) { panic(\"early\") }", nil,
			"0 passed, 1 failed, 0 skipped", 1, []string{"early"}},
		{"timeout", pass + "\nfunc TestHang(t *testing.T) { <-make(chan int) }", []string{"-test", "unit: -timeout 1s ./planted"},
			"1 passed, 1 failed, 0 skipped", 1, []string{"TestHang", "timed out"}},
		{"does not build", "func TestBroken(t *testing.T) { undefinedName() }", nil,
			"0 passed, 1 failed, 0 skipped", 1, []string{"undefinedName"}},
		{"nothing ran", "", nil, "0 passed, 1 failed, 0 skipped", 1, nil},
		{"unknown package", pass, []string{"-test", "unit: ./nope"},
			"0 passed, 1 failed, 0 skipped", 1, []string{"nope"}},
		{"left out", pass, []string{"-test", "unit: ./... !./left", "-check", "go version"},
			"2 passed, 0 failed, 0 skipped", 0, nil},
		{"check", pass, []string{"-check", "go no-such-command", "-test", "unit: ./planted"},
			"1 passed, 1 failed, 0 skipped", 1, []string{"no-such-command"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			files := map[string]string{"planted/x_test.go": testFile(tt.body), "left/x_test.go": testFile(pass)}
			if tt.name == "nothing ran" {
				files["planted/x_test.go"] = "package planted\n"
			}
			args := tt.args
			if args == nil {
				args = []string{"-test", "unit: ./planted/..."}
			}
			output, status := run(t, bin, files, args...)
			if lastLine(output) != tt.last || status != tt.status {
				t.Errorf("ends with %q and status %d, want %q and %d\n%s", lastLine(output), status, tt.last, tt.status, output)
			}
			for _, s := range tt.contains {
				if !strings.Contains(output, s) {
					t.Errorf("output lacks %q\n%s", s, output)
				}
			}
		})
	}
}

func TestReportRefusesUnknownSteps(t *testing.T) {
	t.Parallel()
	bin := build(t)
	for _, args := range [][]string{{}, {"-test"}, {"-test", "./..."}, {"-check", " "}, {"-chek", "x"}} {
		output, status := run(t, bin, map[string]string{}, args...)
		if status != 2 || !strings.HasPrefix(output, "report: ") {
			t.Errorf("report %q: status %d, want 2\n%s", args, status, output)
		}
	}
}
