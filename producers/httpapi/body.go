package httpapi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// Media types of bodies.
const (
	mediaJSON  = "application/json"
	mediaPatch = "application/merge-patch+json" // RFC 7396
)

// ReadBody reads a JSON body whole and strictly. Its errors are problems: too large, too slow, not JSON.
func (a *API) ReadBody(w http.ResponseWriter, r *http.Request) (*Body, error) {
	return a.read(w, r, mediaJSON)
}

// ReadPatch is [API.ReadBody] for a JSON Merge Patch (RFC 7396).
func (a *API) ReadPatch(w http.ResponseWriter, r *http.Request) (*Body, error) {
	return a.read(w, r, mediaPatch)
}

func (a *API) read(w http.ResponseWriter, r *http.Request, media string) (*Body, error) {
	raw, err := a.readRaw(w, r)
	if err != nil {
		return nil, err
	}
	if err := checkMedia(r, media); err != nil {
		return nil, err
	}
	return parseBody(raw)
}

func (a *API) readRaw(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	tooLarge := func() error {
		return Fail(PayloadTooLarge, fmt.Sprintf("the limit is %d bytes", a.cfg.MaxBody)).hangUp()
	}
	if r.ContentLength > a.cfg.MaxBody { // it says so itself: nobody waits for it
		return nil, tooLarge()
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, a.cfg.MaxBody))
	var limit *http.MaxBytesError
	switch {
	case errors.As(err, &limit):
		return nil, tooLarge()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, Fail(RequestTimeout, "").hangUp()
	case err != nil:
		return nil, Fail(MalformedRequest, "the body ended early")
	}
	return raw, nil
}

// checkMedia refuses every other media type; of a patch it tells which it takes (RFC 5789, section 2.2).
func checkMedia(r *http.Request, want string) error {
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err == nil && media == want {
		return nil
	}
	refusal := Fail(UnsupportedMedia, "send Content-Type: "+want)
	if want == mediaPatch {
		refusal.Header = http.Header{"Accept-Patch": {want}}
	}
	return refusal
}

// Body is a JSON body and what is wrong with it. It is not safe for concurrent use.
type Body struct {
	raw     []byte
	root    *node
	errors  []FieldError
	objects []*Object
}

type node struct {
	kind    jsontext.Kind // as in jsontext: { [ " 0 t f n
	text    string        // a string's content, or a number as written
	names   []string      // an object's, in order
	members map[string]*node
	items   []*node
}

func parseBody(raw []byte) (*Body, error) {
	decoder := jsontext.NewDecoder(bytes.NewReader(raw)) // refuses duplicate names, invalid UTF-8 and lone surrogates
	root, err := parseNode(decoder)
	if err == nil {
		if _, end := decoder.ReadToken(); !errors.Is(end, io.EOF) {
			err = errors.New("there is more behind the value")
		}
	}
	if err != nil {
		return nil, Fail(MalformedRequest, "the body is not one well-formed JSON value")
	}
	return &Body{raw: raw, root: root}, nil
}

var errNUL = errors.New("a string holds U+0000")

func parseNode(decoder *jsontext.Decoder) (*node, error) {
	token, err := decoder.ReadToken()
	if err != nil {
		return nil, err
	}
	n := &node{kind: token.Kind()}
	switch n.kind {
	case '{':
		n.members = map[string]*node{}
		for decoder.PeekKind() != '}' {
			name, err := decoder.ReadToken()
			if err != nil {
				return nil, err
			}
			text := name.String()
			if strings.ContainsRune(text, 0) {
				return nil, errNUL
			}
			member, err := parseNode(decoder)
			if err != nil {
				return nil, err
			}
			n.names = append(n.names, text)
			n.members[text] = member
		}
		_, err = decoder.ReadToken()
	case '[':
		for decoder.PeekKind() != ']' {
			item, err := parseNode(decoder)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, item)
		}
		_, err = decoder.ReadToken()
	case '"', '0':
		n.text = token.String()
		if strings.ContainsRune(n.text, 0) {
			err = errNUL
		}
	}
	return n, err
}

// Object returns the body as an object.
func (b *Body) Object() *Object { return b.object(b.root, "") }

// Err returns a validation-failed problem with everything that is wrong with the members read so far, and
// with every member that nobody asked for; nil when nothing is.
func (b *Body) Err() error {
	for _, o := range b.objects {
		for _, name := range o.names() {
			if !o.asked[name] {
				b.add(o.at(name), "is not a member that is known here")
			}
		}
	}
	if len(b.errors) == 0 {
		return nil
	}
	e := Fail(ValidationFailed, fmt.Sprintf("%d rules are broken", len(b.errors)))
	if len(b.errors) == 1 {
		e.Problem.Detail = "1 rule is broken"
	}
	e.Problem.Errors = b.errors
	return e
}

func (b *Body) add(pointer, detail string) {
	b.errors = append(b.errors, FieldError{Pointer: pointer, Detail: detail})
}

func (b *Body) object(n *node, pointer string) *Object {
	o := &Object{body: b, pointer: pointer, asked: map[string]bool{}}
	if n != nil && n.kind == '{' {
		o.node = n
	} else {
		b.add(pointer, "must be an object")
	}
	b.objects = append(b.objects, o)
	return o
}

