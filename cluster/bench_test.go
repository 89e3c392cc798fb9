package cluster_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster"
	"github.com/debvisor/debvisor/fsm"
)

// startForBench makes three voters outside a *testing.T.
func startForBench(b *testing.B) []*cluster.Server {
	b.Helper()
	var nodes []*cluster.Server
	for i := 1; i <= 3; i++ {
		l, err := newListener()
		if err != nil {
			b.Fatal(err)
		}
		cfg := cluster.Config{DataDir: b.TempDir(), Listener: l, Listen: l.Addr().String()}
		name := fmt.Sprint("node", i)
		if i == 1 {
			_, err = cluster.Init(cfg, cluster.InitOptions{Name: name, Region: "here", Key: adminKey()})
		} else {
			e, text, _ := nodes[0].NewToken(0, false)
			if _, err = nodes[0].Propose(b.Context(), e); err == nil {
				_, err = cluster.Join(b.Context(), cfg, cluster.JoinOptions{Token: text + "@" + nodes[0].Self().Address, Name: name})
			}
		}
		if err != nil {
			b.Fatal(err)
		}
		s, err := cluster.Open(cfg)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_ = s.Shutdown(ctx)
		})
		if err := s.WaitReady(b.Context()); err != nil {
			b.Fatal(err)
		}
		for deadline := time.Now().Add(patience); i > 1; {
			if err = nodes[0].AddVoter(b.Context(), s.Self()); err == nil {
				break
			}
			if time.Now().After(deadline) {
				b.Fatal(err)
			}
			<-time.After(20 * time.Millisecond)
		}
		nodes = append(nodes, s)
	}
	return nodes
}

// parallel spreads b.N calls over clients.
func parallel(b *testing.B, clients int, call func(i int64) error) {
	b.Helper()
	var next atomic.Int64
	var all sync.WaitGroup
	b.ResetTimer()
	for range clients {
		all.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if err := call(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

func BenchmarkPropose(b *testing.B) {
	for _, where := range []string{"leader", "follower"} {
		for _, clients := range []int{1, 16, 64, 256} {
			b.Run(fmt.Sprintf("%s/%d", where, clients), func(b *testing.B) {
				nodes := startForBench(b)
				n := nodes[0]
				if where == "follower" {
					n = nodes[1]
				}
				parallel(b, clients, func(i int64) error {
					e, err := fsm.Tenants.Put(&api.Tenant{Meta: api.Meta{Name: fmt.Sprint("t", i)}})
					if err != nil {
						return err
					}
					out, err := n.Propose(b.Context(), e)
					if err == nil && out.Err != nil {
						err = out.Err
					}
					return err
				})
			})
		}
	}
}

func BenchmarkReadIndex(b *testing.B) {
	for _, clients := range []int{1, 64} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			nodes := startForBench(b)
			parallel(b, clients, func(int64) error {
				_, err := nodes[0].ReadIndex(b.Context())
				return err
			})
		})
	}
}
