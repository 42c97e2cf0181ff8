package httpapi

import (
	"encoding/base64"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
)

// A token says one thing of one resource, to every process that has its key, and nothing when it was made by others.
func TestATokenIsGoodForItsResourceAlone(t *testing.T) {
	key := []byte(strings.Repeat("k", 32))
	a, b, stranger := newWorld(t, Config{TokenKey: key}).api, newWorld(t, Config{TokenKey: key}).api, newWorld(t, Config{}).api
	token := a.Token("orders/o-1", 7)
	ask := func(api *API, resource string, tokens ...string) (int64, error) {
		r := httptest.NewRequest("GET", "/", nil)
		for _, t := range tokens {
			r.Header.Add("Consistency-Token", t)
		}
		return api.ReadToken(r, resource)
	}
	for _, api := range []*API{a, b} {
		if version, err := ask(api, "orders/o-1", token); err != nil || version != 7 {
			t.Errorf("version %d, %v", version, err)
		}
	}
	if version, err := ask(a, "orders/o-1"); err != nil || version != 0 {
		t.Errorf("without a token: version %d, %v", version, err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		t.Fatal("a token is not base64url")
	}
	forged := func(i int, to byte) string {
		other := append([]byte{}, raw...)
		other[i] = to
		return base64.RawURLEncoding.EncodeToString(other)
	}
	for name, ask := range map[string]func() (int64, error){
		"of another resource":  func() (int64, error) { return ask(a, "orders/o-2", token) },
		"of a longer resource": func() (int64, error) { return ask(a, "orders/o-1", a.Token("orders/o-11", 7)) },
		"of another tenant's":  func() (int64, error) { return ask(a, "profiles/u-1", a.Token("profiles/t/u-1", 7)) },
		"of another kind":      func() (int64, error) { return ask(a, "profiles/o-1", token) },
		"with another key":     func() (int64, error) { return ask(stranger, "orders/o-1", token) },
		"of a higher version":  func() (int64, error) { return ask(a, "orders/o-1", forged(macSize, '9')) },
		"with a broken MAC":    func() (int64, error) { return ask(a, "orders/o-1", forged(0, raw[0]^1)) },
		"cut":                  func() (int64, error) { return ask(a, "orders/o-1", token[:20]) },
		"empty":                func() (int64, error) { return ask(a, "orders/o-1", "") },
		"padded":               func() (int64, error) { return ask(a, "orders/o-1", token+"=") },
		"no token":             func() (int64, error) { return ask(a, "orders/o-1", "7") },
		"sent twice":           func() (int64, error) { return ask(a, "orders/o-1", token, token) },
		"of version 0":         func() (int64, error) { return ask(a, "orders/o-1", a.Token("orders/o-1", 0)) },
	} {
		version, err := ask()
		var refusal *Error
		if !errors.As(err, &refusal) || refusal.Problem.Type != "/problems/invalid-token" || version != 0 {
			t.Errorf("a token %s: version %d, %v", name, version, err)
		}
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Consistency-Token", a.Token("profiles/t/u-1", 3))
	if id, version, err := a.ReadTokenOf(r, "profiles"); id != "t/u-1" || version != 3 || err != nil {
		t.Errorf("%q %d %v", id, version, err)
	}
	if _, _, err := a.ReadTokenOf(r, "orders"); err == nil {
		t.Error("a token of a profile is one of an order")
	}
}
