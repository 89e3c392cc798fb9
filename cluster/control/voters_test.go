package control_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/control"
	"github.com/debvisor/debvisor/fsm"
)

const long = time.Hour

// member reads "id zone flags": L leader, v voter, d dead, n new (healthy for a
// second only), u unwell for a second, w witness, f fenced, - no row, s no server.
func member(s string) control.Member {
	f := strings.Fields(s + " . .")
	m := control.Member{ID: f[0], Zone: f[1], Row: true, Server: true, Live: true, Healthy: true, For: long, Joined: uint64(f[0][0])}
	for _, c := range f[2] {
		switch c {
		case 'L':
			m.Leader, m.Voter = true, true
		case 'v':
			m.Voter = true
		case 'd':
			m.Healthy = false
		case 'n':
			m.For = time.Second
		case 'u':
			m.Healthy, m.For = false, time.Second
		case 'w':
			m.Witness = true
		case 'f':
			m.Live = false
		case '-':
			m.Row = false
		case 's':
			m.Server, m.Healthy = false, false
		}
	}
	return m
}

func members(list ...string) (out []control.Member) {
	for _, s := range list {
		out = append(out, member(s))
	}
	return out
}

func TestVotersAreChosenAcrossZones(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		members []control.Member
		wanted  int
		want    string
	}{
		{"one node", members("a . L"), 7, "a"},
		{"two nodes tolerate no more than one", members("a . L", "b"), 7, "a"},
		{"a witness counts", members("a . L", "b", "w . w"), 7, "abw"},
		{"three", members("a . L", "b", "c"), 7, "abc"},
		{"four are three", members("a . L", "b", "c", "d"), 7, "abc"},
		{"wanted bounds", members("a . L", "b", "c", "d", "e"), 3, "abc"},
		{"at most seven", members("a . L", "b", "c", "d", "e", "f", "g", "h", "i"), 9, "abcdefg"},
		{"one in each zone", members("a x L", "b x v", "c x v", "d y", "e z"), 3, "ade"},
		{"zones before seniority", members("a x", "b x", "c y L", "d y", "e z"), 3, "ace"},
		{"whoever votes stays", members("a . L", "b", "c . v", "d . v"), 3, "acd"},
		{"live before fenced", members("a . L", "b . f", "c", "d"), 3, "acd"},
		{"a witness before hosts", members("a . L", "b", "c", "w . w"), 3, "abw"},
		{"a dead voter is replaced", members("a . L", "b . vd", "c . v", "d"), 3, "acd"},
		{"not before a minute", members("a . L", "b . vu", "c . v", "d"), 3, "abc"},
		{"a dead voter stays when nobody can replace it", members("a . L", "b . vd", "c . v", "d . d"), 3, "abc"},
		{"a new node waits", members("a . L", "b", "c . n"), 3, "a"},
		{"nobody leaves while another may come", members("a . L", "b . v", "c . n"), 3, "ab"},
		{"but when it never comes", members("a . L", "b . v", "c . d"), 3, "a"},
		{"no row, no vote", members("a . L", "b . v-", "c . v", "d"), 3, "acd"},
		{"no server, no vote", members("a . L", "b . v", "c . v", "d . s"), 5, "abc"},
		{"the leader stays whatever the zones say", members("a x v", "b y v", "c x L", "d z v"), 3, "bcd"},
	} {
		got := strings.Join(slices.Sorted(maps.Keys(control.Voters(c.members, c.wanted))), "")
		if got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

func TestNextStepIsSafe(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		members []control.Member
		chosen  string
		kind    control.StepKind
		id      string
	}{
		{"nothing to do", members("a . L", "b . v", "c . v"), "abc", control.StepNone, ""},
		{"promote first", members("a . L", "b . v", "c . v", "d"), "acd", control.StepPromote, "d"},
		{"then demote", members("a . L", "b . v", "c . v", "d . v"), "acd", control.StepDemote, "b"},
		{"never the leader", members("a . L", "b . v", "c . v"), "bc", control.StepNone, ""},
		{"with seven voters demote first", members("a . L", "b . v", "c . v", "d . v", "e . v", "f . v", "g . v", "h"), "abcdefh", control.StepDemote, "g"},
		{"a removed voter does not count, even while it answers", members("a . L", "b . v", "c . v-n"), "a", control.StepNone, ""},
		{"it goes first", members("a . L", "b . v", "c . v-"), "a", control.StepRemove, "c"},
		{"a promotion that would lose the quorum waits", members("a . L", "b . vd", "c . vd", "d"), "acd", control.StepNone, ""},
		{"a demotion that would lose the quorum waits", members("a . L", "b . v", "c . vd", "d . vd"), "acd", control.StepNone, ""},
		{"another that would not goes first", members("a . L", "b . v", "c . vd"), "a", control.StepDemote, "c"},
		{"the dead one goes first", members("a . L", "b . vd", "c . v"), "ac", control.StepDemote, "b"},
		{"a server without a row goes", members("a . L", "b . v", "c . v-", "d"), "abd", control.StepRemove, "c"},
		{"but not at once", members("a . L", "b . v", "c . v", "d . -n"), "abc", control.StepNone, ""},
		{"a member without a server is added", members("a . L", "b . s"), "a", control.StepAdd, "b"},
		{"an unhealthy node is not promoted", members("a . L", "b . u", "c . v"), "abc", control.StepNone, ""},
	} {
		chosen := map[string]bool{}
		for _, id := range strings.Split(c.chosen, "") {
			chosen[id] = true
		}
		if got := control.NextStep(c.members, chosen); got.Kind != c.kind || got.ID != c.id {
			t.Errorf("%s: got %v %s, want %v %s", c.name, got.Kind, got.ID, c.kind, c.id)
		}
	}
}

