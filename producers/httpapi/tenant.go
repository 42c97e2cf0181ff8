package httpapi

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Tokens says which tenant a bearer token stands for (RFC 6750). It holds digests, not tokens: what is looked
// up takes as long for a token that is nearly right as for any other. The zero Tokens lets everybody in, as
// the tenant "".
type Tokens struct{ tenants map[[sha256.Size]byte]string }

// Required reports whether a request must bring a token.
func (t Tokens) Required() bool { return len(t.tenants) > 0 }

// ReadTokens reads lines of TOKEN TENANT; blank lines and those that begin with # are passed over. Errors name
// the line, never the token. A file without a token is an error: it would let everybody in.
func ReadTokens(file io.Reader) (Tokens, error) {
	t := Tokens{tenants: map[[sha256.Size]byte]string{}}
	lines := bufio.NewScanner(file)
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) != 2 || !ID.Valid(fields[1]) {
			return Tokens{}, fmt.Errorf("line %d is not TOKEN TENANT, the tenant of 1 to 64 characters out of A-Z a-z 0-9 _ . : -", n)
		}
		digest := sha256.Sum256([]byte(fields[0]))
		if _, taken := t.tenants[digest]; taken {
			return Tokens{}, fmt.Errorf("line %d has a token that stands above already", n)
		}
		t.tenants[digest] = fields[1]
	}
	if err := lines.Err(); err != nil {
		return Tokens{}, fmt.Errorf("reading tokens: %w", err)
	}
	if !t.Required() {
		return Tokens{}, errors.New("there is no token in it")
	}
	return t, nil
}

// tenant returns whom the request speaks for.
func (t Tokens) tenant(r *http.Request) (string, error) {
	if !t.Required() {
		return "", nil
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	tenant, known := t.tenants[sha256.Sum256([]byte(strings.TrimSpace(token)))]
	if !known || !strings.EqualFold(scheme, "Bearer") || len(r.Header.Values("Authorization")) != 1 {
		e := Fail(Unauthorized, "")
		e.Header = http.Header{"Www-Authenticate": {`Bearer realm="converge"`}}
		return "", e
	}
	return tenant, nil
}

type tenantKey struct{}

// Tenant returns whom a request speaks for; "" where no tokens are asked for.
func Tenant(ctx context.Context) string {
	tenant, _ := ctx.Value(tenantKey{}).(string)
	return tenant
}

// Own returns the name under which a tenant's resource is stored and told in events: TENANT/id, or the id alone
// for the tenant "". No id holds a slash, so tenants cannot meet.
func Own(ctx context.Context, id string) string {
	if tenant := Tenant(ctx); tenant != "" {
		return tenant + "/" + id
	}
	return id
}

// Owns reports whether a stored name is of the request's tenant.
func Owns(ctx context.Context, stored string) bool { return TenantOf(stored) == Tenant(ctx) }

// TenantOf returns whose a stored name is.
func TenantOf(stored string) string {
	tenant, _, owned := strings.Cut(stored, "/")
	if !owned {
		return ""
	}
	return tenant
}

// Bare returns the id in a stored name, as its tenant knows it.
func Bare(stored string) string {
	if _, id, owned := strings.Cut(stored, "/"); owned {
		return id
	}
	return stored
}

// Stored is the rule for names as [Own] makes them.
var Stored = Matching(`^([A-Za-z0-9_.:-]{1,64}/)?[A-Za-z0-9_.:-]{1,64}$`, "must be an id, with its tenant and a slash before it or without")
