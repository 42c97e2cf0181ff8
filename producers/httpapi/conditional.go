package httpapi

import (
	"net/http"
	"strconv"
	"strings"
)

// ETag returns the strong entity tag of a version (RFC 9110, section 8.8.3).
func ETag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// Precondition is what If-Match or If-None-Match demands of a change.
type Precondition struct {
	create bool     // If-None-Match: *
	any    bool     // If-Match: *
	tags   []string // If-Match, strong tags only
}

// ReadPrecondition reads the precondition of a PUT, PATCH or DELETE. Without one the error is
// precondition-required.
func ReadPrecondition(r *http.Request) (Precondition, error) {
	match, none := r.Header.Values("If-Match"), r.Header.Values("If-None-Match")
	switch {
	case len(match) > 0:
		p := Precondition{}
		for _, tag := range tags(match) {
			if tag == "*" {
				p.any = true
			} else if !strings.HasPrefix(tag, "W/") { // strong comparison: a weak tag never matches
				p.tags = append(p.tags, tag)
			}
		}
		p.create = len(none) > 0 && strings.TrimSpace(strings.Join(none, ",")) == "*"
		return p, nil
	case strings.TrimSpace(strings.Join(none, ",")) == "*":
		return Precondition{create: true}, nil
	}
	return Precondition{}, Fail(PreconditionRequired, "")
}

// Creates reports whether the change is to make a new resource.
func (p Precondition) Creates() bool { return p.create }

// Holds reports whether the precondition holds for the version that is there; 0 is none.
func (p Precondition) Holds(version int64) bool {
	if p.create {
		return version == 0 && !p.any && len(p.tags) == 0
	}
	return version != 0 && (p.any || p.Names(version))
}

// Names reports whether If-Match names exactly the version; it never does together with If-None-Match: *,
// which no version can satisfy as well.
func (p Precondition) Names(version int64) bool {
	if p.create {
		return false
	}
	for _, tag := range p.tags {
		if tag == ETag(version) {
			return true
		}
	}
	return false
}

// tags splits entity tags at the commas between them; a comma inside a tag stays.
func tags(lines []string) []string {
	var found []string
	var tag strings.Builder
	quoted := false
	flush := func() {
		if text := strings.TrimSpace(tag.String()); text != "" {
			found = append(found, text)
		}
		tag.Reset()
	}
	for _, c := range strings.Join(lines, ",") {
		if c == '"' {
			quoted = !quoted
		}
		if c == ',' && !quoted {
			flush()
			continue
		}
		tag.WriteRune(c)
	}
	flush()
	return found
}

// NotModified sets the ETag of a GET, and answers 304 when If-None-Match has it (weak comparison). It
// reports whether it answered.
func NotModified(w http.ResponseWriter, r *http.Request, version int64) bool {
	w.Header().Set("ETag", ETag(version))
	if !noneMatches(r, version) {
		return false
	}
	w.WriteHeader(http.StatusNotModified)
	return true
}

// noneMatches reports whether If-None-Match names the version.
func noneMatches(r *http.Request, version int64) bool {
	for _, tag := range tags(r.Header.Values("If-None-Match")) {
		if tag == "*" || strings.TrimPrefix(tag, "W/") == ETag(version) {
			return true
		}
	}
	return false
}
