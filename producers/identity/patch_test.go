package identity

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"converge/producers/httpapi"
)

func contentOf(p profile) content { return p.content() }

var adas = content{"ada@example.org", "Ada", "1 Main St", true}

func TestAPatchChangesTheMembersThatItNamesAndNoOthers(t *testing.T) {
	w := newWorld(t)
	w.do("PUT", "/profiles/u-1", ada, "If-None-Match", "*")
	want, version := adas, int64(1)
	for _, step := range []struct {
		body string
		edit func(*content)
	}{
		{`{"display_name":"Countess"}`, func(c *content) { c.displayName = "Countess" }},
		{`{"email":"a@example.org","address":"2 Main St"}`, func(c *content) { c.email, c.address = "a@example.org", "2 Main St" }},
		{`{"marketing_opt_in":false}`, func(c *content) { c.marketingOptIn = false }},
		{`{"marketing_opt_in":true,"address":null}`, func(c *content) { c.marketingOptIn, c.address = true, "" }},
		{`{"marketing_opt_in":null,"display_name":"Ada"}`, func(c *content) { c.marketingOptIn, c.displayName = false, "Ada" }},
		{`{"user_id":"u-9","version":99,"updated_at":null,"address":"x"}`, func(c *content) { c.address = "x" }},
	} {
		step.edit(&want)
		a := w.do("PATCH", "/profiles/u-1", step.body, "If-Match", httpapi.ETag(version))
		version++
		if a.code != 200 || a.etag != httpapi.ETag(version) || contentOf(a.profile) != want || a.profile.UserID != "u-1" {
			t.Errorf("%s: %d %s %s, want %+v", step.body, a.code, a.etag, a.body, want)
		}
		if got := w.do("GET", "/profiles/u-1", ""); got.body != a.body {
			t.Errorf("%s: answered %s, there is %s", step.body, a.body, got.body)
		}
	}
	said := w.said()
	if last := said[len(said)-1]; len(said) != 7 || last.Version != 7 || last.Email != "a@example.org" || last.Address != "x" || last.DisplayName != "Ada" || last.MarketingOptIn {
		t.Errorf("announced %+v", said)
	}
}

// What a patch leaves as it is, is no new version: nobody has anything to follow.
func TestAPatchThatChangesNothingMakesNoVersion(t *testing.T) {
	w := newWorld(t)
	first := w.do("PUT", "/profiles/u-1", ada, "If-None-Match", "*")
	for _, body := range []string{`{}`, `{"display_name":"Ada"}`, `{"version":7}`, ada} {
		if a := w.do("PATCH", "/profiles/u-1", body, "If-Match", `"1"`); a.code != 200 || a.body != first.body || a.etag != `"1"` {
			t.Errorf("%s: %d %s %s", body, a.code, a.etag, a.body)
		}
		if a := w.do("PATCH", "/profiles/u-1", body, "If-Match", `"2"`); a.code != 412 {
			t.Errorf("%s, stale: %d %s", body, a.code, a.body)
		}
	}
	if diff := cmp.Diff([]string{"u-1 v1"}, w.versions()); diff != "" {
		t.Error(diff)
	}
}

