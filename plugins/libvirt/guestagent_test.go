package libvirt_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins/libvirt"
)

// TestMain lets the test's program play a guard, or an agent that freezes a
// guest and is killed.
func TestMain(m *testing.M) {
	if len(os.Args) < 5 || os.Args[1] != "guard" && os.Args[1] != "freeze" {
		os.Exit(m.Run())
	}
	if err := play(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func play(role string, args []string) error {
	if role == "guard" {
		limit, err := time.ParseDuration(args[2])
		if err != nil {
			return err
		}
		return libvirt.Guard(context.Background(), os.Stdin, os.Stdout, args[0], args[1], limit)
	}
	h, err := libvirt.Open(libvirt.Config{Socket: args[0], ClusterID: args[2], StateDir: args[3], Guard: []string{os.Args[0], "guard"}})
	if err != nil {
		return err
	}
	n, err := h.FreezeGuest(context.Background(), args[1], 10*time.Minute)
	if err != nil {
		return err
	}
	fmt.Println("frozen", n)
	select {} // until it is killed
}

// format puts an empty file system into a qcow2 file.
func format(t testing.TB, path string) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	for _, args := range [][]string{{"/sbin/mke2fs", "-q", "-t", "ext4", raw, "8m"}, {"qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path}} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
}

func TestGuestsAgentIsAsked(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.config.Guard = []string{os.Args[0], "guard"}
	opened := m.open(t)
	defer func() { _ = opened.Close() }()
	h := opened.(*libvirt.Hypervisor)
	spec := m.spec(t)
	if _, err := h.GuestInfo(t.Context(), spec.ID); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("a guest that is not there: %v", err)
	}
	m.blankDisks(t, &spec, "root")
	format(t, spec.Disks[0].Source.Path)
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	awaitTick(t, h, spec.ID)
	if got := typed(t, h, spec.ID, "mount -t ext4 /dev/vda /mnt 2>&1 && echo mounted"); got != "mounted" {
		t.Fatalf("the guest's disk is not mounted: %q", got)
	}
	var info api.GuestInfo
	for deadline := time.Now().Add(bootTimeout); ; {
		var err error
		if info, err = h.GuestInfo(t.Context(), spec.ID); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the agent does not answer: %v: %s", err, typed(t, h, spec.ID, "cat /tmp/qemu-ga.log; ls /sys/class/virtio-ports"))
		}
		awaitTick(t, h, spec.ID)
	}
	t.Logf("the guest says %+v", info)
	if info.Kernel == "" || info.Frozen || len(info.Filesystems) == 0 || time.Since(info.Time).Abs() > time.Hour {
		t.Errorf("the guest says %+v", info)
	}
	checkFreezing(t, m, h, spec.ID)
	checkRefusals(t, h, spec.ID)
}

// checkFreezing freezes the guest and thaws it: by hand, by the limit, and by
// the death of the agent.
func checkFreezing(t *testing.T, m *machine, h *libvirt.Hypervisor, id string) {
	t.Helper()
	write := func() string { return typed(t, h, id, "date >/mnt/now; sync; echo written") }

	if n, err := h.FreezeGuest(t.Context(), id, 10*time.Minute); err != nil || n != 1 {
		t.Fatalf("freeze: %d, %v", n, err)
	}
	if _, err := h.FreezeGuest(t.Context(), id, time.Minute); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("a second freeze: %v", err)
	}
	if n, err := h.ThawGuest(t.Context(), id); err != nil || n != 1 {
		t.Errorf("thaw: %d, %v", n, err)
	}
	if n, err := h.ThawGuest(t.Context(), id); err != nil || n != 0 {
		t.Errorf("a second thaw: %d, %v", n, err)
	}

	if n, err := h.FreezeGuest(t.Context(), id, time.Second); err != nil || n != 1 {
		t.Fatalf("freeze for a second: %d, %v", n, err)
	}
	if got := write(); got != "written" { // hangs until the guard has thawed it
		t.Errorf("after the limit: %q", got)
	}

	agent := exec.Command(os.Args[0], "freeze", m.config.Socket, id, m.config.ClusterID, m.config.StateDir)
	out, err := agent.StdoutPipe()
	if err == nil {
		err = agent.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "frozen 1\n" {
		t.Errorf("the agent that is to die says %q: %v", line, err)
	}
	_ = agent.Process.Kill()
	_ = agent.Wait()
	if got := write(); got != "written" {
		t.Errorf("after the agent was killed: %q", got)
	}

}

func checkRefusals(t *testing.T, h *libvirt.Hypervisor, id string) {
	t.Helper()
	const secret = "correct-horse-7"
	// The tiny guest has no program that sets passwords, nor a hardware clock's.
	for _, account := range []string{"root", "nobody-here"} {
		err := h.SetGuestPassword(t.Context(), id, api.GuestPasswordSet{Account: account, Password: secret})
		if api.CodeOf(err) != api.CodeInvalid || strings.Contains(err.Error(), secret) {
			t.Errorf("the password of %s: %v", account, err)
		}
	}
	if err := h.SetGuestTime(t.Context(), id); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("set time: %v", err)
	}
}
