package api_test

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
)

// marshalled is the definition of the canonical encoding.
func marshalled(r api.Record) ([]byte, error) {
	r.Hash = api.Hash{}
	return json.Marshal(&r)
}

func checkCanonical(t *testing.T, r api.Record) {
	t.Helper()
	want, err := marshalled(r)
	if err != nil {
		return // Canonical panics: Apply makes no such record
	}
	if got := r.Canonical(); !bytes.Equal(got, want) {
		t.Fatalf("got\n%s\nwant\n%s", got, want)
	}
}

func TestCanonicalIsTheJSONOfTheRecord(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	for _, r := range []api.Record{
		{},
		{Index: 1<<64 - 1, Term: 7, Time: at, Op: "vm.put", By: "root", RequestID: "r1", Hash: api.Hash{1}},
		{Time: at.In(time.FixedZone("there", 3600)), Code: api.CodeConflict, Message: "a \"quoted\" <b>\n line\u2028 \xff", Digest: "00"},
		{Changes: []api.Change{}},
		{Changes: []api.Change{{Kind: "vm", Key: "a/b", Before: json.RawMessage(`{}`)}, {Kind: "vm", Key: "a&b", After: json.RawMessage(`{"a":" x  y ","b":[1,2]}`)}}},
		{Changes: []api.Change{{Before: json.RawMessage(`{ "a" : 1 }`)}, {After: json.RawMessage(`{"a":"<>& ` + "\u2028" + `"}`)}}},
		{Changes: []api.Change{{Before: json.RawMessage(`{"a":"\\"}`), After: json.RawMessage(`{"a":"\""}`)}, {After: json.RawMessage(`null`)}}},
		{Changes: []api.Change{{After: json.RawMessage(`{"a":"ü€"}`)}, {After: json.RawMessage(`{"a\u0020b":1}`)}}},
	} {
		checkCanonical(t, r)
	}
}

func FuzzCanonical(f *testing.F) {
	f.Add(uint64(1), int64(0), "vm.put", "root", "why not", "a/b", []byte(`{"a":1}`), []byte(`{"b":"c d"}`))
	f.Add(uint64(0), int64(-1), "", "\x00", "<&>", "\u2029", []byte(`{"a":"\\"}`), []byte("{\"a\":\t1}"))
	f.Add(uint64(9), int64(1e18), "\"", "\\", "\xff", "ü", []byte(nil), []byte(`[ ]`))
	f.Fuzz(func(t *testing.T, index uint64, ns int64, op, by, message, key string, before, after []byte) {
		checkCanonical(t, api.Record{Index: index, Term: index / 2, Time: time.Unix(0, ns).UTC(), Op: op, By: by, RequestID: key, Code: api.Code(by), Message: message,
			Digest: op, Changes: []api.Change{{Kind: op, Key: key, Before: before, After: after}, {Kind: op, Key: by, After: before}}})
	})
}

func BenchmarkCanonical(b *testing.B) {
	row := json.RawMessage(`{"id":"` + string(bytes.Repeat([]byte("x"), 500)) + `","name":"web","cpus":2}`)
	r := api.Record{Index: 123456, Term: 3, Time: time.Now().UTC(), Op: "vm.put", By: "root", RequestID: "r1",
		Changes: []api.Change{{Kind: "vm", Key: "default/web", Before: row, After: row}}}
	for b.Loop() {
		r.Canonical()
	}
}
