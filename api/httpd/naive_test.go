package httpd_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"unicode/utf8"

	"github.com/debvisor/debvisor/api/httpd"
)

// naive is what CheckJSON must agree with: decode, then look at every object
// again by itself.
func naive(raw []byte) bool {
	return utf8.Valid(raw) && json.Valid(raw) && bytes.HasPrefix(bytes.TrimLeft(raw, " \t\r\n"), []byte("{")) && plain(raw, 1)
}

// plain reports whether no object inside has a key twice or in capitals, and
// nothing is nested too deep.
func plain(raw json.RawMessage, depth int) bool {
	raw = bytes.TrimSpace(raw)
	if raw[0] != '{' && raw[0] != '[' {
		return true
	}
	if depth > httpd.JSONDepthMax {
		return false
	}
	if raw[0] == '[' {
		var list []json.RawMessage
		if json.Unmarshal(raw, &list) != nil {
			return false
		}
		for _, e := range list {
			if !plain(e, depth+1) {
				return false
			}
		}
		return true
	}
	keys, values := members(raw)
	seen := map[string]bool{}
	for i, k := range keys {
		if seen[k] || k != strings.ToLower(k) || !plain(values[i], depth+1) {
			return false
		}
		seen[k] = true
	}
	return true
}

// members are the keys and values of an object, duplicates included.
func members(raw json.RawMessage) (keys []string, values []json.RawMessage) {
	d := json.NewDecoder(bytes.NewReader(raw))
	_, _ = d.Token()
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return keys, values
		}
		var value json.RawMessage
		if d.Decode(&value) != nil {
			return keys, values
		}
		keys, values = append(keys, key.(string)), append(values, value)
	}
	return keys, values
}
