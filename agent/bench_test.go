package agent_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// BenchmarkIdle measures what 1,000 VMs cost in which nothing changes: share
// of one core, entries a second apart from renewals. One operation is a
// second; the interval of renewals is the real one.
func BenchmarkIdle(b *testing.B) {
	h := one(b, func(h *host) { h.timings.Renew = 0 })
	const guests = 1000
	for n := range guests {
		v := vm(fmt.Sprintf("web-%d", n))
		v.Disks = nil
		h.create(v)
	}
	h.until("all run", func(v *fsm.View) bool {
		running := 0
		for i := range fsm.Instances.All(v) {
			if i.State == api.InstanceRunning {
				running++
			}
		}
		return running == guests
	})
	before, cpu := h.log.proposed.Load(), processTime(b)
	b.ResetTimer()
	timer := time.NewTimer(time.Duration(b.N) * time.Second)
	<-timer.C
	b.StopTimer()
	b.ReportMetric((processTime(b)-cpu).Seconds()/float64(b.N)*100, "%core")
	b.ReportMetric(float64(h.log.proposed.Load()-before)/float64(b.N), "entries/s")
}

// BenchmarkStart measures a VM from its creation until it is reported to run.
func BenchmarkStart(b *testing.B) {
	h := one(b)
	for n := 0; b.Loop(); n++ {
		v := vm(fmt.Sprintf("web-%d", n))
		v.Disks = nil
		h.run(v)
	}
}

func processTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
