package api

import (
	"fmt"
	"strconv"
	"strings"
)

// Binary size units in bytes (IEC 80000-13).
const (
	KiB int64 = 1 << 10
	MiB int64 = 1 << 20
	GiB int64 = 1 << 30
	TiB int64 = 1 << 40
)

var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"kB", 1e3},
	{"T", TiB}, {"G", GiB}, {"M", MiB}, {"K", KiB}, {"B", 1},
}

// ParseSize reads "512MiB", "2G" (binary), "1.5GiB", "10GB" (decimal) or a
// plain number of bytes. The result is not negative.
func ParseSize(s string) (int64, error) {
	const allowed = "a number with KiB, MiB, GiB, TiB, or plain bytes"
	text, unit := strings.TrimSpace(s), int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(text, u.name); ok {
			text, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		if n < 0 || n > (1<<62)/unit {
			return 0, Invalid("", "size %q is out of range", s).Allow(allowed)
		}
		return n * unit, nil
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || !(f >= 0 && f*float64(unit) < 1<<62) || strings.ContainsAny(text, "eExXpPnN_") {
		return 0, Invalid("", "%q is not a size", s).Allow(allowed)
	}
	return int64(f * float64(unit)), nil
}

// FormatSize writes bytes with the largest binary unit that keeps at least one
// whole unit, with at most one decimal: "1.5 GiB".
func FormatSize(bytes int64) string {
	for _, u := range sizeUnits[:4] {
		if bytes >= u.bytes {
			if bytes%u.bytes == 0 {
				return fmt.Sprintf("%d %s", bytes/u.bytes, u.name)
			}
			return fmt.Sprintf("%.1f %s", float64(bytes)/float64(u.bytes), u.name)
		}
	}
	return fmt.Sprintf("%d B", bytes)
}
