package schemas

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// A shape is an Avro schema as the checks need it: which bytes, and which JSON, are a value of it.
//
// Binary Avro is checked before the Avro library decodes it, because bytes from a topic may claim
// anything: the library takes a value that ends too early or too late for a whole one, and follows a
// claimed block count of 2^62 for as long as it takes.
type shape struct {
	kind    string // the Avro type's name
	name    string // full name of a record, enum or fixed
	fields  []shapeField
	items   *shape   // of an array's items or a map's values
	union   []*shape // of a union's branches
	symbols []string // of an enum
	size    int      // of a fixed
}

type shapeField struct {
	name  string
	shape *shape
	def   jsontext.Value // nil: there is no default
}

// record returns the record's own name, without its namespace.
func (s *shape) record() string { return s.name[strings.LastIndexByte(s.name, '.')+1:] }

// maxDepth bounds how deep schemas nest. Those here nest two levels.
const maxDepth = 32

var errRecursive = errors.New("the schema contains itself, which is not supported")

// parseShape refuses a schema that contains itself: the Avro library follows such a field without end
// when the reader does not want it.
func parseShape(text string) (*shape, error) {
	p := shapeParser{named: map[string]*shape{}, open: map[string]bool{}}
	return p.parse(jsontext.Value(text), "", 0)
}

type shapeParser struct {
	named map[string]*shape
	open  map[string]bool // records whose fields are being parsed
}

func (p *shapeParser) parse(v jsontext.Value, namespace string, depth int) (*shape, error) {
	if depth > maxDepth {
		return nil, errors.New("the schema nests too deep")
	}
	switch v.Kind() {
	case '"':
		var name string
		if err := json.Unmarshal(v, &name); err != nil {
			return nil, err
		}
		return p.lookup(name, namespace)
	case '[':
		var branches []jsontext.Value
		if err := json.Unmarshal(v, &branches); err != nil {
			return nil, err
		}
		union := &shape{kind: "union"}
		for _, b := range branches {
			s, err := p.parse(b, namespace, depth+1)
			if err != nil {
				return nil, err
			}
			union.union = append(union.union, s)
		}
		return union, nil
	case '{':
		return p.parseObject(v, namespace, depth)
	}
	return nil, errors.New("a schema is a name, a union or an object")
}

func (p *shapeParser) lookup(name, namespace string) (*shape, error) {
	switch name {
	case "null", "boolean", "int", "long", "float", "double", "bytes", "string":
		return &shape{kind: name}, nil
	}
	full := fullName(name, namespace)
	if p.open[full] {
		return nil, errRecursive
	}
	if s, ok := p.named[full]; ok {
		return s, nil
	}
	return nil, fmt.Errorf("the schema names an unknown type %q", name)
}

func fullName(name, namespace string) string {
	if strings.Contains(name, ".") || namespace == "" {
		return name
	}
	return namespace + "." + name
}

func (p *shapeParser) parseObject(v jsontext.Value, namespace string, depth int) (*shape, error) {
	var o struct {
		Type      jsontext.Value `json:"type"`
		Name      string         `json:"name"`
		Namespace string         `json:"namespace"`
		Fields    []struct {
			Name    string         `json:"name"`
			Type    jsontext.Value `json:"type"`
			Default jsontext.Value `json:"default"`
		} `json:"fields"`
		Items   jsontext.Value `json:"items"`
		Values  jsontext.Value `json:"values"`
		Symbols []string       `json:"symbols"`
		Size    int            `json:"size"`
	}
	if err := json.Unmarshal(v, &o); err != nil {
		return nil, err
	}
	var kind string
	if o.Type.Kind() != '"' || json.Unmarshal(o.Type, &kind) != nil {
		return p.parse(o.Type, namespace, depth+1)
	}
	s := &shape{kind: kind}
	switch kind {
	case "record", "enum", "fixed":
		if o.Namespace != "" {
			namespace = o.Namespace
		}
		s.name, s.symbols, s.size = fullName(o.Name, namespace), o.Symbols, o.Size
		if i := strings.LastIndexByte(s.name, '.'); i >= 0 {
			namespace = s.name[:i]
		}
		p.named[s.name] = s
		p.open[s.name] = true
		defer delete(p.open, s.name)
		for _, f := range o.Fields {
			fs, err := p.parse(f.Type, namespace, depth+1)
			if err != nil {
				return nil, fmt.Errorf("field %s: %w", f.Name, err)
			}
			s.fields = append(s.fields, shapeField{name: f.Name, shape: fs, def: f.Default})
		}
		return s, nil
	case "array", "map":
		inner := o.Items
		if kind == "map" {
			inner = o.Values
		}
		var err error
		s.items, err = p.parse(inner, namespace, depth+1)
		return s, err
	}
	return p.lookup(kind, namespace)
}