// TestMembershipSettlesByQuorumSafeSteps follows random clusters to their end.
func TestMembershipSettlesByQuorumSafeSteps(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		list := randomMembers(rt)
		wanted := rapid.SampledFrom([]int{1, 3, 5, 7}).Draw(rt, "wanted")
		for range 50 {
			chosen := control.Voters(list, wanted)
			coming := func(m control.Member) bool { return m.Row && m.Server && !m.Voter && m.For < time.Minute }
			if len(chosen)%2 == 0 && !slices.ContainsFunc(list, coming) {
				rt.Fatalf("an even number is chosen: %v of %+v", chosen, list)
			}
			if len(chosen) > max(wanted, 1) || !chosen["m0"] {
				rt.Fatalf("chose %v, wanted %d with the leader m0", chosen, wanted)
			}
			before := quorum(list)
			step := control.NextStep(list, chosen)
			if step.Kind == control.StepNone {
				checkSettled(rt, list, chosen)
				return
			}
			list = carriedOut(list, step)
			if after := quorum(list); step.Kind != control.StepAdd && !after || before && !after {
				rt.Fatalf("no quorum after %v %s: %+v", step.Kind, step.ID, list)
			}
			if n := voterCount(list); n > api.VotersMax {
				rt.Fatalf("%d voters after %v", n, step)
			}
		}
		rt.Fatalf("never settles: %+v", list)
	})
}

func randomMembers(rt *rapid.T) (list []control.Member) {
	voters := 1
	for i := range rapid.IntRange(1, 12).Draw(rt, "members") {
		m := control.Member{ID: fmt.Sprintf("m%d", i), Row: true, Server: true, Live: true, Healthy: true, For: long, Joined: uint64(i + 1),
			Zone: rapid.SampledFrom([]string{"", "x", "y", "z"}).Draw(rt, "zone")}
		if i == 0 {
			m.Leader, m.Voter = true, true
		} else {
			m.Server = rapid.IntRange(0, 5).Draw(rt, "server") > 0
			m.Row = !m.Server || rapid.IntRange(0, 5).Draw(rt, "row") > 0
			m.Voter = m.Server && voters < api.VotersMax && rapid.Bool().Draw(rt, "voter")
			m.Live = rapid.Bool().Draw(rt, "live")
			m.Healthy = m.Server && rapid.IntRange(0, 3).Draw(rt, "healthy") > 0
			m.For = rapid.SampledFrom([]time.Duration{0, 15 * time.Second, long}).Draw(rt, "for")
		}
		if m.Voter && i > 0 {
			voters++
		}
		list = append(list, m)
	}
	return list
}

