package httpapi

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestPreconditionsAreComparedStrongly(t *testing.T) {
	for _, step := range []struct {
		match, none []string
		missing     bool
		holds       []int64 // of the versions 0 to 12
	}{
		{missing: true},
		{none: []string{`"1"`}, missing: true},
		{none: []string{`"1", *`}, missing: true},
		{none: []string{""}, missing: true},
		{none: []string{"*"}, holds: []int64{0}},
		{none: []string{" * "}, holds: []int64{0}},
		{match: []string{"*"}, holds: []int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}},
		{match: []string{`"3"`}, holds: []int64{3}},
		{match: []string{`"0"`}},
		{match: []string{`"1", "12"`}, holds: []int64{1, 12}},
		{match: []string{`"1"`, `"2"`}, holds: []int64{1, 2}},
		{match: []string{` "1" ,, "2",`}, holds: []int64{1, 2}},
		{match: []string{`W/"3"`}},
		{match: []string{`W/"3", "4"`}, holds: []int64{4}},
		{match: []string{`w/"3"`}},
		{match: []string{`3`}},
		{match: []string{`'3'`}},
		{match: []string{`"3`}},
		{match: []string{`"03"`}},
		{match: []string{`"+3"`}},
		{match: []string{`"1,3"`}}, // a comma inside a tag does not end it
		{match: []string{""}},
		{match: []string{"*"}, none: []string{"*"}}, // both cannot be
		{match: []string{`"3"`}, none: []string{"*"}},
		{match: []string{`"3"`}, none: []string{`"3"`}, holds: []int64{3}}, // If-None-Match is for reading (RFC 9110, section 13.2.2)
	} {
		t.Run(fmt.Sprintf("%q %q", step.match, step.none), func(t *testing.T) {
			r := httptest.NewRequest("PUT", "/", nil)
			r.Header["If-Match"], r.Header["If-None-Match"] = step.match, step.none
			p, err := ReadPrecondition(r)
			if missing := isProblem(err, PreconditionRequired); missing != step.missing || (err != nil) != missing {
				t.Fatalf("the error is %v", err)
			}
			if err != nil {
				return
			}
			var holds []int64
			for version := range int64(13) {
				if p.Holds(version) {
					holds = append(holds, version)
				}
				if p.Names(version) && p.Creates() {
					t.Errorf("names version %d of what must not exist", version)
				}
			}
			if fmt.Sprint(holds) != fmt.Sprint(step.holds) {
				t.Errorf("holds for %v, want %v", holds, step.holds)
			}
		})
	}
}

func TestAReaderThatHasTheVersionGetsNoBody(t *testing.T) {
	w := newWorld(t, Config{})
	w.api.Handle("GET /thing", func(rw http.ResponseWriter, r *http.Request) error {
		if NotModified(rw, r, 3) {
			return nil
		}
		return Response{Status: 200, Body: []byte(`{"a":1}`)}.Write(rw)
	})
	for tags, code := range map[string]int{
		`"3"`: 304, `W/"3"`: 304, `*`: 304, `"1", W/"3"`: 304, `"2"`: 200, `3`: 200, `"1,3"`: 200, `"33"`: 200, `W/"33"`: 200, `"`: 200,
	} {
		for _, method := range []string{"GET", "HEAD"} {
			a := w.do(method, "/thing", "", "If-None-Match", tags)
			if a.code != code || a.header.Get("ETag") != `"3"` || (a.body != "") != (code == 200 && method == "GET") {
				t.Errorf("%s %s: %d %v %q", method, tags, a.code, a.header, a.body)
			}
		}
	}
	if a := w.do("GET", "/thing", ""); a.code != 200 || a.header.Get("ETag") != `"3"` {
		t.Errorf("%d %v", a.code, a.header)
	}
}
