package httpd

import "bytes"

// Limits of what plain looks at; anything beyond is for the full check.
const (
	plainDepthMax = 8  // nesting
	plainKeysMax  = 32 // keys of all objects that a key is inside of
)

// plain reports whether a valid JSON text is one that the full check passes
// for sure: an object, not nested deeply, whose keys are a-z, 0-9 and '_' and
// differ within each object. It decides nothing else: what it does not know is
// checked, and refused, in the one place that does. Nearly all bodies are
// plain, and for those it is fifty times as fast.
func plain(raw []byte) bool {
	var (
		keys  [plainKeysMax][]byte
		first [plainDepthMax]int // position in keys of the first one of each object
		array [plainDepthMax]bool
	)
	depth, count, key := 0, 0, false // key: a string now would be one
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; c {
		case '{', '[':
			if depth == plainDepthMax || depth == 0 && c == '[' {
				return false
			}
			first[depth], array[depth], key = count, c == '[', c == '{'
			depth++
		case '}', ']':
			depth--
			count, key = first[depth], false
		case ',':
			key = !array[depth-1]
		case '"':
			text, ok := quoted(raw[i+1:])
			if !ok || depth == 0 {
				return false
			}
			i += len(text) + 1
			if !key {
				continue
			}
			if count == plainKeysMax || !plainKey(text) || contains(keys[first[depth-1]:count], text) {
				return false
			}
			keys[count], key = text, false
			count++
		}
	}
	return count == 0 && depth == 0 && bytes.IndexByte(raw, '{') >= 0
}

// quoted is the text up to the closing quote; ok is false when it has escapes.
func quoted(raw []byte) (text []byte, ok bool) {
	end := bytes.IndexByte(raw, '"')
	if end < 0 || bytes.IndexByte(raw[:end], '\\') >= 0 {
		return nil, false
	}
	return raw[:end], true
}

func plainKey(key []byte) bool {
	for _, c := range key {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return true
}

func contains(keys [][]byte, key []byte) bool {
	for _, k := range keys {
		if bytes.Equal(k, key) {
			return true
		}
	}
	return false
}
