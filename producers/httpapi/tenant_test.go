package httpapi

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
)

func tokens(t testing.TB, lines ...string) Tokens {
	t.Helper()
	read, err := ReadTokens(strings.NewReader(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return read
}

// whoami says whose a request is.
func whoami(w http.ResponseWriter, r *http.Request) error {
	return Response{Status: 200, Body: []byte(`"` + Tenant(r.Context()) + `"`)}.Write(w)
}

// Nothing is told to who has no token: not what there is, and not what would be wrong.
func TestWithoutATokenNothingIsTold(t *testing.T) {
	w := newWorld(t, Config{Tokens: tokens(t, "t-1 acme", "t-2 globex")})
	w.api.Handle("GET /me", whoami)
	w.api.HandlePublic("GET /same/{id}", whoami)
	for name, headers := range map[string][]string{
		"none":            nil,
		"blank":           {"Authorization", " "},
		"a scheme alone":  {"Authorization", "Bearer"},
		"a blank token":   {"Authorization", "Bearer  "},
		"an unknown one":  {"Authorization", "Bearer t-3"},
		"one that begins": {"Authorization", "Bearer t-"},
		"one in capitals": {"Authorization", "Bearer T-1"},
		"another scheme":  {"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("acme:t-1"))},
		"another, though": {"Authorization", "Token t-1"},
		"no scheme":       {"Authorization", "t-1"},
		"two tokens":      {"Authorization", "Bearer t-1 t-2"},
		"two headers":     {"Authorization", "Bearer t-1", "Authorization", "Bearer t-1"},
		"two, one good":   {"Authorization", "Bearer t-3", "Authorization", "Bearer t-1"},
		"a list":          {"Authorization", "Bearer t-1, Bearer t-2"},
		"the tenant":      {"Authorization", "Bearer acme"},
		"in the query":    {"X-Authorization", "Bearer t-1"},
	} {
		for _, target := range []string{"GET /me", "HEAD /me", "POST /me", "GET /nothing", "OPTIONS /me", "POST /problems/internal", "GET /me?access_token=t-1"} {
			method, path, _ := strings.Cut(target, " ")
			a := w.do(method, path, "", append([]string{"Origin", "https://evil.example"}, headers...)...)
			if method == "HEAD" {
				if a.code != 401 {
					t.Errorf("%s: %s: %d", name, target, a.code)
				}
			} else {
				a.wants(t, Unauthorized)
			}
			if got := a.header.Get("WWW-Authenticate"); got != `Bearer realm="converge"` {
				t.Errorf("%s: %s: WWW-Authenticate is %q", name, target, got)
			}
			if a.header.Get("Allow") != "" || strings.Contains(a.body, "t-1") || strings.Contains(a.body, "t-3") {
				t.Errorf("%s: %s: %v %s", name, target, a.header, a.body)
			}
		}
		for _, path := range []string{"/problems/internal", "/same/1"} {
			if a := w.do("GET", path, "", headers...); a.code != 200 {
				t.Errorf("%s: GET %s: %d %s", name, path, a.code, a.body)
			}
		}
	}
	for _, step := range []struct{ given, tenant string }{{"Bearer t-1", "acme"}, {"bearer t-2", "globex"}, {"BEARER   t-1", "acme"}} {
		if a := w.do("GET", "/me", "", "Authorization", step.given); a.code != 200 || a.body != `"`+step.tenant+`"` {
			t.Errorf("%s: %d %s", step.given, a.code, a.body)
		}
	}
	w.do("GET", "/nothing", "", "Authorization", "Bearer t-1").wants(t, NotFound)
	if a := w.do("GET", "/same/1", "", "Authorization", "Bearer t-2"); a.body != `"globex"` {
		t.Errorf("%s", a.body)
	}
	if log := w.log.String(); log != "" {
		t.Errorf("logged: %s", log)
	}
}

// Who asks for tokens need not care for names that point here: a page that rebinds its own has no token.
func TestWithTokensEveryHostIsAnswered(t *testing.T) {
	for name, step := range map[string]struct {
		cfg     Config
		host    string
		headers []string
		code    int
	}{
		"tokens, another host":     {Config{Tokens: tokens(t, "t-1 acme")}, "shop.example", []string{"Authorization", "Bearer t-1"}, 204},
		"tokens, none sent":        {Config{Tokens: tokens(t, "t-1 acme")}, "shop.example", nil, 401},
		"tokens, another origin":   {Config{Tokens: tokens(t, "t-1 acme")}, "shop.example", []string{"Authorization", "Bearer t-1", "Origin", "https://evil.example"}, 403},
		"no tokens, another host":  {Config{}, "shop.example", nil, 403},
		"no tokens, a token comes": {Config{}, "shop.example", []string{"Authorization", "Bearer t-1"}, 403},
		"no tokens, let in":        {Config{AllowRemote: true}, "shop.example", nil, 204},
		"open, a token comes":      {Config{}, "localhost", []string{"Authorization", "Bearer t-1"}, 204},
	} {
		t.Run(name, func(t *testing.T) {
			api, err := New(step.cfg)
			if err != nil {
				t.Fatal(err)
			}
			api.Handle("POST /things", nothing)
			r := httptest.NewRequest("POST", "/things", nil)
			r.Host = step.host
			for i := 0; i < len(step.headers); i += 2 {
				r.Header.Add(step.headers[i], step.headers[i+1])
			}
			rec := httptest.NewRecorder()
			if api.ServeHTTP(rec, r); rec.Code != step.code {
				t.Errorf("got %d %s, want %d", rec.Code, rec.Body, step.code)
			}
		})
	}
}

// A key is its tenant's: another's request with it is a request like any other.
func TestTenantsDoNotMeetInAKey(t *testing.T) {
	pool := openPool(t, 4)
	w := newWorld(t, Config{Tokens: tokens(t, "t-1 acme", "t-1b acme", "t-2 globex")})
	w.api.Handle("POST /charges", w.api.Idempotent(pool, "charge", func(ctx context.Context, tx pgx.Tx, r *http.Request, body *Body) (Response, error) {
		response, err := charge(ctx, tx, r, body)
		if err != nil {
			return Response{}, err
		}
		response.Header["Location"] = "/charges/" + Own(r.Context(), "1")
		return response, nil
	}))
	post := func(token, body string) answer {
		return w.do("POST", "/charges", body, "Idempotency-Key", "k", "Authorization", "Bearer "+token)
	}
	if a := post("t-1", `{"amount":5}`); a.code != 201 {
		t.Fatalf("%d %s", a.code, a.body)
	}
	if a := post("t-2", `{"amount":6}`); a.code != 201 || a.header.Get("Location") != "/charges/globex/1" {
		t.Errorf("another tenant: %d %v %s", a.code, a.header, a.body)
	}
	if a := post("t-1b", `{"amount":5}`); a.code != 200 || a.header.Get("Location") != "/charges/acme/1" {
		t.Errorf("another token of the tenant: %d %v %s", a.code, a.header, a.body)
	}
	post("t-2", `{"amount":5}`).wants(t, KeyReused)
	if _, err := pool.Exec(t.Context(), "UPDATE idempotency_keys SET created_at = now() - interval '72 hours' WHERE tenant = 'acme'"); err != nil {
		t.Fatal(err)
	}
	if a := post("t-1", `{"amount":5}`); a.code != 410 || a.problem.Resource != "/charges/acme/1" {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := post("t-2", `{"amount":6}`); a.code != 200 {
		t.Errorf("%d %s", a.code, a.body)
	}
	if n := count(t, pool, "SELECT count(*) FROM charges"); n != 2 {
		t.Errorf("%d charges", n)
	}
}

func TestAFileOfTokensIsReadStrictly(t *testing.T) {
	good := tokens(t, "# staff", "", "  t-1\tacme ", "#t-9 nobody", "t-2 globex\r", "t-3 acme")
	if !good.Required() || len(good.tenants) != 3 {
		t.Errorf("%d tokens", len(good.tenants))
	}
	if (Tokens{}).Required() {
		t.Error("no tokens are required")
	}
	for name, step := range map[string]struct{ text, says string }{
		"nothing":            {"", "there is no token in it"},
		"comments":           {"# a\n\n", "there is no token in it"},
		"no tenant":          {"t-1 acme\nS3CRET\n", "line 2 is not TOKEN TENANT"},
		"too much":           {"S3CRET acme # staff", "line 1 is not TOKEN TENANT"},
		"a tenant with /":    {"S3CRET a/b", "line 1 is not TOKEN TENANT"},
		"a token twice":      {"S3CRET acme\n# x\nS3CRET globex", "line 3 has a token that stands above already"},
		"a line without end": {"S3CRET acme\n" + strings.Repeat("x", 1<<17), "reading tokens: "},
	} {
		read, err := ReadTokens(strings.NewReader(step.text))
		if err == nil || !strings.Contains(err.Error(), step.says) || strings.Contains(err.Error(), "S3CRET") || read.Required() {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAStoredNameIsItsTenantsAlone(t *testing.T) {
	as := func(tenant string) context.Context { return context.WithValue(t.Context(), tenantKey{}, tenant) }
	for _, step := range []struct{ tenant, id, stored string }{{"", "u-1", "u-1"}, {"acme", "u-1", "acme/u-1"}, {"u-1", "u-1", "u-1/u-1"}} {
		stored := Own(as(step.tenant), step.id)
		if diff := cmp.Diff([]string{step.stored, step.tenant, step.id}, []string{stored, TenantOf(stored), Bare(stored)}); diff != "" {
			t.Error(diff)
		}
		if !Stored.Valid(stored) {
			t.Errorf("%s is no stored name", stored)
		}
		for _, tenant := range []string{"", "acme", "u-1", "globex"} {
			if owns := Owns(as(tenant), stored); owns != (tenant == step.tenant) {
				t.Errorf("%q owns %s: %v", tenant, stored, owns)
			}
		}
	}
	for _, name := range []string{"", "/", "/u-1", "acme/", "a/b/c", "a b", "acme/u 1", "u-1\n", strings.Repeat("x", 65)} {
		if Stored.Valid(name) {
			t.Errorf("%q is a stored name", name)
		}
	}
}
