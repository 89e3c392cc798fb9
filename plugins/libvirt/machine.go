package libvirt

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

const (
	hostRoot    = "/"
	tickPerUnit = 10 * time.Millisecond // of /proc/stat: USER_HZ is 100 on every architecture that Debian has
	sectorBytes = 512                   // of /proc/diskstats, whatever the disk's own are
)

// readMachine reads the counters of the machine below root.
func readMachine(root string) (plugins.NodeCounters, error) {
	files := os.DirFS(root)
	var n plugins.NodeCounters
	var errs []error
	for name, parse := range map[string]func(*plugins.NodeCounters, []string){
		"proc/stat": parseStat, "proc/meminfo": parseMemory, "proc/loadavg": parseLoad,
		"proc/diskstats": func(n *plugins.NodeCounters, line []string) { parseDisk(n, line, wholeDisk(files)) },
		"proc/net/dev":   func(n *plugins.NodeCounters, line []string) { parseInterface(n, line, realInterface(files)) },
	} {
		raw, err := fs.ReadFile(files, name)
		if err != nil {
			errs = append(errs, fmt.Errorf("read counters of the machine: %w", err))
			continue
		}
		for line := range bytes.Lines(raw) {
			parse(&n, strings.Fields(string(line)))
		}
	}
	return n, errors.Join(errs...)
}

// wholeDisk reports whether a block device is a whole real disk: partitions,
// and devices that are made of others, would count everything twice.
func wholeDisk(files fs.FS) func(name string) bool {
	return func(name string) bool {
		_, err := fs.Stat(files, "sys/block/"+name+"/device")
		return err == nil
	}
}

// realInterface is the same for network interfaces: bridges and taps only pass on
// what goes in and out of real ones, or stays inside.
func realInterface(files fs.FS) func(name string) bool {
	return func(name string) bool {
		_, err := fs.Stat(files, "sys/class/net/"+name+"/device")
		return err == nil
	}
}

func field(line []string, i int) int64 {
	if i >= len(line) {
		return 0
	}
	v, err := strconv.ParseInt(line[i], 10, 64)
	if err != nil || v < 0 {
		return 0
	}
	return v
}

// parseStat reads a line of /proc/stat (proc(5)). Guest time is part of user
// time already.
func parseStat(n *plugins.NodeCounters, line []string) {
	if len(line) < 5 || !strings.HasPrefix(line[0], "cpu") {
		return
	}
	if line[0] != "cpu" {
		n.CPUs++
		return
	}
	const idle, ioWait, last = 4, 5, 8 // last: stolen
	for i := 1; i <= last; i++ {
		ticks := time.Duration(field(line, i)) * tickPerUnit
		n.CPUTotal += ticks
		if i != idle && i != ioWait {
			n.CPUBusy += ticks
		}
	}
}

func parseMemory(n *plugins.NodeCounters, line []string) {
	if len(line) < 2 {
		return
	}
	switch line[0] {
	case "MemTotal:":
		n.MemoryBytes = field(line, 1) * api.KiB
	case "MemAvailable:":
		n.MemoryAvailableBytes = field(line, 1) * api.KiB
	}
}

func parseLoad(n *plugins.NodeCounters, line []string) {
	if len(line) > 0 {
		n.Load, _ = strconv.ParseFloat(line[0], 64)
	}
}

// parseDisk reads a line of /proc/diskstats (iostats.rst of the kernel).
func parseDisk(n *plugins.NodeCounters, line []string, whole func(string) bool) {
	if len(line) < 11 || !whole(line[2]) {
		return
	}
	n.Disk.Reads += field(line, 3)
	n.Disk.ReadBytes += field(line, 5) * sectorBytes
	n.Disk.ReadTime += time.Duration(field(line, 6)) * time.Millisecond
	n.Disk.Writes += field(line, 7)
	n.Disk.WriteBytes += field(line, 9) * sectorBytes
	n.Disk.WriteTime += time.Duration(field(line, 10)) * time.Millisecond
}

// parseInterface reads a line of /proc/net/dev.
func parseInterface(n *plugins.NodeCounters, line []string, real func(string) bool) {
	if len(line) < 13 {
		return
	}
	name, ok := strings.CutSuffix(line[0], ":")
	if !ok || !real(name) {
		return
	}
	n.NIC.ReceivedBytes += field(line, 1)
	n.NIC.ReceivedPackets += field(line, 2)
	n.NIC.ReceivedDropped += field(line, 4)
	n.NIC.SentBytes += field(line, 9)
	n.NIC.SentPackets += field(line, 10)
	n.NIC.SentDropped += field(line, 12)
}