// Object reads the members of a JSON object and notes what is wrong with them; see [Body.Err].
type Object struct {
	body    *Body
	pointer string
	node    *node // nil: it was no object, which is noted
	asked   map[string]bool
}

func (o *Object) names() []string {
	if o.node == nil {
		return nil
	}
	return o.node.names
}

// maxPointerName bounds a member's name inside a pointer, in characters.
const maxPointerName = 64

func (o *Object) at(name string) string {
	if runes := []rune(name); len(runes) > maxPointerName {
		name = string(runes[:maxPointerName])
	}
	return o.pointer + "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
}

// Fail notes that a member breaks a rule.
func (o *Object) Fail(name, detail string) { o.body.add(o.at(name), detail) }

// Ignore accepts members without reading them: those of a resource that clients send back as they got it.
func (o *Object) Ignore(names ...string) {
	for _, name := range names {
		o.asked[name] = true
	}
}

func (o *Object) take(name string, required bool) *node {
	o.asked[name] = true
	if o.node == nil {
		return nil
	}
	n, ok := o.node.members[name]
	if !ok && required {
		o.Fail(name, "is required")
	}
	return n
}

// Null reports whether the optional member is there and null, as a merge patch takes a member away.
func (o *Object) Null(name string) bool {
	n := o.take(name, false)
	return n != nil && n.kind == 'n'
}

// Rule says what a string must be.
type Rule struct {
	Valid  func(string) bool
	Detail string // as in "must be …"
}

// Matching returns the rule that a string matches the pattern.
func Matching(pattern, detail string) Rule {
	return Rule{regexp.MustCompile(pattern).MatchString, detail}
}

// OneOf returns the rule that a string is one of the values.
func OneOf(values ...string) Rule {
	return Rule{func(s string) bool { return slices.Contains(values, s) }, "must be one of " + strings.Join(values, ", ")}
}

// ID is the rule for ids in requests.
var ID = Matching(`^[A-Za-z0-9_.:-]{1,64}$`, "must be a string of 1 to 64 characters out of A-Z a-z 0-9 _ . : -")

// String returns a required string member; "" when it is wrong, which is noted.
func (o *Object) String(name string, rule Rule) string {
	return o.text(o.take(name, true), name, "", rule)
}

// OptionalString returns a string member, or otherwise when it is not there.
func (o *Object) OptionalString(name, otherwise string, rule Rule) string {
	return o.text(o.take(name, false), name, otherwise, rule)
}

func (o *Object) text(n *node, name, otherwise string, rule Rule) string {
	switch {
	case n == nil:
		return otherwise
	case n.kind != '"' || !rule.Valid(n.text):
		o.Fail(name, rule.Detail)
		return ""
	}
	return n.text
}

// IDOrNumber returns a required member that is an id or a non-negative integer, as text.
func (o *Object) IDOrNumber(name string) string {
	n := o.take(name, true)
	if n != nil && n.kind == '0' {
		if v, ok := integer(n.text); ok && v >= 0 {
			return n.text
		}
		o.Fail(name, ID.Detail+", or a non-negative integer")
		return ""
	}
	return o.text(n, name, "", ID)
}

var plainInteger = regexp.MustCompile(`^-?(0|[1-9][0-9]{0,15})$`)

// maxInteger is the largest integer that every JSON reader holds exactly (RFC 8259, section 6).
const maxInteger = 1<<53 - 1

func integer(text string) (int64, bool) {
	if !plainInteger.MatchString(text) || text == "-0" {
		return 0, false
	}
	v, err := strconv.ParseInt(text, 10, 64)
	return v, err == nil && v >= -maxInteger && v <= maxInteger
}

// Int returns a required integer member between least and most; 0 when it is wrong, which is noted.
func (o *Object) Int(name string, least, most int64) int64 {
	n := o.take(name, true)
	if n == nil {
		return 0
	}
	v, ok := int64(0), false
	if n.kind == '0' {
		v, ok = integer(n.text)
	}
	if !ok || v < least || v > most {
		detail := fmt.Sprintf("must be an integer, written as one, between %d and %d", least, most)
		if most == MaxInt {
			detail = fmt.Sprintf("must be an integer, written as one, of at least %d", least)
		}
		o.Fail(name, detail)
		return 0
	}
	return v
}

// MaxInt is the most that an integer may be.
const MaxInt = maxInteger

// OptionalBool returns a boolean member, or otherwise when it is not there.
func (o *Object) OptionalBool(name string, otherwise bool) bool {
	n := o.take(name, false)
	switch {
	case n == nil:
		return otherwise
	case n.kind != 't' && n.kind != 'f':
		o.Fail(name, "must be true or false")
		return otherwise
	}
	return n.kind == 't'
}

// OptionalObject returns a member that is an object, nil when it is not there.
func (o *Object) OptionalObject(name string) *Object {
	n := o.take(name, false)
	if n == nil {
		return nil
	}
	return o.body.object(n, o.at(name))
}

// Objects calls each with every item of a required array of least to most objects.
func (o *Object) Objects(name string, least, most int, each func(index int, item *Object)) {
	n := o.take(name, true)
	if n == nil {
		return
	}
	if n.kind != '[' || len(n.items) < least || len(n.items) > most {
		o.Fail(name, fmt.Sprintf("must be an array of %d to %d objects", least, most))
		return
	}
	for i, item := range n.items {
		each(i, o.body.object(item, o.at(name)+"/"+strconv.Itoa(i)))
	}
}
