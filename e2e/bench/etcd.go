package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
)

// etcd is three processes of Debian's etcd and a connection to each.
type etcd struct {
	processes []*exec.Cmd
	conns     []*grpc.ClientConn
}

const etcdConnections = 16 // gRPC connections in all, so that none is the limit

// wireCodec sends messages that are encoded already. The two calls used here
// have too few fields to bring in etcd's client for them.
type wireCodec struct{}

func (wireCodec) Name() string                  { return "proto" }
func (wireCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (wireCodec) Unmarshal(raw []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), raw...)
	return nil
}

func startEtcd(ctx context.Context, dir string) (*etcd, error) {
	e := &etcd{}
	binary, err := exec.LookPath("etcd")
	if err != nil {
		return nil, nil // not installed: figures without it
	}
	var clients, peers []string
	var initial []string
	for i := range 3 {
		c, err := freePort()
		if err != nil {
			return nil, err
		}
		p, err := freePort()
		if err != nil {
			return nil, err
		}
		clients = append(clients, fmt.Sprintf("http://127.0.0.1:%d", c))
		peers = append(peers, fmt.Sprintf("http://127.0.0.1:%d", p))
		initial = append(initial, fmt.Sprintf("e%d=%s", i+1, peers[i]))
	}
	for i := range 3 {
		name := fmt.Sprintf("e%d", i+1)
		cmd := exec.Command(binary, "--name", name, "--data-dir", filepath.Join(dir, name), "--log-level", "error", "--logger", "zap",
			"--listen-client-urls", clients[i], "--advertise-client-urls", clients[i],
			"--listen-peer-urls", peers[i], "--initial-advertise-peer-urls", peers[i],
			"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-state", "new", "--quota-backend-bytes", "8589934592")
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "ETCD_UNSUPPORTED_ARCH=" + os.Getenv("ETCD_UNSUPPORTED_ARCH")}
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			return e, err
		}
		e.processes = append(e.processes, cmd)
	}
	for i := range etcdConnections {
		conn, err := grpc.NewClient(strings.TrimPrefix(clients[i%3], "http://"),
			grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodec(wireCodec{})))
		if err != nil {
			return e, err
		}
		e.conns = append(e.conns, conn)
	}
	for {
		if err := e.put(ctx, 0, 0); err == nil {
			return e, nil
		}
		select {
		case <-ctx.Done():
			return e, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func etcdKey(n uint64) []byte { return fmt.Appendf(nil, "/bench/%012d", n) }

// put is etcdserverpb.KV/Put with key (1) and value (2).
func (e *etcd) put(ctx context.Context, worker int, n uint64) error {
	req := protowire.AppendTag(nil, 1, protowire.BytesType)
	req = protowire.AppendBytes(req, etcdKey(n))
	req = protowire.AppendTag(req, 2, protowire.BytesType)
	req = protowire.AppendBytes(req, make([]byte, entryBytes))
	var answer []byte
	return e.conns[worker%len(e.conns)].Invoke(ctx, "/etcdserverpb.KV/Put", &req, &answer)
}

// get is etcdserverpb.KV/Range with key (1) and serializable (7).
func (e *etcd) get(stale bool) func(context.Context, int, uint64) error {
	return func(ctx context.Context, worker int, _ uint64) error {
		req := protowire.AppendTag(nil, 1, protowire.BytesType)
		req = protowire.AppendBytes(req, etcdKey(0))
		if stale {
			req = protowire.AppendTag(req, 7, protowire.VarintType)
			req = protowire.AppendVarint(req, 1)
		}
		var answer []byte
		return e.conns[worker%len(e.conns)].Invoke(ctx, "/etcdserverpb.KV/Range", &req, &answer)
	}
}

func (e *etcd) close() {
	if e == nil {
		return
	}
	for _, c := range e.conns {
		_ = c.Close()
	}
	for _, p := range e.processes {
		_ = p.Process.Kill()
		_ = p.Wait()
	}
}