func TestBadPatchesAreRefusedWithAllThatIsWrong(t *testing.T) {
	w := newWorld(t)
	w.do("PUT", "/profiles/u-1", ada, "If-None-Match", "*")
	for body, want := range map[string][]string{
		`{"email":null,"display_name":null}`:                              {"/display_name", "/email"},
		`{"email":1,"display_name":[],"address":{},"marketing_opt_in":0}`: {"/address", "/display_name", "/email", "/marketing_opt_in"},
		`{"role":null,"emails":"x","address":null}`:                       {"/emails", "/role"},
		`{"email":"","display_name":""}`:                                  {"/display_name", "/email"},
		`[]`:                                                              {""},
		`null`:                                                            {""},
	} {
		for _, headers := range [][]string{{"If-Match", `"1"`}, {"If-Match", `"9"`}, nil} { // what is stale, or unconditional, is told later
			a := w.do("PATCH", "/profiles/u-1", body, headers...)
			got := map[string]bool{}
			for _, e := range a.problem.Errors {
				got[e.Pointer] = true
			}
			if diff := cmp.Diff(want, slices.Sorted(maps.Keys(got))); a.code != 422 || len(a.problem.Errors) != len(want) || diff != "" {
				t.Errorf("%s %q: %d %s\n%s", body, headers, a.code, a.body, diff)
			}
		}
	}
	for _, media := range []string{"application/json", "application/json-patch+json", "text/plain"} {
		req, err := http.NewRequestWithContext(t.Context(), "PATCH", w.base+"/profiles/u-1", strings.NewReader(`{}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", media)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 415 || res.Header.Get("Accept-Patch") != "application/merge-patch+json" {
			t.Errorf("%s: %d %v", media, res.StatusCode, res.Header)
		}
	}
	if a := w.do("PATCH", "/profiles/a%20b", `{}`, "If-Match", "*"); a.code != 404 {
		t.Errorf("%d %s", a.code, a.body)
	}
	if diff := cmp.Diff([]string{"u-1 v1"}, w.versions()); diff != "" {
		t.Error(diff)
	}
}

func TestAPatchNeedsTheVersionThatIsThere(t *testing.T) {
	w := newWorld(t)
	w.do("PUT", "/profiles/u-1", ada, "If-None-Match", "*")
	w.do("PUT", "/profiles/u-2", content1("b@example.org", "B"), "If-None-Match", "*")
	for _, step := range []struct {
		path, body string
		headers    []string
		code       int
		problem    string
		etag       string
	}{
		{"/profiles/u-1", `{"address":"x"}`, nil, 428, httpapi.PreconditionRequired, ""},
		{"/profiles/none", `{"address":"x"}`, nil, 428, httpapi.PreconditionRequired, ""},
		{"/profiles/u-1", `{"address":"x"}`, []string{"If-Match", `"2"`}, 412, httpapi.PreconditionFailed, `"1"`},
		{"/profiles/u-1", `{"address":"x"}`, []string{"If-Match", `W/"1"`}, 412, httpapi.PreconditionFailed, `"1"`},
		{"/profiles/u-1", `{"address":"x"}`, []string{"If-None-Match", "*"}, 412, httpapi.PreconditionFailed, `"1"`},
		{"/profiles/u-1", `{"address":"x"}`, []string{"If-Match", `"1"`, "If-None-Match", "*"}, 412, httpapi.PreconditionFailed, `"1"`},
		{"/profiles/none", `{"address":"x"}`, []string{"If-Match", `*`}, 412, httpapi.PreconditionFailed, ""},
		{"/profiles/none", `{"address":"x"}`, []string{"If-Match", `"1"`}, 412, httpapi.PreconditionFailed, ""},
		{"/profiles/none", content1("n@example.org", "N"), []string{"If-None-Match", "*"}, 404, httpapi.NotFound, ""},
		{"/profiles/u-1", `{"email":"b@example.org"}`, []string{"If-Match", `"1"`}, 409, httpapi.Conflict, ""},
	} {
		a := w.do("PATCH", step.path, step.body, step.headers...)
		if a.code != step.code || a.problem.Type != "/problems/"+step.problem || a.etag != step.etag {
			t.Errorf("%s %q: %d %s %s", step.path, step.headers, a.code, a.etag, a.body)
		}
	}
	if a := w.do("PATCH", "/profiles/u-1", `{"address":"x"}`, "If-Match", "*"); a.code != 200 || a.etag != `"2"` {
		t.Errorf("%d %s", a.code, a.body)
	}
	if diff := cmp.Diff([]string{"u-1 v1", "u-2 v1", "u-1 v2"}, w.versions()); diff != "" {
		t.Error(diff)
	}
}

// The reply to a PATCH was lost: its retry finds the change done. Where the version came from somebody else's
// change, also of a member that the patch does not name, the retry is stale.
func TestARetriedPatchIsFoundDone(t *testing.T) {
	w := newWorld(t)
	w.do("PUT", "/profiles/u-1", ada, "If-None-Match", "*")
	patch := func(body string, version int64, code int, etag string) {
		t.Helper()
		if a := w.do("PATCH", "/profiles/u-1", body, "If-Match", httpapi.ETag(version)); a.code != code || a.etag != etag {
			t.Errorf("%s from %d: %d %s %s", body, version, a.code, a.etag, a.body)
		}
	}
	patch(`{"display_name":"Countess","marketing_opt_in":null}`, 1, 200, `"2"`)
	for range 2 {
		patch(`{"display_name":"Countess","marketing_opt_in":null}`, 1, 200, `"2"`)
		patch(`{"marketing_opt_in":false,"display_name":"Countess","email":"ada@example.org"}`, 1, 200, `"2"`) // the same from there
		patch(`{"display_name":"Countess"}`, 1, 412, `"2"`)                                                    // would have left the other member
		patch(`{}`, 1, 412, `"2"`)
		patch(`{"display_name":"Ada","marketing_opt_in":null}`, 1, 412, `"2"`)
	}
	if a := w.do("PUT", "/profiles/u-1", `{"email":"ada@example.org","display_name":"Countess","address":"1 Main St"}`, "If-Match", `"1"`); a.code != 200 || a.etag != `"2"` {
		t.Errorf("a PUT of the same: %d %s", a.code, a.body)
	}
	patch(`{"address":"x"}`, 2, 200, `"3"`)
	patch(`{"display_name":"Countess","marketing_opt_in":null}`, 1, 412, `"3"`)
	if diff := cmp.Diff([]string{"u-1 v1", "u-1 v2", "u-1 v3"}, w.versions()); diff != "" {
		t.Error(diff)
	}
}

// Patches that all go out from the newest version they know, and go on when they are stale, lose nothing.
func TestPatchesOfDifferentMembersAllSurvive(t *testing.T) {
	w := newWorld(t)
	w.do("PUT", "/profiles/u-1", ada, "If-None-Match", "*")
	var g errgroup.Group
	for _, body := range []string{`{"email":"new@example.org"}`, `{"display_name":"New"}`, `{"address":"new"}`, `{"marketing_opt_in":false}`} {
		g.Go(func() error {
			for range 50 {
				read, err := w.try("GET", "/profiles/u-1", "")
				if err != nil {
					return err
				}
				a, err := w.try("PATCH", "/profiles/u-1", body, "If-Match", read.etag)
				if err != nil || a.code == 200 {
					return err
				}
				if a.code != 412 {
					return fmt.Errorf("%s: %d %s", body, a.code, a.body)
				}
			}
			return errors.New(body + " never got through")
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	got := w.do("GET", "/profiles/u-1", "").profile
	if want := (content{"new@example.org", "New", "new", false}); contentOf(got) != want || got.Version != 5 {
		t.Errorf("%+v", got)
	}
}

// Every change says by what token a reader can wait for it.
func TestAChangeReturnsATokenOfItsVersion(t *testing.T) {
	w := newWorld(t, "t-1 acme")
	auth := []string{"Authorization", "Bearer t-1"}
	for i, step := range []struct{ method, body, header, value string }{
		{"PUT", ada, "If-None-Match", "*"},
		{"PUT", ada2, "If-Match", `"1"`},
		{"PATCH", `{"address":"x"}`, "If-Match", `"2"`},
	} {
		want := w.api.Token("profiles/acme/u-1", int64(i+1))
		for range 2 { // the retry's is the same, but for a creation's, which is stale
			a := w.do(step.method, "/profiles/u-1", step.body, append(auth, step.header, step.value)...)
			if got := a.header.Get("Consistency-Token"); got != want && a.code < 300 || a.code < 300 != (got != "") {
				t.Errorf("%s: %d: the token is %q, want %q", step.method, a.code, got, want)
			}
		}
	}
	if a := w.do("GET", "/profiles/u-1", "", auth...); a.header.Get("Consistency-Token") != "" {
		t.Errorf("%v", a.header)
	}
}

// Two tenants have users of the same id, of the same address, and neither sees the other's.
func TestTenantsHaveProfilesOfTheirOwn(t *testing.T) {
	w := newWorld(t, "t-1 acme", "t-2 globex")
	acme, globex := []string{"Authorization", "Bearer t-1"}, []string{"Authorization", "Bearer t-2"}
	do := func(tenant []string, method, path, body string, headers ...string) answer {
		t.Helper()
		return w.do(method, path, body, append(slices.Clone(tenant), headers...)...)
	}
	if a := do(acme, "PUT", "/profiles/u-1", ada, "If-None-Match", "*"); a.code != 201 || a.profile.UserID != "u-1" {
		t.Fatalf("%d %s", a.code, a.body)
	}
	for _, method := range []string{"GET", "PUT", "PATCH"} {
		want := map[string]int{"GET": 404, "PUT": 412, "PATCH": 412}[method]
		if a := do(globex, method, "/profiles/u-1", map[string]string{"PUT": ada, "PATCH": `{}`}[method], "If-Match", "*"); a.code != want || a.etag != "" {
			t.Errorf("%s of another tenant's: %d %s %s", method, a.code, a.etag, a.body)
		}
	}
	for _, id := range []string{"acme%2Fu-1", "acme/u-1"} {
		if a := do(globex, "GET", "/profiles/"+id, ""); a.code != 404 {
			t.Errorf("%s: %d %s", id, a.code, a.body)
		}
	}
	if a := do(globex, "PUT", "/profiles/u-1", ada, "If-None-Match", "*"); a.code != 201 {
		t.Errorf("another tenant's user of the same address: %d %s", a.code, a.body)
	}
	if a := do(globex, "PUT", "/profiles/u-2", ada, "If-None-Match", "*"); a.code != 409 {
		t.Errorf("the same tenant's: %d %s", a.code, a.body)
	}
	if a := do(globex, "PATCH", "/profiles/u-1", `{"address":"x"}`, "If-Match", `"1"`); a.code != 200 || a.profile.UserID != "u-1" {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := do(acme, "GET", "/profiles/u-1", ""); a.code != 200 || a.profile.UserID != "u-1" || a.profile.Address != "1 Main St" {
		t.Errorf("%d %s", a.code, a.body)
	}
	if diff := cmp.Diff([]string{"acme/u-1 v1", "globex/u-1 v1", "globex/u-1 v2"}, w.versions()); diff != "" {
		t.Error(diff)
	}
}
