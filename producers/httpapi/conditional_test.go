package httpapi

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestBothPreconditionsMustHold(t *testing.T) {
	for _, step := range []struct {
		match, none []string
		missing     bool
		holds       []int64 // of the versions 0 to 12
		before      []int64 // the versions that who lost its answer may have made
	}{
		{missing: true},
		{none: []string{`"1"`}, missing: true},
		{none: []string{`"1", *`}, missing: true},
		{none: []string{""}, missing: true},
		{none: []string{"*"}, holds: []int64{0}},
		{none: []string{" * "}, holds: []int64{0}},
		{match: []string{"*"}, holds: []int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}},
		{match: []string{`"3"`}, holds: []int64{3}, before: []int64{4}},
		{match: []string{`"0"`}},
		{match: []string{`"1", "12"`}, holds: []int64{1, 12}, before: []int64{2}},
		{match: []string{`"1"`, `"2"`}, holds: []int64{1, 2}, before: []int64{2, 3}},
		{match: []string{` "1" ,, "2",`}, holds: []int64{1, 2}, before: []int64{2, 3}},
		{match: []string{`W/"3"`}},
		{match: []string{`W/"3", "4"`}, holds: []int64{4}, before: []int64{5}},
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
		// Both must hold, and If-None-Match compares weakly.
		{match: []string{`"3"`}, none: []string{`"3"`}},
		{match: []string{`"3"`}, none: []string{`W/"3"`}},
		{match: []string{`"3"`}, none: []string{`"1"`, `"2", W/"3"`}},
		{match: []string{`"3"`}, none: []string{`"1", *`}},
		{match: []string{`"3"`}, none: []string{`"2"`}, holds: []int64{3}, before: []int64{4}},
		{match: []string{`"3"`}, none: []string{`"4"`}, holds: []int64{3}},
		{match: []string{`"3"`}, none: []string{`W/"4"`}, holds: []int64{3}},
		{match: []string{`"3"`}, none: []string{`3`}, holds: []int64{3}, before: []int64{4}},
		{match: []string{`"3"`}, none: []string{""}, holds: []int64{3}, before: []int64{4}},
		{match: []string{`"1", "2"`}, none: []string{`"1"`}, holds: []int64{2}, before: []int64{3}},
		{match: []string{"*"}, none: []string{`"1", "2", "3", "4", "5", "6", "7", "8", "9", "10"`}, holds: []int64{11, 12}},
		{none: []string{`W/"1"`}, missing: true},
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
			var holds, before []int64
			for version := range int64(13) {
				if p.Holds(version) {
					holds = append(holds, version)
				}
				if p.HeldBefore(version) {
					before = append(before, version)
				}
			}
			if fmt.Sprint(holds) != fmt.Sprint(step.holds) {
				t.Errorf("holds for %v, want %v", holds, step.holds)
			}
			if fmt.Sprint(before) != fmt.Sprint(step.before) {
				t.Errorf("held before %v, want %v", before, step.before)
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
