package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

// The values of -o.
const (
	formatTable = "table"
	formatWide  = "wide"
	formatJSON  = "json"
	formatYAML  = "yaml"
)

func formats() []string { return []string{formatTable, formatWide, formatJSON, formatYAML} }

// checkFormat refuses an unknown -o before anything is done.
func (a *app) checkFormat(cmd *cobra.Command) error {
	for _, f := range formats() {
		if a.format == f {
			return nil
		}
	}
	return usage(cmd, "output %q is unknown (allowed: %s)%s", a.format, strings.Join(formats(), ", "), didYouMean(a.format, formats()))
}

// structured reports whether the output is for programs.
func (a *app) structured() bool { return a.format == formatJSON || a.format == formatYAML }

// emit writes v as JSON or YAML.
func (a *app) emit(v any) error {
	var raw []byte
	var err error
	if a.format == formatYAML {
		raw, err = encodeYAML(v)
	} else {
		raw, err = encodeJSON(v, "  ")
	}
	if err != nil {
		return err
	}
	_, err = a.out.Write(raw)
	return err
}

// emitLine writes v as one line of JSON, or as one YAML document: for output
// that goes on.
func (a *app) emitLine(v any) error {
	if a.format == formatYAML {
		a.printf("---\n")
		return a.emit(v)
	}
	raw, err := encodeJSON(v, "")
	if err != nil {
		return err
	}
	_, err = a.out.Write(raw)
	return err
}

// result writes v for programs, or the text for people.
func (a *app) result(v any, format string, args ...any) error {
	if a.structured() {
		return a.emit(v)
	}
	a.printf(format+"\n", args...)
	return nil
}

// encodeJSON renders v with a newline. Characters that could change what a
// terminal shows are escaped; the value stays the same.
func encodeJSON(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encode JSON: %w", err)
	}
	return escapeInvisible(b.Bytes()), nil
}

func escapeInvisible(raw []byte) []byte {
	hidden := func(r rune) bool {
		return r >= 0x7f && r < 0xa0 || r >= 0xa0 && r <= 0xffff && unicode.Is(unicode.Cf, r)
	}
	if bytes.IndexFunc(raw, hidden) < 0 {
		return raw
	}
	var b bytes.Buffer
	for _, r := range string(raw) {
		if hidden(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
			continue
		}
		b.WriteRune(r)
	}
	return b.Bytes()
}

// encodeYAML renders v with the names and the order that it has in JSON.
func encodeYAML(v any) ([]byte, error) {
	raw, err := encodeJSON(v, "")
	if err != nil {
		return nil, err
	}
	var node yaml.Node
	if err := yaml.Unmarshal(raw, &node); err != nil {
		return nil, fmt.Errorf("encode YAML: %w", err)
	}
	blockStyle(&node)
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(&node); err != nil {
		return nil, fmt.Errorf("encode YAML: %w", err)
	}
	return b.Bytes(), e.Close()
}

func blockStyle(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		blockStyle(c)
	}
}
