package spec

import (
	"github.com/debvisor/debvisor/api"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// read checks the size and nesting of a file and parses it. It returns nil
// when the file cannot be used.
func (p *parser) read(f File) *hclsyntax.Body {
	if len(f.Data) > FileSizeMax {
		p.problems.limit(Position{File: f.Name}, "the file has %d bytes, more than %d (FileSizeMax)", len(f.Data), FileSizeMax)
		return nil
	}
	start := hcl.Pos{Line: 1, Column: 1}
	if !p.scan(f, start) {
		return nil
	}
	file, diags := hclsyntax.ParseConfig(f.Data, f.Name, start)
	if p.problems.diagnostics(diags) {
		return nil
	}
	return file.Body.(*hclsyntax.Body)
}

// scan looks at the tokens before the parser does: the parser calls itself for
// each bracket and operator, and a program whose stack is exhausted dies.
func (p *parser) scan(f File, start hcl.Pos) bool {
	tokens, diags := hclsyntax.LexConfig(f.Data, f.Name, start)
	if p.problems.diagnostics(diags) {
		return false
	}
	depth, inside, operators, blocks := 0, 0, 0, 0
	for i := range tokens {
		t := &tokens[i]
		switch t.Type {
		case hclsyntax.TokenOBrace:
			blocks++
			depth++
		case hclsyntax.TokenOQuote, hclsyntax.TokenOHeredoc:
			depth++
		case hclsyntax.TokenOBrack, hclsyntax.TokenOParen:
			depth++
			inside++
		case hclsyntax.TokenTemplateInterp, hclsyntax.TokenTemplateControl:
			depth++
			inside++
			operators++
		case hclsyntax.TokenCBrace, hclsyntax.TokenCQuote, hclsyntax.TokenCHeredoc:
			depth--
		case hclsyntax.TokenCBrack, hclsyntax.TokenCParen, hclsyntax.TokenTemplateSeqEnd:
			depth--
			inside--
		case hclsyntax.TokenNewline:
			if inside <= 0 {
				operators = 0
			}
		case hclsyntax.TokenIdent, hclsyntax.TokenNumberLit, hclsyntax.TokenStringLit, hclsyntax.TokenQuotedLit,
			hclsyntax.TokenComma, hclsyntax.TokenEqual, hclsyntax.TokenComment, hclsyntax.TokenEOF:
		default:
			operators++
		}
		switch {
		case depth > DepthMax:
			p.problems.limit(position(t.Range), "brackets are nested more than %d deep (DepthMax)", DepthMax)
		case operators > OperatorsMax:
			p.problems.limit(position(t.Range), "the statement has more than %d operators (OperatorsMax)", OperatorsMax)
		case blocks > BlocksMax:
			p.problems.limit(position(t.Range), "the file has more than %d blocks (BlocksMax)", BlocksMax)
		default:
			continue
		}
		return false
	}
	return true
}

// sort puts the parts of a file where they belong.
func (p *parser) sort(body *hclsyntax.Body) {
	for _, a := range ordered(body.Attributes) {
		if a.Name != "set" {
			suggest(p.problems.addf(a.NameRange, "unknown attribute %q outside a block", a.Name), a.Name, []string{"set"})
			continue
		}
		if p.setBy != nil {
			p.problems.addf(a.NameRange, "set is given twice; first at %s", position(p.setBy.NameRange))
			continue
		}
		p.setBy = a
	}
	for _, b := range body.Blocks {
		switch {
		case b.Type == "variable":
			p.variables = append(p.variables, b)
		case b.Type == "locals":
			p.addLocals(b)
		case kindBlocks[b.Type] != nil:
			p.blocks = append(p.blocks, b)
		default:
			known := []string{"variable", "locals"}
			for _, k := range api.Kinds() {
				if k.UserEdits {
					known = append(known, k.Name)
				}
			}
			suggest(p.problems.addf(b.TypeRange, "unknown block %q", b.Type), b.Type, known)
		}
	}
}

func (p *parser) addLocals(b *hclsyntax.Block) {
	if len(b.Labels) > 0 {
		p.problems.addf(b.LabelRanges[0], "a locals block has no name")
	}
	for _, inner := range b.Body.Blocks {
		p.problems.addf(inner.TypeRange, "a locals block holds name = value lines only, not the block %q", inner.Type)
	}
	for _, a := range ordered(b.Body.Attributes) {
		if have := p.scope.locals[a.Name]; have != nil {
			p.problems.addf(a.NameRange, "local %q is declared twice; first at %s", a.Name, position(have.attr.NameRange))
			continue
		}
		if len(p.scope.locals) >= LocalsMax {
			p.problems.limit(position(a.NameRange), "more than %d locals (LocalsMax)", LocalsMax)
			return
		}
		p.scope.locals[a.Name] = &local{attr: a}
		p.scope.order = append(p.scope.order, a.Name)
	}
}

// checkSet finds the name of the set.
func (p *parser) checkSet() {
	at := hcl.Range{}
	if p.setBy != nil {
		at = p.setBy.Expr.Range()
		v, ok := p.scope.eval(p.setBy.Expr, nil)
		if !ok {
			return
		}
		name, err := decodeText(v)
		if err != nil {
			p.problems.addf(at, "set: %v", err)
			return
		}
		p.set = name
	}
	if p.set == "" && p.setBy == nil {
		return
	}
	if err := api.CheckName("set", p.set); err != nil {
		p.problems.add(position(at), err)
	}
}
