package httpapi

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// order is a body with one member of every kind that there is.
func order(body *Body) error {
	o := body.Object()
	o.Ignore("version")
	o.String("id", ID)
	o.OptionalString("colour", "red", OneOf("red", "blue"))
	o.IDOrNumber("ref")
	o.OptionalBool("gift", false)
	if to := o.OptionalObject("ship_to"); to != nil {
		to.String("country", Matching(`^[A-Z]{2}$`, "must be a code"))
	}
	o.Objects("items", 1, 2, func(_ int, item *Object) { item.Int("quantity", 1, 1000) })
	return body.Err()
}

// anOrder returns a good order with members replaced; "" takes one away.
func anOrder(changes ...string) string {
	members := map[string]string{"id": `"a"`, "ref": "42", "items": `[{"quantity":1}]`}
	for i := 0; i < len(changes); i += 2 {
		if members[changes[i]] = changes[i+1]; changes[i+1] == "" {
			delete(members, changes[i])
		}
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(members)) {
		parts = append(parts, fmt.Sprintf("%q:%s", name, members[name]))
	}
	return "{" + strings.Join(parts, ",") + "}"
}

func bodyWorld(t testing.TB, cfg Config) *world {
	w := newWorld(t, cfg)
	w.api.Handle("PUT /order", func(rw http.ResponseWriter, r *http.Request) error {
		body, err := w.api.ReadBody(rw, r)
		if err != nil {
			return err
		}
		if err := order(body); err != nil {
			return err
		}
		rw.WriteHeader(http.StatusNoContent)
		return nil
	})
	return w
}

func TestWhatIsNotOneJSONValueIsMalformed(t *testing.T) {
	w := bodyWorld(t, Config{})
	for name, body := range map[string]string{
		"nothing":                 "",
		"blanks":                  " \n\t ",
		"half":                    `{"id":"a"`,
		"half a string":           `{"id":"a`,
		"half a number":           `{"ref":1e`,
		"an open array":           `{"items":[`,
		"a trailing comma":        `{"id":"a",}`,
		"a leading zero":          `{"ref":01}`,
		"a plus":                  `{"ref":+1}`,
		"a hexadecimal":           `{"ref":0x1}`,
		"not a number":            `{"ref":NaN}`,
		"single quotes":           `{'id':'a'}`,
		"a comment":               `{}/**/`,
		"a second value":          anOrder() + anOrder(),
		"garbage behind":          anOrder() + "x",
		"a bracket behind":        anOrder() + "}",
		"NUL behind":              anOrder() + "\x00",
		"a byte order mark":       "\ufeff" + anOrder(),
		"a duplicate name":        `{"id":"a","id":"b"}`,
		"a duplicate, escaped":    `{"id":"a","\u0069d":"b"}`,
		"a duplicate, deep":       anOrder("ship_to", `{"country":"DE","country":"DE"}`),
		"a duplicate, unknown":    anOrder("x", `[{"a":1,"a":1}]`),
		"a lone high surrogate":   `{"id":"\ud800"}`,
		"a lone low surrogate":    `{"id":"\udc00"}`,
		"a name that is half":     `{"\ud800":1}`,
		"invalid UTF-8":           "{\"id\":\"\xff\"}",
		"overlong UTF-8":          "{\"id\":\"\xc0\x80\"}",
		"a surrogate in UTF-8":    "{\"id\":\"\xed\xa0\x80\"}",
		"invalid UTF-8 in a name": "{\"\xff\":1}",
		"NUL in a string":         `{"id":"a\u0000"}`,
		"NUL in a name":           `{"a\u0000":1}`,
		"NUL, unknown and deep":   anOrder("x", `[["\u0000"]]`),
		"raw control characters":  "{\"id\":\"a\nb\"}",
		"nested without end":      strings.Repeat("[", 60_000),
		"nested objects":          strings.Repeat(`{"a":`, 12_000),
		"nested too deep, closed": strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000),
		"UTF-16":                  "{\x00}\x00",
		"gzip":                    "\x1f\x8b\x08\x00",
	} {
		t.Run(name, func(t *testing.T) {
			a := w.do("PUT", "/order", body)
			a.wants(t, MalformedRequest)
			if len(a.problem.Errors) != 0 {
				t.Errorf("%s", a.body)
			}
		})
	}
	if log := w.log.String(); log != "" {
		t.Errorf("logged: %s", log)
	}
}

