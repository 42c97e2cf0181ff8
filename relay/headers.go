package relay

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"
)

// errHeaders is what a headers column is refused with that is not an object as jsonb prints it.
var errHeaders = errors.New("headers are not a JSON object")

// names keeps one string per header name, so that naming a header does not allocate. Names come from
// rows, so their number is bounded; beyond the bound a name costs an allocation.
type names map[string]string

const maxNames = 512

func (n names) of(b []byte) string {
	if s, known := n[string(b)]; known {
		return s
	}
	s := string(b)
	if len(n) < maxNames {
		n[s] = s
	}
	return s
}

// object walks the members of a JSON object. PostgreSQL has already validated a jsonb value, so the
// walk checks only what keeps it inside doc.
type object struct {
	doc []byte
	at  int
}

// openObject begins the walk.
func openObject(doc []byte) (object, error) {
	o := object{doc: doc}
	if o.skipSpace() != '{' {
		return o, errHeaders
	}
	o.at++
	return o, nil
}

// member returns the next member, and ok false after the last one. A string is unescaped in place, so
// doc is not the same afterwards; any other value is its JSON text, null is nil.
func (o *object) member() (key, value []byte, ok bool, err error) {
	switch o.skipSpace() {
	case '}':
		return nil, nil, false, nil
	case ',':
		o.at++
		o.skipSpace()
	}
	if key, err = o.text(); err != nil {
		return nil, nil, false, err
	}
	if o.skipSpace() != ':' {
		return nil, nil, false, errHeaders
	}
	o.at++
	if o.skipSpace() == '"' {
		value, err = o.text()
	} else {
		value, err = o.raw()
	}
	return key, value, err == nil, err
}

// skipSpace returns the next byte that is not white space, 0 at the end, without passing it.
func (o *object) skipSpace() byte {
	for ; o.at < len(o.doc); o.at++ {
		switch c := o.doc[o.at]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// text reads a string.
func (o *object) text() ([]byte, error) {
	if o.at >= len(o.doc) || o.doc[o.at] != '"' {
		return nil, errHeaders
	}
	start := o.at + 1
	for i := start; i < len(o.doc); i++ {
		switch o.doc[i] {
		case '"':
			o.at = i + 1
			return o.doc[start:i:i], nil
		case '\\':
			return o.escaped(start, i)
		}
	}
	return nil, errHeaders
}

// escaped reads on from the first backslash of a string, at i, moving what follows down over it.
func (o *object) escaped(start, i int) ([]byte, error) {
	out := i
	for i < len(o.doc) {
		c := o.doc[i]
		i++
		switch c {
		case '"':
			o.at = i
			return o.doc[start:out:out], nil
		case '\\':
			if i >= len(o.doc) {
				return nil, errHeaders
			}
			c = o.doc[i]
			i++
			switch c {
			case 'b':
				c = '\b'
			case 'f':
				c = '\f'
			case 'n':
				c = '\n'
			case 'r':
				c = '\r'
			case 't':
				c = '\t'
			case 'u':
				r, size := escapedRune(o.doc[i:])
				if size == 0 {
					return nil, errHeaders
				}
				i += size
				// Four or ten bytes were read after the backslash and u; a rune takes at most four.
				out += utf8.EncodeRune(o.doc[out:out+utf8.UTFMax], r)
				continue
			}
		}
		o.doc[out] = c
		out++
	}
	return nil, errHeaders
}

// escapedRune reads the digits after \u, and a second escape if the first is half of a pair. size is
// the number of bytes read, 0 for no rune.
func escapedRune(b []byte) (r rune, size int) {
	first, ok := hex4(b)
	if !ok {
		return 0, 0
	}
	if !utf16.IsSurrogate(first) {
		return first, 4
	}
	if len(b) >= 10 && b[4] == '\\' && b[5] == 'u' {
		if second, ok := hex4(b[6:]); ok {
			if r := utf16.DecodeRune(first, second); r != utf8.RuneError {
				return r, 10
			}
		}
	}
	return utf8.RuneError, 4
}

func hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	var r rune
	for _, c := range b[:4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// raw reads a value that is not a string.
func (o *object) raw() ([]byte, error) {
	start, depth := o.at, 0
	for i := o.at; i < len(o.doc); i++ {
		switch c := o.doc[i]; {
		case c == '"':
			end := stringEnd(o.doc, i)
			if end < 0 {
				return nil, errHeaders
			}
			i = end
		case c == '{' || c == '[':
			depth++
		case depth > 0 && (c == '}' || c == ']'):
			depth--
		case depth == 0 && (c == ',' || c == '}'):
			o.at = i
			value := bytes.TrimRight(o.doc[start:i:i], " \t\n\r")
			if len(value) == 0 {
				return nil, errHeaders
			}
			if string(value) == "null" {
				return nil, nil
			}
			return value, nil
		}
	}
	return nil, errHeaders
}

// stringEnd returns the index of the quote that closes the string opened at i, -1 if none does.
func stringEnd(doc []byte, i int) int {
	for i++; i < len(doc); i++ {
		switch doc[i] {
		case '\\':
			i++
		case '"':
			return i
		}
	}
	return -1
}

// jsonbVersion is the first byte of jsonb's binary form; the text follows.
const jsonbVersion = 1

// headersText returns the JSON text of a headers column.
func headersText(binary []byte) ([]byte, error) {
	if len(binary) == 0 {
		return nil, nil
	}
	if binary[0] != jsonbVersion {
		return nil, fmt.Errorf("%w: jsonb version %s", errHeaders, strconv.Itoa(int(binary[0])))
	}
	return binary[1:], nil
}

// header is a shorthand.
func header(key string, value []byte) kgo.RecordHeader {
	return kgo.RecordHeader{Key: key, Value: value}
}
