// Package lab sets up real counterparts on one machine: isolated libvirt
// daemons, each of which believes to be alone on a host, and a tiny Linux
// guest for them. Tests and the demo use it. It needs root and the Debian
// packages of packages.txt.
package lab

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
)

// Limits of a lab.
const (
	nodesMax     = 16
	startTimeout = 60 * time.Second // the first daemon probes QEMU, which takes seconds
	stopTimeout  = 20 * time.Second
)

//go:embed node.sh
var nodeScript string

// Config says where a lab lives.
type Config struct {
	Dir      string    // of all its files; empty: a new temporary directory that Close removes
	CacheDir string    // of what is costly to find out again; empty: debvisor-lab in the user's cache directory
	Log      io.Writer // what the daemons print; nil: files in Dir only
}

// Lab is a set of running libvirt daemons.
type Lab struct {
	dir, cache string
	ownDir     bool
	nodes      []*Node
}

// Node is one libvirt daemon with its own network, mount, host name and
// process namespace. Whatever it starts ends with it.
type Node struct {
	Name   string
	Socket string // path of its unix socket, usable from outside
	Dir    string // its files

	mu    sync.Mutex // guards the script's pipes
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Reader
}

// Unavailable tells why labs cannot run here, or nil.
func Unavailable() error {
	if os.Geteuid() != 0 {
		return errors.New("a libvirt lab needs root")
	}
	for _, program := range []string{"libvirtd", "qemu-system-x86_64", "qemu-img", "bash", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("a libvirt lab needs %s: install the packages of e2e/lab/packages.txt", program)
		}
	}
	return nil
}

// Start starts n daemons and waits until each answers. After an error nothing
// is left running. The caller ends the lab with Close; when the caller's
// process dies, the daemons and their guests end too.
func Start(ctx context.Context, n int, config Config) (*Lab, error) {
	if err := Unavailable(); err != nil {
		return nil, err
	}
	if n < 1 || n > nodesMax {
		return nil, fmt.Errorf("a lab of %d nodes: 1 to %d are possible", n, nodesMax)
	}
	l := &Lab{dir: config.Dir, cache: config.CacheDir, ownDir: config.Dir == ""}
	if err := l.makeDirs(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout*time.Duration(n))
	defer cancel()
	for i := range n {
		node, err := l.startNode(ctx, i, config.Log)
		if node != nil {
			l.nodes = append(l.nodes, node)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("start libvirt node %d: %w", i+1, err), l.Close())
		}
	}
	return l, nil
}

func (l *Lab) makeDirs() (err error) {
	if l.cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			base = os.TempDir()
		}
		l.cache = filepath.Join(base, "debvisor-lab")
	}
	if l.ownDir {
		// Short, because the path of a unix socket has at most 107 bytes.
		if l.dir, err = os.MkdirTemp("/tmp", "dvlab"); err != nil {
			return fmt.Errorf("make lab directory: %w", err)
		}
	}
	if l.dir, err = filepath.Abs(l.dir); err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(l.dir, 0o755), os.MkdirAll(l.cache, 0o755))
}

// Nodes returns the daemons in the order of their names, node1 first.
func (l *Lab) Nodes() []*Node { return l.nodes }

// Sockets returns the path of each daemon's socket.
func (l *Lab) Sockets() []string {
	var out []string
	for _, n := range l.nodes {
		out = append(out, n.Socket)
	}
	return out
}

// Dir is where the lab keeps its files. It is the same path inside the nodes.
func (l *Lab) Dir() string { return l.dir }

// Close ends every guest and daemon, waits for them, and removes the directory
// if Start made it. It may be called again.
func (l *Lab) Close() error {
	var errs []error
	for _, n := range l.nodes {
		errs = append(errs, n.stop())
	}
	if l.ownDir {
		errs = append(errs, os.RemoveAll(l.dir))
	}
	return errors.Join(errs...)
}

func (l *Lab) startNode(ctx context.Context, i int, log io.Writer) (*Node, error) {
	name := fmt.Sprintf("node%d", i+1)
	n := &Node{Name: name, Dir: filepath.Join(l.dir, name)}
	n.Socket = filepath.Join(n.Dir, "run", "libvirt-sock")
	if err := n.writeFiles(); err != nil {
		return nil, err
	}
	if err := copyProbe(l.cache, n.probeDir()); err != nil {
		return nil, err
	}
	if err := n.spawn(log); err != nil {
		return nil, err
	}
	if err := n.Restart(ctx); err != nil {
		return n, err
	}
	return n, copyProbe(n.probeDir(), l.cache)
}

func (n *Node) probeDir() string { return filepath.Join(n.Dir, "cache", "qemu", "capabilities") }

func (n *Node) writeFiles() error {
	for _, dir := range []string{"etc", "run", "lib", "log", "cache/qemu/capabilities"} {
		if err := os.MkdirAll(filepath.Join(n.Dir, dir), 0o755); err != nil {
			return fmt.Errorf("make node directory: %w", err)
		}
	}
	passwd, group, err := accounts()
	if err != nil {
		return err
	}
	files := map[string]string{
		"etc/libvirtd.conf": fmt.Sprintf("auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\nunix_sock_rw_perms = \"0700\"\nhost_uuid = %q\n"+
			"listen_tls = 0\nlisten_tcp = 0\nlog_filters = \"3:util 3:rpc\"\nlog_outputs = \"2:file:/var/log/libvirt/libvirtd.log\"\n", uuid.NewString()),
		"etc/qemu.conf": "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\nremember_owner = 0\nsecurity_driver = \"none\"\n" +
			"namespaces = [ ]\ncgroup_controllers = [ ]\nstdio_handler = \"file\"\n",
		"hosts":       "127.0.0.1 localhost " + n.Name + "\n",
		"resolv.conf": "",
		"passwd":      passwd,
		"group":       group,
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(n.Dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("write node file: %w", err)
		}
	}
	return nil
}

