// Command bench measures debvisor on this machine, side by side with bare Raft
// on the same stores and with Debian's etcd, and prints each figure next to
// the one that was asked for.
//
// Everything that is compared runs in the same minutes on the same disk, in
// turns, and is given as the median of the turns and as a ratio: absolute
// numbers change with the machine, ratios hold. Nothing here decides whether a
// test passes.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// section measures some figures. It blocks until it has, or ctx ends.
type section struct {
	name string
	what string
	run  func(ctx context.Context, b *bench) error
}

func sections() []section {
	return []section{
		{"kernel", "Apply, restore and placement, in this process", kernel},
		{"writes", "committed puts next to bare Raft and etcd", writes},
		{"reads", "linearizable and stale reads next to etcd", reads},
		{"create", "from the request to the running guest, simulated", create},
		{"lists", "a list of 20,000 VMs, 1,000 blocking queries", lists},
		{"start", "from process start to the first committed write", start},
		{"failover", "leader killed to the next committed write", failover},
		{"idle", "memory and processor of an idle node, size of the binary", idle},
		{"image", "a 1 GiB image next to cp and sha256sum, and a clone of it", imported},
		{"statistics", "a reading of the counters of 500 VMs", statistics},
		{"large", "restart of a node that holds 100,000 VMs", large},
	}
}

// bench is one run.
type bench struct {
	binary string // bin/debvisor
	dir    string // scratch
	turns  int
	window time.Duration // of one turn of a load
	kills  int
	rows   []row
}

// row is one figure.
type row struct {
	section, figure, measured, goal, verdict string
}

func main() {
	b := &bench{}
	var only, out string
	flag.StringVar(&b.binary, "binary", "bin/debvisor", "the program to measure")
	flag.IntVar(&b.turns, "turns", 3, "turns of each load; the median counts")
	flag.DurationVar(&b.window, "window", 3*time.Second, "length of a turn")
	flag.IntVar(&b.kills, "kills", 30, "leader kills")
	flag.StringVar(&only, "only", "", "sections to run, separated by commas; empty: all")
	flag.StringVar(&out, "out", "", "write the results to this file as well, as Markdown")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := b.all(ctx, only, out); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func (b *bench) all(ctx context.Context, only, out string) error {
	dir, err := os.MkdirTemp(os.Getenv("DEBVISOR_BENCH_DIR"), "debvisor-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b.dir = dir
	for _, s := range sections() {
		if only != "" && !strings.Contains(","+only+",", ","+s.name+",") {
			continue
		}
		fmt.Printf("%s: %s\n", s.name, s.what)
		from := len(b.rows)
		if err := s.run(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		for i := range b.rows[from:] {
			r := &b.rows[from+i]
			r.section = s.name
			fmt.Printf("  %-44s %-34s %s %s\n", r.figure, r.measured, r.goal, r.verdict)
		}
	}
	if out == "" {
		return nil
	}
	return os.WriteFile(out, []byte(b.markdown()+notes(out)), 0o644)
}

// notesTitle begins what people wrote below the figures of a file.
const notesTitle = "\n## What limits the missed figures\n"

// notes is what people wrote below the figures of the file that is there, to
// be kept; empty when there is none.
func notes(path string) string {
	old, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	at := bytes.Index(old, []byte(notesTitle))
	if at < 0 {
		return ""
	}
	return string(old[at:])
}

// add notes a figure. A goal of "" means that none was set.
func (b *bench) add(figure, measured, goal string, met bool) {
	verdict := ""
	switch {
	case goal != "" && met:
		verdict = "reached"
	case goal != "":
		verdict = "MISSED"
	}
	b.rows = append(b.rows, row{figure: figure, measured: measured, goal: goal, verdict: verdict})
}

func (b *bench) markdown() string {
	var w strings.Builder
	fmt.Fprintf(&w, "# Benchmarks\n\nMeasured %s on %d processors (%s/%s), %s. Repeat with `make bench`.\n\n",
		time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, memory())
	w.WriteString("Loads run in turns on one machine that also runs the load generator, so ratios count and absolute\n" +
		"numbers do not. debvisor is three processes and is asked over HTTP and TLS with a key, which it checks,\n" +
		"logs and journals. Bare Raft is hashicorp/raft with the same log store and an empty state machine, three\n" +
		"members over plain TCP in one process, which calls Apply itself; it pipelines, debvisor does not. etcd is\n" +
		"Debian's, three processes on the same disk, asked over gRPC without TLS.\n\n")
	section := ""
	for _, r := range b.rows {
		if r.section != section {
			section = r.section
			fmt.Fprintf(&w, "\n## %s\n\n| figure | measured | goal | |\n|---|---|---|---|\n", section)
		}
		fmt.Fprintf(&w, "| %s | %s | %s | %s |\n", r.figure, r.measured, r.goal, r.verdict)
	}
	return w.String()
}

func memory() string {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return "memory unknown"
	}
	var kib int64
	if _, err := fmt.Sscanf(string(raw), "MemTotal: %d kB", &kib); err != nil {
		return "memory unknown"
	}
	return fmt.Sprintf("%.0f GiB of memory", float64(kib)/(1<<20))
}
