package schemas

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// conformer checks a JSON value against a shape and writes it out as the shape has it: fields that are
// left out have their defaults, unknown fields are gone. Numbers are copied as text and never become
// floating point.
type conformer struct {
	in  bytes.Reader
	dec *jsontext.Decoder
	buf bytes.Buffer
	enc *jsontext.Encoder
}

var conformers = sync.Pool{New: func() any {
	c := &conformer{}
	c.dec = jsontext.NewDecoder(&c.in)
	c.enc = jsontext.NewEncoder(&c.buf)
	return c
}}

// maxPooled keeps one large value from holding its memory forever.
const maxPooled = 64 << 10

// conform hands the conforming JSON to use, which must not keep it.
func conform(s *shape, value []byte, use func(jsontext.Value) error) error {
	c := conformers.Get().(*conformer)
	defer func() {
		if c.buf.Cap() <= maxPooled && len(value) <= maxPooled {
			conformers.Put(c)
		}
	}()
	c.in.Reset(value)
	c.buf.Reset()
	c.dec.Reset(&c.in)
	c.enc.Reset(&c.buf)
	if err := c.value(s); err != nil {
		return err
	}
	if _, err := c.dec.ReadToken(); !errors.Is(err, io.EOF) {
		return errTrailing
	}
	return use(c.buf.Bytes())
}

func (c *conformer) value(s *shape) error {
	kind := c.dec.PeekKind()
	switch s.kind {
	case "record":
		if kind == '{' {
			return c.object(s)
		}
	case "array":
		if kind == '[' {
			return c.array(s)
		}
	case "string":
		if kind == '"' {
			return c.copy()
		}
	case "boolean":
		if kind == 't' || kind == 'f' {
			return c.copy()
		}
	case "int", "long":
		if kind == '0' {
			return c.integer(s)
		}
	default:
		return fmt.Errorf("a value of Avro type %s has no JSON form here", s.kind)
	}
	// A syntax error is a better answer than a wrong kind.
	if _, err := c.dec.ReadValue(); err != nil {
		return c.syntax(err)
	}
	return fmt.Errorf("%s: a %s is wanted, not %s", c.where(), s.kind, kindName(kind))
}

// where names the value that was read last.
func (c *conformer) where() string {
	if p := c.dec.StackPointer(); p != "" {
		return string(p)
	}
	return "the value"
}

func (c *conformer) syntax(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errTruncated
	}
	return fmt.Errorf("not JSON: %w", err)
}

func kindName(kind jsontext.Kind) string {
	switch kind {
	case 'n':
		return "null"
	case 't', 'f':
		return "a boolean"
	case '"':
		return "a string"
	case '0':
		return "a number"
	case '{':
		return "an object"
	case '[':
		return "an array"
	}
	return "this"
}

func (c *conformer) copy() error {
	raw, err := c.dec.ReadValue()
	if err != nil {
		return c.syntax(err)
	}
	return c.enc.WriteValue(raw)
}

func (c *conformer) integer(s *shape) error {
	raw, err := c.dec.ReadValue()
	if err != nil {
		return c.syntax(err)
	}
	bits := 64
	if s.kind == "int" {
		bits = 32
	}
	if _, err := strconv.ParseInt(string(raw), 10, bits); err != nil {
		return fmt.Errorf("%s: a whole number of %d bits is wanted", c.where(), bits)
	}
	return c.enc.WriteValue(raw)
}

func (c *conformer) array(s *shape) error {
	if err := c.open('['); err != nil {
		return err
	}
	for {
		switch c.dec.PeekKind() {
		case ']':
			return c.close(jsontext.EndArray)
		default:
			if err := c.value(s.items); err != nil {
				return err
			}
		}
	}
}

func (c *conformer) object(s *shape) error {
	if err := c.open('{'); err != nil {
		return err
	}
	seen := make([]bool, len(s.fields))
	for c.dec.PeekKind() != '}' {
		name, err := c.dec.ReadToken()
		if err != nil {
			return c.syntax(err)
		}
		i := s.field(name.String())
		if i < 0 {
			if err := c.dec.SkipValue(); err != nil {
				return c.syntax(err)
			}
			continue
		}
		seen[i] = true
		if err := c.enc.WriteToken(jsontext.String(s.fields[i].name)); err != nil {
			return err
		}
		if err := c.value(s.fields[i].shape); err != nil {
			return err
		}
	}
	for i, f := range s.fields {
		if seen[i] {
			continue
		}
		if f.def == nil {
			return fmt.Errorf("field %s is missing and has no default", f.name)
		}
		if err := c.enc.WriteToken(jsontext.String(f.name)); err != nil {
			return err
		}
		if err := c.enc.WriteValue(f.def); err != nil {
			return err
		}
	}
	return c.close(jsontext.EndObject)
}

func (s *shape) field(name string) int {
	for i := range s.fields {
		if s.fields[i].name == name {
			return i
		}
	}
	return -1
}

func (c *conformer) open(kind jsontext.Kind) error {
	if _, err := c.dec.ReadToken(); err != nil {
		return c.syntax(err)
	}
	if kind == '{' {
		return c.enc.WriteToken(jsontext.BeginObject)
	}
	return c.enc.WriteToken(jsontext.BeginArray)
}

func (c *conformer) close(end jsontext.Token) error {
	if _, err := c.dec.ReadToken(); err != nil {
		return c.syntax(err)
	}
	return c.enc.WriteToken(end)
}

func decodeJSON(s *shape, value []byte, into any) error {
	return conform(s, value, func(v jsontext.Value) error { return json.Unmarshal(v, into) })
}