// accounts returns the machine's account files with the user libvirt-qemu,
// without which libvirt loads no QEMU driver. Debian makes it in a package that
// a lab does not need.
func accounts() (passwd, group string, err error) {
	p, err1 := os.ReadFile("/etc/passwd")
	g, err2 := os.ReadFile("/etc/group")
	if err := errors.Join(err1, err2); err != nil {
		return "", "", fmt.Errorf("read accounts: %w", err)
	}
	passwd, group = string(p), string(g)
	if !strings.Contains("\n"+passwd, "\nlibvirt-qemu:") {
		passwd += "libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin\n"
	}
	if !strings.Contains("\n"+group, "\nlibvirt-qemu:") {
		group += "libvirt-qemu:x:64055:\n"
	}
	return passwd, group, nil
}

// spawn starts the script that is process 1 of the node. It reads orders from
// a pipe and exits when the pipe closes; the kernel then kills what is left in
// its process namespace, so even a killed caller leaves nothing behind.
func (n *Node) spawn(log io.Writer) error {
	n.cmd = exec.Command("bash", "-c", nodeScript, "node.sh", n.Dir, n.Name)
	n.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	n.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS,
		Setpgid:    true,
	}
	logFile, err := os.OpenFile(filepath.Join(n.Dir, "log", "stdout.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("open node log: %w", err)
	}
	defer func() { _ = logFile.Close() }()
	n.cmd.Stderr = logFile
	if log != nil {
		n.cmd.Stderr = log
	}
	if n.stdin, err = n.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	n.lines = bufio.NewReader(out)
	return n.cmd.Start()
}

// order gives the script one order and waits for its answer.
func (n *Node) order(word string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, err := io.WriteString(n.stdin, word+"\n"); err != nil {
		return fmt.Errorf("%s: %w", word, err)
	}
	answer, err := n.lines.ReadString('\n')
	if err != nil {
		tail, _ := os.ReadFile(filepath.Join(n.Dir, "log", "stdout.log"))
		return fmt.Errorf("%s: the node ended: %w: %s", word, err, tail)
	}
	if answer != "ok "+word+"\n" {
		return fmt.Errorf("%s: the node answered %q", word, answer)
	}
	return nil
}

// Kill ends the daemon as kill -9 does. Its guests go on.
func (n *Node) Kill() error { return n.order("kill") }

// Pause makes the daemon hang, as SIGSTOP does, until Resume.
func (n *Node) Pause() error { return n.order("pause") }

// Resume ends what Pause did.
func (n *Node) Resume() error { return n.order("resume") }

// Restart starts the daemon if it does not run, and waits until it answers.
func (n *Node) Restart(ctx context.Context) error {
	if err := n.order("start"); err != nil {
		return err
	}
	for {
		err := ping(n.Socket)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			tail, _ := os.ReadFile(filepath.Join(n.Dir, "log", "libvirtd.log"))
			return fmt.Errorf("libvirtd does not answer: %w: %s", err, tail)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// stop ends the node and everything in it.
func (n *Node) stop() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil || n.cmd.Process == nil || n.cmd.ProcessState != nil {
		return nil
	}
	_ = n.stdin.Close()
	timer := time.AfterFunc(stopTimeout, func() { _ = n.cmd.Process.Kill() })
	defer timer.Stop()
	if err := n.cmd.Wait(); err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() > 0 {
			return fmt.Errorf("stop %s: %w", n.Name, err)
		}
	}
	return nil
}

// NetNS is the path of the node's network namespace.
func (n *Node) NetNS() string { return fmt.Sprintf("/proc/%d/ns/net", n.cmd.Process.Pid) }

// ping connects and asks for the version, which makes the daemon probe QEMU.
func ping(path string) error {
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Now().Add(startTimeout)); err != nil {
		return err
	}
	client := libvirt.NewWithDialer(dialers.NewAlreadyConnected(conn))
	if err := client.Connect(); err != nil {
		return err
	}
	_, err = client.ConnectGetCapabilities()
	return errors.Join(err, client.Disconnect())
}

// copyProbe copies what libvirt found out about QEMU. libvirt itself drops an
// entry that is out of date.
func copyProbe(from, to string) error {
	entries, err := filepath.Glob(filepath.Join(from, "*.xml"))
	if err != nil {
		return err
	}
	for _, path := range entries {
		raw, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("copy QEMU probe: %w", err)
		}
		target := filepath.Join(to, filepath.Base(path))
		temp, err := os.CreateTemp(to, ".probe-*")
		if err != nil {
			return fmt.Errorf("copy QEMU probe: %w", err)
		}
		_, err = temp.Write(raw)
		if err = errors.Join(err, temp.Close(), os.Rename(temp.Name(), target)); err != nil {
			return fmt.Errorf("copy QEMU probe: %w", err)
		}
	}
	return nil
}
