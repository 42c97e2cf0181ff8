package relay

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// members reads a whole object; the document is cloned because strings are unescaped in place.
func members(doc []byte) (map[string]string, error) {
	o, err := openObject(bytes.Clone(doc))
	if err != nil {
		return nil, err
	}
	got := map[string]string{}
	for {
		key, value, more, err := o.member()
		if err != nil {
			return nil, err
		}
		if !more {
			return got, nil
		}
		got[string(key)] = string(value)
	}
}

func TestHeadersReadLikeEncodingJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.MapOf(rapid.String(), rapid.String()).Draw(t, "headers")
		doc, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		// json replaces invalid UTF-8, so read back what it wrote.
		clear(want)
		if err := json.Unmarshal(doc, &want); err != nil {
			t.Fatal(err)
		}
		if rapid.Bool().Draw(t, "indented") {
			var out bytes.Buffer
			if err := json.Indent(&out, doc, " ", "\t"); err != nil {
				t.Fatal(err)
			}
			doc = out.Bytes()
		}
		got, err := members(doc)
		if err != nil {
			t.Fatalf("reading %s: %v", doc, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("reading %s (-want +got):\n%s", doc, diff)
		}
	})
}

func TestHeaderValuesOfEveryKind(t *testing.T) {
	doc := `{"n": -1.5e3, "t": true, "z": null, "o": {"a": ["}", "\"", {}], "b": 1}, "a": [1, [2]], "s": "\u00fc\ud83d\ude00\u0001\/\\\"\b\f\n\r\t", "lone": "\ud83d!", "": ""}`
	got, err := members([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"n": "-1.5e3", "t": "true", "z": "", "o": `{"a": ["}", "\"", {}], "b": 1}`, "a": "[1, [2]]",
		"s": "ü😀\x01/\\\"\b\f\n\r\t", "lone": "\ufffd!", "": "",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
}

func TestWhatIsNoObjectIsRefused(t *testing.T) {
	for _, doc := range []string{"", " ", "null", "[]", `"a"`, "1", "{", `{"a"`, `{"a":`, `{"a": }`, `{"a": "b`, `{"a": "\`, `{"a": "\u00`, `{"a": [1}`, `{"a": "b" "c"`, `{a: 1}`} {
		if got, err := members([]byte(doc)); !errors.Is(err, errHeaders) {
			t.Errorf("%q gave %v, %v, want errHeaders", doc, got, err)
		}
	}
	if _, err := headersText([]byte("\x02{}")); !errors.Is(err, errHeaders) {
		t.Errorf("an unknown jsonb version: %v, want errHeaders", err)
	}
}

// FuzzHeaders: whatever the bytes, the walk ends, stays inside and agrees with encoding/json on what
// both accept.
func FuzzHeaders(f *testing.F) {
	f.Add([]byte(`{"a": "b", "c": {"d": [null, 1.5]}, "e": "\ud83d\ude00"}`))
	f.Add([]byte(`{"a": "\ud83d\u0041"}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		got, err := members(doc)
		var want map[string]any
		if json.Unmarshal(doc, &want) != nil || want == nil {
			return
		}
		if err != nil {
			t.Fatalf("refused valid %q: %v", doc, err)
		}
		for key, value := range want {
			if s, ok := value.(string); ok && bytes.IndexByte(doc, 0xff) < 0 && string(bytes.ToValidUTF8(doc, nil)) == string(doc) {
				// A name given twice keeps its last value in both.
				if got[key] != s {
					t.Fatalf("%q: member %q is %q, want %q", doc, key, got[key], s)
				}
			}
		}
	})
}

func BenchmarkHeaders(b *testing.B) {
	const doc = `{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "occurred_at": "2026-11-23T12:00:00.123456Z", "causation_id": "0190163d-8694-739b-aea5-966c26f8ad91", "correlation_id": "0190163d-8694-739b-aea5-966c26f8ad91"}`
	input := []byte(doc)
	b.ReportAllocs()
	for b.Loop() {
		o, err := openObject(input)
		for more := err == nil; more; {
			if _, _, more, err = o.member(); err != nil {
				b.Fatal(err)
			}
		}
	}
}