var (
	errTruncated = errors.New("the value ends too early")
	errTrailing  = errors.New("the value goes on after its end")
)

// checkBinary reports whether b is exactly one binary value of the shape. Its cost is bounded by
// len(b): every count is held against the bytes that are left.
func (s *shape) checkBinary(b []byte) error {
	rest, err := s.skip(b)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return errTrailing
	}
	return nil
}

func (s *shape) skip(b []byte) ([]byte, error) {
	switch s.kind {
	case "null":
		return b, nil
	case "boolean":
		if len(b) > 0 && b[0] > 1 {
			return nil, errors.New("a boolean is neither 0 nor 1")
		}
		return skipBytes(b, 1)
	case "int", "long":
		n, rest, err := varint(b)
		if err == nil && s.kind == "int" && n != int64(int32(n)) {
			return nil, errors.New("an int has more than 32 bits")
		}
		return rest, err
	case "float":
		return skipBytes(b, 4)
	case "double":
		return skipBytes(b, 8)
	case "fixed":
		return skipBytes(b, int64(s.size))
	case "bytes", "string":
		return s.skipText(b)
	case "enum":
		i, rest, err := varint(b)
		if err == nil && (i < 0 || i >= int64(len(s.symbols))) {
			return nil, errors.New("an enum has no such symbol")
		}
		return rest, err
	case "union":
		i, rest, err := varint(b)
		if err != nil {
			return nil, err
		}
		if i < 0 || i >= int64(len(s.union)) {
			return nil, errors.New("a union has no such branch")
		}
		return s.union[i].skip(rest)
	case "record":
		var err error
		for _, f := range s.fields {
			if b, err = f.shape.skip(b); err != nil {
				return nil, fmt.Errorf("field %s: %w", f.name, err)
			}
		}
		return b, nil
	default: // array, map
		return s.skipBlocks(b)
	}
}

func (s *shape) skipText(b []byte) ([]byte, error) {
	n, rest, err := varint(b)
	if err != nil {
		return nil, err
	}
	after, err := skipBytes(rest, n)
	if err == nil && s.kind == "string" && !utf8.Valid(rest[:n]) {
		return nil, errors.New("a string is not UTF-8")
	}
	return after, err
}

// skipBlocks follows the blocks of an array or a map. Items of no bytes at all (nulls, empty records)
// are refused, for nothing would bound their number.
func (s *shape) skipBlocks(b []byte) ([]byte, error) {
	for {
		count, rest, err := varint(b)
		if err != nil {
			return nil, err
		}
		if count == 0 {
			return rest, nil
		}
		size := int64(-1)
		if count < 0 {
			if size, rest, err = varint(rest); err != nil {
				return nil, err
			}
			count = -count
		}
		if count < 0 || count > int64(len(rest)) {
			return nil, errTruncated
		}
		start := len(rest)
		for range count {
			if s.kind == "map" {
				if rest, err = (&shape{kind: "string"}).skipText(rest); err != nil {
					return nil, err
				}
			}
			left := len(rest)
			if rest, err = s.items.skip(rest); err != nil {
				return nil, err
			}
			if len(rest) == left && s.kind == "array" {
				return nil, errors.New("an array has items of no bytes")
			}
		}
		if size >= 0 && int64(start-len(rest)) != size {
			return nil, errors.New("a block is not of the size that it claims")
		}
		b = rest
	}
}

func skipBytes(b []byte, n int64) ([]byte, error) {
	if n < 0 {
		return nil, errors.New("a length is negative")
	}
	if n > int64(len(b)) {
		return nil, errTruncated
	}
	return b[n:], nil
}

func varint(b []byte) (int64, []byte, error) {
	n, used := binary.Varint(b)
	if used == 0 {
		return 0, nil, errTruncated
	}
	if used < 0 {
		return 0, nil, errors.New("a number has more than 64 bits")
	}
	return n, b[used:], nil
}
