package httpapi

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"
)

// Whatever a client sends is its own fault at worst: never a 5xx, never a line in the log, and a problem is
// always whole, of a known type, and points at members of bounded length.
func FuzzRequest(f *testing.F) {
	for _, seed := range []struct{ method, path, media, key, match, none, body string }{
		{"PUT", "/order", "application/json", "k", `"1"`, "", anOrder()},
		{"PUT", "/order", "application/json", `"k\"`, "*", "*", `{"id":"a","id":"b"}`},
		{"PUT", "/order", "application/json;", "", `W/"1", "2`, "", strings.Repeat("[", 11_000)},
		{"PUT", "/order", "text/plain", "\x00", "", "", ""},
		{"GET", "/order", "", "", "", "", ""},
		{"", "", "", "", "", "", ""},
		{"CONNECT", "//", "", "", "", "", ""},
		{"PUT", "/order", "application/json", "k", `"1"`, "", "{\"" + strings.Repeat("é", 200) + "\":1}"},
		{"PUT", "/order", "application/json", "k", `"1"`, "", `{"items":[{"quantity":1e999},{"quantity":-0}],"ref":` + strings.Repeat("9", 400) + `}`},
		{"GET", "/problems/%2e%2e", "", "", "", "", ""},
		{"GET", "/problems/..", "", "", "", "", ""},
		{"GET", "*", "", "", "", "", ""},
	} {
		f.Add(seed.method, seed.path, seed.media, seed.key, seed.match, seed.none, seed.body)
	}
	log := &logbook{}
	api, err := New(Config{Logger: slog.New(slog.NewJSONHandler(log, nil))})
	if err != nil {
		f.Fatal(err)
	}
	api.Handle("PUT /order", func(w http.ResponseWriter, r *http.Request) error {
		if _, err := readKey(r); err != nil {
			return err
		}
		condition, err := ReadPrecondition(r)
		if err != nil {
			return err
		}
		body, err := api.ReadBody(w, r)
		if err != nil {
			return err
		}
		if err := order(body); err != nil {
			return err
		}
		if !condition.Holds(1) {
			return Fail(PreconditionFailed, "")
		}
		if NotModified(w, r, 1) {
			return nil
		}
		return Response{Status: 200, Body: []byte("{}")}.Write(w)
	})
	f.Fuzz(func(t *testing.T, method, path, media, key, match, none, body string) {
		r := &http.Request{Method: method, URL: &url.URL{Path: path}, Host: "localhost", RequestURI: path, ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{}, Body: http.NoBody, ContentLength: int64(len(body))}
		r.Body = readCloser{strings.NewReader(body)}
		for name, value := range map[string]string{"Content-Type": media, "Idempotency-Key": key, "If-Match": match, "If-None-Match": none} {
			if value != "" {
				r.Header.Set(name, value)
			}
		}
		rec := httptest.NewRecorder()
		api.ServeHTTP(rec, r)
		if rec.Code < 200 || rec.Code >= 500 {
			t.Fatalf("%d %s", rec.Code, rec.Body)
		}
		if text := log.String(); text != "" {
			t.Fatalf("logged: %s", text)
		}
		if rec.Code < 400 || rec.Header().Get("Content-Type") != "application/problem+json" {
			return
		}
		var p Problem
		if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil || p.Status != rec.Code || kinds[strings.TrimPrefix(p.Type, "/problems/")].status != rec.Code {
			t.Fatalf("%v %s", err, rec.Body)
		}
		for _, e := range p.Errors {
			for name := range strings.SplitSeq(e.Pointer, "/") {
				name = strings.NewReplacer("~1", "/", "~0", "~").Replace(name)
				if utf8.RuneCountInString(name) > maxPointerName {
					t.Fatalf("the pointer %s repeats too much", e.Pointer)
				}
			}
		}
	})
}

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }

// What is read as a body is JSON for everybody else, and a key has one quoted form that is the same key.
func FuzzBodyAndKey(f *testing.F) {
	f.Add(anOrder(), "k")
	f.Add(`{"a":1,"a":2}`, `a"b\c`)
	f.Add("\"\xff\"", "\"")
	f.Add(`"\u0000"`, " ")
	f.Add(`[[[]]] `, "~")
	f.Fuzz(func(t *testing.T, text, key string) {
		body, err := parseBody([]byte(text))
		var problem *Error
		switch {
		case err != nil && !errors.As(err, &problem):
			t.Fatal(err)
		case err == nil && !json.Valid([]byte(text)):
			t.Fatalf("read although it is no JSON: %q", text)
		case err == nil:
			if err := order(body); err != nil && !isProblem(err, ValidationFailed) {
				t.Fatal(err)
			}
		}
		read, err := readKey(&http.Request{Header: http.Header{"Idempotency-Key": {key}}})
		if err != nil {
			return
		}
		if len(read) < 1 || len(read) > maxKey {
			t.Fatalf("%q is a key", read)
		}
		quoted := `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(read) + `"`
		if again, err := readKey(&http.Request{Header: http.Header{"Idempotency-Key": {quoted}}}); err != nil || again != read {
			t.Fatalf("%q and %s are two keys: %q %v", read, quoted, again, err)
		}
	})
}