func TestEverythingThatIsWrongIsToldAtOnce(t *testing.T) {
	w := bodyWorld(t, Config{})
	long := strings.Repeat("n", 100)
	for name, step := range map[string]struct {
		body string
		want []string
	}{
		"no members":              {`{}`, []string{"/id", "/items", "/ref"}},
		"no object":               {`[]`, []string{""}},
		"a string":                {`"x"`, []string{""}},
		"null":                    {`null`, []string{""}},
		"wrong types":             {`{"id":1,"colour":null,"ref":{},"gift":"true","ship_to":[],"items":{}}`, []string{"/colour", "/gift", "/id", "/items", "/ref", "/ship_to"}},
		"null everywhere":         {`{"id":null,"colour":null,"ref":null,"gift":null,"ship_to":null,"items":null}`, []string{"/colour", "/gift", "/id", "/items", "/ref", "/ship_to"}},
		"unknown members":         {anOrder("x", "1", "y", "2"), []string{"/x", "/y"}},
		"unknown in items":        {anOrder("items", `[{"quantity":1,"x":2},{"quantity":0,"y":[]}]`), []string{"/items/0/x", "/items/1/quantity", "/items/1/y"}},
		"items that are none":     {anOrder("items", `[1,null]`), []string{"/items/0", "/items/1"}},
		"too few":                 {anOrder("items", `[]`), []string{"/items"}},
		"too many":                {anOrder("items", `[{},{},{}]`), []string{"/items"}},
		"names that need escapes": {anOrder("a/b", "1", "c~d", "1", "", "", "e f", "1"), []string{"/a~1b", "/c~0d", "/e f"}},
		"an empty name":           {`{"":1,` + anOrder()[1:], []string{"/"}},
		"a long name":             {anOrder(long, "1"), []string{"/" + long[:64]}},
		"case counts":             {anOrder("id", "", "ID", `"a"`), []string{"/ID", "/id"}},
		"an id with a blank":      {anOrder("id", `"a b"`), []string{"/id"}},
		"an id with a newline":    {anOrder("id", `"a\n"`), []string{"/id"}},
		"an empty id":             {anOrder("id", `""`), []string{"/id"}},
		"a long id":               {anOrder("id", `"`+long+`"`), []string{"/id"}},
		"an id in Greek":          {anOrder("id", `"α"`), []string{"/id"}},
		"a value of no list":      {anOrder("colour", `"Red"`), []string{"/colour"}},
		"a rule below":            {anOrder("ship_to", `{"country":"de"}`), []string{"/ship_to/country"}},
		"missing below":           {anOrder("ship_to", `{}`), []string{"/ship_to/country"}},
	} {
		t.Run(name, func(t *testing.T) {
			a := w.do("PUT", "/order", step.body)
			a.wants(t, ValidationFailed)
			var got []string
			for _, e := range a.problem.Errors {
				got = append(got, e.Pointer)
				if e.Detail == "" {
					t.Errorf("%s says nothing", e.Pointer)
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(step.want, got); diff != "" {
				t.Errorf("pointers (-want +got):\n%s", diff)
			}
		})
	}
}

func TestIntegersAreWrittenAsIntegers(t *testing.T) {
	w := bodyWorld(t, Config{})
	quantity := func(text string) string { return anOrder("items", `[{"quantity":`+text+`}]`) }
	for _, text := range []string{"0", "1001", "-1", "1.0", "1e2", "1E0", "0.5", "-0", `"1"`, "true", "null", "[1]",
		"9007199254740992", "9223372036854775808", "1e400", strings.Repeat("9", 1000)} {
		a := w.do("PUT", "/order", quantity(text))
		a.wants(t, ValidationFailed)
		if len(a.problem.Errors) != 1 || a.problem.Errors[0].Pointer != "/items/0/quantity" {
			t.Errorf("%.20s: %s", text, a.body)
		}
	}
	for _, text := range []string{"-1", "1.5", "1e2", "9007199254740992", "-0", "true", "[]", "null", strings.Repeat("1", 17)} {
		w.do("PUT", "/order", anOrder("ref", text)).wants(t, ValidationFailed)
	}
	for _, body := range []string{quantity("1"), quantity("1000"), anOrder("ref", "0"), anOrder("ref", "9007199254740991"), anOrder("ref", `"o-1"`),
		anOrder("version", `{"any":["thing"]}`), anOrder("gift", "true", "colour", `"blue"`, "ship_to", `{"country":"DE"}`), " \n" + anOrder() + "\r\n\t "} {
		if a := w.do("PUT", "/order", body); a.code != 204 {
			t.Errorf("%s: %d %s", body, a.code, a.body)
		}
	}
}

// A problem never repeats what was sent, but for the names of members.
func TestProblemsDoNotRepeatValues(t *testing.T) {
	w := bodyWorld(t, Config{})
	const secret = "S3CRET"
	for _, body := range []string{
		anOrder("id", `"`+secret+` "`), anOrder("ref", `"`+secret+` "`), anOrder("colour", `"`+secret+`"`), anOrder("x", `"`+secret+`"`),
		anOrder("gift", `"`+secret+`"`), anOrder("items", `"`+secret+`"`), anOrder("ship_to", `{"country":"`+secret+`"}`), secret, `{"id":"` + secret,
		`{"` + secret + `":1,"` + secret + `":2}`,
	} {
		if a := w.do("PUT", "/order", body); a.code < 400 || a.code >= 500 || strings.Contains(a.body, secret) {
			t.Errorf("%s: %d %s", body, a.code, a.body)
		}
	}
	for _, path := range []string{"/" + secret, "/problems/" + secret, "/order/" + secret, "/order?" + secret} {
		if a := w.do("GET", path, ""); (a.code != 404 && a.code != 405) || strings.Contains(a.body, secret) {
			t.Errorf("%s: %d %v %s", path, a.code, a.header, a.body)
		}
	}
	if a := w.do("PUT", "/order", anOrder(), "Content-Type", secret); a.code != 415 || strings.Contains(a.body, secret) {
		t.Errorf("%d %s", a.code, a.body)
	}
}

func TestOnlyJSONIsRead(t *testing.T) {
	w := bodyWorld(t, Config{})
	for _, media := range []string{"", "text/plain", "application/xml", "application/x-www-form-urlencoded", "application/json-patch+json",
		"application", "application/json; charset", "application/json, text/plain", "*/*", "; =", "application/json; a=1; a=2"} {
		w.do("PUT", "/order", anOrder(), "Content-Type", media).wants(t, UnsupportedMedia)
	}
	for _, media := range []string{"application/json", "Application/JSON", "application/json;charset=utf-8", "application/json ; charset=\"utf-8\""} {
		if a := w.do("PUT", "/order", anOrder(), "Content-Type", media); a.code != 204 {
			t.Errorf("%s: %d %s", media, a.code, a.body)
		}
	}
}

func TestABodyIsAsLargeAsAllowed(t *testing.T) {
	w := bodyWorld(t, Config{})
	const limit = 64 << 10
	exact := anOrder() + strings.Repeat(" ", limit-len(anOrder()))
	if a := w.do("PUT", "/order", exact); a.code != 204 {
		t.Errorf("%d bytes: %d %s", len(exact), a.code, a.body)
	}
	w.do("PUT", "/order", exact+" ").wants(t, PayloadTooLarge)
	// A body that does not say how long it is.
	a, err := w.try("PUT", "/order", struct{ *strings.Reader }{strings.NewReader(exact + strings.Repeat("x", 100_000))})
	if err != nil {
		t.Fatal(err)
	}
	a.wants(t, PayloadTooLarge)
}