func carriedOut(list []control.Member, step control.Step) []control.Member {
	list = slices.Clone(list)
	for i := range list {
		m := &list[i]
		if m.ID != step.ID {
			continue
		}
		switch step.Kind {
		case control.StepPromote:
			m.Voter = true
		case control.StepDemote:
			m.Voter = false
		case control.StepAdd:
			m.Server = true
		case control.StepRemove:
			return slices.Delete(list, i, i+1)
		}
	}
	return list
}

func voterCount(list []control.Member) (n int) {
	for _, m := range list {
		if m.Server && m.Voter {
			n++
		}
	}
	return n
}

func quorum(list []control.Member) bool {
	healthy := 0
	for _, m := range list {
		if m.Server && m.Voter && m.Healthy {
			healthy++
		}
	}
	return healthy > voterCount(list)/2
}

// checkSettled: where every server is well, the voters are those chosen, and no
// zone has two more than another that has servers to spare.
func checkSettled(rt *rapid.T, list []control.Member, chosen map[string]bool) {
	if slices.ContainsFunc(list, func(m control.Member) bool { return !m.Server || !m.Row || !m.Healthy || m.For < long }) {
		return
	}
	in, spare := map[string]int{}, map[string]int{}
	for _, m := range list {
		if m.Voter != chosen[m.ID] {
			rt.Fatalf("%s votes: %v, chosen: %v", m.ID, m.Voter, chosen[m.ID])
		}
		if m.Voter {
			in[m.Zone]++
		} else {
			spare[m.Zone]++
		}
	}
	for zone := range spare {
		for other, n := range in {
			if n > in[zone]+1 {
				rt.Fatalf("zone %q has %d voters, zone %q only %d of more: %+v", other, n, zone, in[zone], list)
			}
		}
	}
}

func TestMembershipFollowsTheNodes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, raft := newCluster(t), newRaft()
		c.register(1, 1)
		for n, zone := range map[int]string{2: "x", 3: "x", 4: "y"} {
			c.join(n, zone, false)
			c.register(n, 1)
		}
		l := lead(t, c, newControl(t, c, func(conf *control.Config) { conf.Membership = raft }), 2)
		defer l.stop()
		l.pass(9 * time.Second)
		if n := len(raft.voters()); n != 1 {
			t.Fatalf("%d voters before anybody was stable", n)
		}
		l.pass(30 * time.Second)
		voters := raft.voters()
		if len(voters) != 3 || !voters[nodeID(1)] || !voters[nodeID(4)] {
			t.Fatalf("got %v, want one in each zone", voters)
		}
		for n := range fsm.Nodes.All(c.f.Read()) {
			if n.Voter != voters[n.ID] {
				t.Errorf("the row of %s says %v", n.Name, n.Voter)
			}
		}
		raft.mu.Lock()
		raft.down[nodeID(4)] = true
		raft.mu.Unlock()
		l.pass(55*time.Second, 4)
		if !raft.voters()[nodeID(4)] {
			t.Fatal("replaced before a minute")
		}
		l.pass(15*time.Second, 4)
		voters = raft.voters()
		if len(voters) != 3 || voters[nodeID(4)] {
			t.Fatalf("got %v, want the dead voter replaced", voters)
		}
		c.do(fsm.RemoveNode.Entry(fsm.NodeRemove{Node: "node4", Force: true}))
		l.pass(15 * time.Second)
		if servers, _ := raft.Configuration(); len(servers) != 3 {
			t.Fatalf("the removed node is still a server: %v", servers)
		}
	})
}
