package httpapi

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// ETag returns the strong entity tag of a version (RFC 9110, section 8.8.3).
func ETag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// Precondition is what If-Match and If-None-Match demand of a change.
type Precondition struct {
	create bool     // If-None-Match: *
	any    bool     // If-Match: *
	tags   []string // If-Match, strong tags only
	none   []string // If-None-Match beside If-Match
}

// ReadPrecondition reads the precondition of a PUT or PATCH. Without If-Match or If-None-Match: * the error is
// precondition-required: a list of other tags alone does not say what its sender has seen.
func ReadPrecondition(r *http.Request) (Precondition, error) {
	match, none := r.Header.Values("If-Match"), tags(r.Header.Values("If-None-Match"))
	create := len(none) == 1 && none[0] == "*"
	if len(match) == 0 && !create {
		return Precondition{}, Fail(PreconditionRequired, "")
	}
	p := Precondition{create: create, none: none}
	for _, tag := range tags(match) {
		if tag == "*" {
			p.any = true
		} else if !strings.HasPrefix(tag, "W/") { // strong comparison: a weak tag never matches
			p.tags = append(p.tags, tag)
		}
	}
	return p, nil
}

// Creates reports whether the change is to make a new resource.
func (p Precondition) Creates() bool { return p.create }

// Holds reports whether the precondition holds for the version that is there; 0 is none. Both headers must
// (RFC 9110, section 13.2.2).
func (p Precondition) Holds(version int64) bool {
	if p.create {
		return version == 0 && !p.any && len(p.tags) == 0
	}
	return version != 0 && (p.any || p.names(version)) && !weaklyMatches(p.none, version)
}

// HeldBefore reports whether If-Match names exactly the version before this one, and If-None-Match neither: who
// sends it may have made this version and not have got the answer.
func (p Precondition) HeldBefore(version int64) bool {
	return !p.create && version > 1 && p.names(version-1) && !weaklyMatches(p.none, version-1) && !weaklyMatches(p.none, version)
}

// names reports whether If-Match names exactly the version.
func (p Precondition) names(version int64) bool { return slices.Contains(p.tags, ETag(version)) }

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
	return weaklyMatches(tags(r.Header.Values("If-None-Match")), version)
}

// weaklyMatches reports whether one of the tags is the version's (RFC 9110, section 8.8.3.2, weak comparison).
func weaklyMatches(tags []string, version int64) bool {
	return slices.ContainsFunc(tags, func(tag string) bool {
		return tag == "*" || strings.TrimPrefix(tag, "W/") == ETag(version)
	})
}
