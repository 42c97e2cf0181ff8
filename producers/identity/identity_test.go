package identity

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/producers/httpapi"
	"converge/producers/outbox"
	"converge/schemas"
)

// world is Identity on a real socket and a real database.
type world struct {
	t     *testing.T
	pool  *pgxpool.Pool
	url   string // of the database, with the rights of its owner
	base  string
	codec *schemas.Codec
	api   *httpapi.API
}

func newWorld(t *testing.T, tokens ...string) *world {
	t.Helper()
	cfg := httpapi.Config{}
	if len(tokens) > 0 {
		var err error
		if cfg.Tokens, err = httpapi.ReadTokens(strings.NewReader(strings.Join(tokens, "\n"))); err != nil {
			t.Fatal(err)
		}
	}
	url := pgtest.Database(t, "identity", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, database.Module{Service: "identity", Sets: []database.Set{
			{Name: "outbox", FS: outbox.Migrations}, {Name: "identity", FS: Migrations}}})
	})
	pool, err := database.Open(t.Context(), url, "identity", 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	codec := schemas.NewCodec(schemas.JSON, schemas.IDs{})
	api, err := httpapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	New(Config{Pool: pool, Outbox: outbox.New(codec)}).Routes(api)
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	return &world{t, pool, url, server.URL, codec, api}
}

type answer struct {
	code    int
	etag    string
	header  http.Header
	body    string
	profile profile
	problem httpapi.Problem
}

func (w *world) try(method, path, body string, headers ...string) (answer, error) {
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.base+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	if method == "PATCH" {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return answer{}, err
	}
	a := answer{code: res.StatusCode, etag: res.Header.Get("ETag"), header: res.Header, body: string(raw)}
	switch {
	case len(raw) == 0:
	case res.StatusCode >= 400:
		err = json.Unmarshal(raw, &a.problem)
	default:
		err = json.Unmarshal(raw, &a.profile)
	}
	return a, err
}

func (w *world) do(method, path, body string, headers ...string) answer {
	w.t.Helper()
	a, err := w.try(method, path, body, headers...)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// said returns what the outbox holds, each event with what it announces.
func (w *world) said() []schemas.ProfileUpdated {
	w.t.Helper()
	rows, err := w.pool.Query(w.t.Context(), `
SELECT topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload
FROM outbox
ORDER BY seq`)
	if err != nil {
		w.t.Fatal(err)
	}
	type row struct {
		Topic, AggregateType, AggregateID string
		AggregateVersion                  int64
		EventType, ContentType            string
		Payload                           []byte
	}
	said, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		w.t.Fatal(err)
	}
	var events []schemas.ProfileUpdated
	for _, r := range said {
		var p schemas.ProfileUpdated
		if err := w.codec.Decode(w.t.Context(), r.EventType, r.ContentType, r.Payload, &p); err != nil {
			w.t.Fatal(err)
		}
		if r.Topic != "identity" || r.AggregateType != "profile" || r.AggregateID != p.UserID || r.AggregateVersion != p.Version || r.EventType != "ProfileUpdated" {
			w.t.Errorf("the row %+v announces %+v", r, p)
		}
		events = append(events, p)
	}
	return events
}

// versions returns which version of whom was announced.
func (w *world) versions() (said []string) {
	w.t.Helper()
	for _, p := range w.said() {
		said = append(said, fmt.Sprintf("%s v%d", p.UserID, p.Version))
	}
	return said
}

func content1(email, name string) string {
	return fmt.Sprintf(`{"email":%q,"display_name":%q}`, email, name)
}

const (
	ada  = `{"email":"ada@example.org","display_name":"Ada","address":"1 Main St","marketing_opt_in":true}`
	ada2 = `{"email":"ada@example.org","display_name":"Countess"}`
)

func TestAProfileIsCreatedReadAndChanged(t *testing.T) {
	w := newWorld(t)
	created := w.do("PUT", "/profiles/u-1", ada, "If-None-Match", "*")
	if created.code != 201 || created.etag != `"1"` {
		t.Fatalf("%d %s %s", created.code, created.etag, created.body)
	}
	read := w.do("GET", "/profiles/u-1", "")
	if read.code != 200 || read.etag != `"1"` || read.body != created.body {
		t.Errorf("%d %s\nread    %s\ncreated %s", read.code, read.etag, read.body, created.body)
	}
	for _, tags := range []string{`"1"`, `W/"1"`, `*`, `"0", "1"`} {
		if a := w.do("GET", "/profiles/u-1", "", "If-None-Match", tags); a.code != 304 || a.body != "" || a.etag != `"1"` {
			t.Errorf("%s: %d %s", tags, a.code, a.body)
		}
	}
	if a := w.do("HEAD", "/profiles/u-1", ""); a.code != 200 || a.etag != `"1"` {
		t.Errorf("HEAD: %d %s", a.code, a.etag)
	}
	changed := w.do("PUT", "/profiles/u-1", ada2, "If-Match", `"1"`)
	if changed.code != 200 || changed.etag != `"2"` {
		t.Fatalf("%d %s %s", changed.code, changed.etag, changed.body)
	}
	if a := w.do("GET", "/profiles/u-1", "", "If-None-Match", `"1"`); a.code != 200 || a.body != changed.body {
		t.Errorf("%d %s", a.code, a.body)
	}
	// What is left out is its default again, and what was read can be sent back as it is.
	if p := changed.profile; p.Address != "" || p.MarketingOptIn || p.Version != 2 || p.UpdatedAt.Location() != time.UTC {
		t.Errorf("%+v", p)
	}
	var members map[string]any
	if err := json.Unmarshal([]byte(changed.body), &members); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"user_id", "version", "email", "display_name", "address", "marketing_opt_in", "updated_at"} {
		if _, ok := members[name]; !ok {
			t.Errorf("%s is not a member of %s", name, changed.body)
		}
		delete(members, name)
	}
	if len(members) != 0 {
		t.Errorf("unexpected: %v", members)
	}
	if a := w.do("PUT", "/profiles/u-1", changed.body, "If-Match", changed.etag); a.code != 200 || a.etag != `"3"` {
		t.Errorf("%d %s", a.code, a.body)
	}
	want := []schemas.ProfileUpdated{
		{UserID: "u-1", Version: 1, Email: "ada@example.org", DisplayName: "Ada", Address: "1 Main St", MarketingOptIn: true},
		{UserID: "u-1", Version: 2, Email: "ada@example.org", DisplayName: "Countess"},
		{UserID: "u-1", Version: 3, Email: "ada@example.org", DisplayName: "Countess"},
	}
	if diff := cmp.Diff(want, w.said()); diff != "" {
		t.Errorf("announced (-want +got):\n%s", diff)
	}
}

// A change goes through only from the version that the client names. Whatever does not leaves the profile
// and the outbox as they are.
func TestAProfileChangesOnlyFromTheVersionNamed(t *testing.T) {
	w := newWorld(t)
	w.do("PUT", "/profiles/u-1", ada, "If-None-Match", "*")
	w.do("PUT", "/profiles/u-1", ada2, "If-Match", `"1"`)
	before := w.do("GET", "/profiles/u-1", "")
	for _, step := range []struct {
		path, body string
		headers    []string
		code       int
		problem    string
		etag       string // of the version that is there, so that the client knows what it has missed
	}{
		{"/profiles/u-1", ada, nil, 428, httpapi.PreconditionRequired, ""},
		{"/profiles/u-2", ada, nil, 428, httpapi.PreconditionRequired, ""},
		{"/profiles/u-1", ada, []string{"If-None-Match", `"2"`}, 428, httpapi.PreconditionRequired, ""},
		{"/profiles/u-1", ada, []string{"If-None-Match", "*"}, 412, httpapi.PreconditionFailed, `"2"`},
		{"/profiles/u-1", ada2, []string{"If-None-Match", "*"}, 412, httpapi.PreconditionFailed, `"2"`},
		{"/profiles/u-1", ada, []string{"If-Match", `"1"`}, 412, httpapi.PreconditionFailed, `"2"`},
		{"/profiles/u-1", ada, []string{"If-Match", `"3"`}, 412, httpapi.PreconditionFailed, `"2"`},
		{"/profiles/u-1", ada, []string{"If-Match", `W/"2"`}, 412, httpapi.PreconditionFailed, `"2"`},
		{"/profiles/u-1", ada, []string{"If-Match", `2`}, 412, httpapi.PreconditionFailed, `"2"`},
		{"/profiles/u-1", ada, []string{"If-Match", `"2"`, "If-None-Match", "*"}, 412, httpapi.PreconditionFailed, `"2"`},
		{"/profiles/u-1", ada2, []string{"If-Match", `"1"`, "If-None-Match", "*"}, 412, httpapi.PreconditionFailed, `"2"`},
		{"/profiles/u-1", ada, []string{"If-Match", `"2"`, "If-None-Match", `"1", W/"2"`}, 412, httpapi.PreconditionFailed, `"2"`},
		{"/profiles/u-1", ada2, []string{"If-Match", `"1"`, "If-None-Match", `"2"`}, 412, httpapi.PreconditionFailed, `"2"`},
		{"/profiles/u-2", ada, []string{"If-Match", `"1"`}, 412, httpapi.PreconditionFailed, ""},
		{"/profiles/u-2", ada, []string{"If-Match", "*"}, 412, httpapi.PreconditionFailed, ""},
	} {
		a := w.do("PUT", step.path, step.body, step.headers...)
		if a.code != step.code || a.problem.Type != "/problems/"+step.problem || a.etag != step.etag {
			t.Errorf("%s %q: %d %s %s", step.path, step.headers, a.code, a.etag, a.body)
		}
	}
	if after := w.do("GET", "/profiles/u-1", ""); after.body != before.body {
		t.Errorf("%s became %s", before.body, after.body)
	}
	if a := w.do("PUT", "/profiles/u-1", ada, "If-Match", `"9", "2"`); a.code != 200 || a.etag != `"3"` {
		t.Errorf("a list: %d %s", a.code, a.body)
	}
	if a := w.do("PUT", "/profiles/u-1", ada2, "If-Match", "*"); a.code != 200 || a.etag != `"4"` {
		t.Errorf("any version: %d %s", a.code, a.body)
	}
	if diff := cmp.Diff([]string{"u-1 v1", "u-1 v2", "u-1 v3", "u-1 v4"}, w.versions()); diff != "" {
		t.Error(diff)
	}
}

// The reply to a PUT was lost: its retry finds the change done. A retry that would undo another's is stale.
func TestARetriedChangeIsFoundDone(t *testing.T) {
	w := newWorld(t)
	w.do("PUT", "/profiles/u-1", ada, "If-None-Match", "*")
	first := w.do("PUT", "/profiles/u-1", ada2, "If-Match", `"1"`)
	for range 2 {
		if again := w.do("PUT", "/profiles/u-1", ada2, "If-Match", `"1"`); again.code != 200 || again.body != first.body || again.etag != `"2"` {
			t.Errorf("%d %s", again.code, again.body)
		}
	}
	w.do("PUT", "/profiles/u-1", ada, "If-Match", `"2"`)
	w.do("PUT", "/profiles/u-1", ada2, "If-Match", `"3"`) // the same content, but others came between
	if again := w.do("PUT", "/profiles/u-1", ada2, "If-Match", `"1"`); again.code != 412 {
		t.Errorf("%d %s", again.code, again.body)
	}
	if diff := cmp.Diff([]string{"u-1 v1", "u-1 v2", "u-1 v3", "u-1 v4"}, w.versions()); diff != "" {
		t.Error(diff)
	}
}

func TestOfManyChangesFromOneVersionOneWins(t *testing.T) {
	w := newWorld(t)
	w.do("PUT", "/profiles/u-1", ada, "If-None-Match", "*")
	race := func(path string, headers ...string) (won string) {
		t.Helper()
		answers := make([]answer, 32)
		var g errgroup.Group
		for i := range answers {
			g.Go(func() (err error) {
				answers[i], err = w.try("PUT", path, content1(fmt.Sprintf("%s%d@example.org", path[len("/profiles/"):], i), fmt.Sprint("writer ", i)), headers...)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		codes := map[int]int{}
		for i, a := range answers {
			codes[a.code]++
			if a.code < 300 {
				won = fmt.Sprint("writer ", i)
			}
		}
		if codes[412] != 31 || codes[200]+codes[201] != 1 {
			t.Errorf("%v", codes)
		}
		return won
	}
	if won, a := race("/profiles/u-1", "If-Match", `"1"`), w.do("GET", "/profiles/u-1", ""); a.profile.DisplayName != won || a.profile.Version != 2 {
		t.Errorf("%s won, and there is %s", won, a.body)
	}
	if won, a := race("/profiles/u-2", "If-None-Match", "*"), w.do("GET", "/profiles/u-2", ""); a.profile.DisplayName != won || a.profile.Version != 1 {
		t.Errorf("%s won, and there is %s", won, a.body)
	}
	if diff := cmp.Diff([]string{"u-1 v1", "u-1 v2", "u-2 v1"}, w.versions()); diff != "" {
		t.Error(diff)
	}
}

// State and event commit together: what cannot be announced does not happen.
func TestAChangeThatCannotBeAnnouncedDoesNotHappen(t *testing.T) {
	w := newWorld(t)
	w.do("PUT", "/profiles/u-1", ada, "If-None-Match", "*")
	w.asOwner("ALTER TABLE identity.outbox_default ADD CONSTRAINT full_up CHECK (false) NOT VALID")
	if a := w.do("PUT", "/profiles/u-1", ada2, "If-Match", `"1"`); a.code != 500 || strings.Contains(a.body, "full_up") {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := w.do("PUT", "/profiles/u-2", content1("b@example.org", "B"), "If-None-Match", "*"); a.code != 500 {
		t.Errorf("%d %s", a.code, a.body)
	}
	w.asOwner("ALTER TABLE identity.outbox_default DROP CONSTRAINT full_up")
	if a := w.do("GET", "/profiles/u-1", ""); a.etag != `"1"` {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := w.do("GET", "/profiles/u-2", ""); a.code != 404 {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := w.do("PUT", "/profiles/u-1", ada2, "If-Match", `"1"`); a.code != 200 {
		t.Errorf("%d %s", a.code, a.body)
	}
}

func (w *world) asOwner(sql string) {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), w.url)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close(w.t.Context())
	if _, err := conn.Exec(w.t.Context(), sql); err != nil {
		w.t.Fatal(err)
	}
}

func TestAnEmailBelongsToOneProfile(t *testing.T) {
	w := newWorld(t)
	w.do("PUT", "/profiles/u-1", ada, "If-None-Match", "*")
	w.do("PUT", "/profiles/u-2", content1("b@example.org", "B"), "If-None-Match", "*")
	for _, step := range [][]string{{"/profiles/u-2", "If-Match", `"1"`}, {"/profiles/u-3", "If-None-Match", "*"}} {
		a := w.do("PUT", step[0], ada, step[1:]...)
		if a.code != 409 || a.problem.Type != "/problems/conflict" || strings.Contains(a.body, "ada@") || strings.Contains(a.body, "profiles_email_key") {
			t.Errorf("%q: %d %s", step, a.code, a.body)
		}
	}
	if diff := cmp.Diff([]string{"u-1 v1", "u-2 v1"}, w.versions()); diff != "" {
		t.Error(diff)
	}
}

// Two clients that swap addresses at the same time lock each other out in the database; one of them is
// begun anew, and both get an answer.
func TestAChangeThatLosesADeadlockIsBegunAnew(t *testing.T) {
	w := newWorld(t)
	w.do("PUT", "/profiles/u-1", content1("a@example.org", "A"), "If-None-Match", "*")
	w.do("PUT", "/profiles/u-2", content1("b@example.org", "B"), "If-None-Match", "*")
	other, err := pgx.Connect(t.Context(), w.url)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(context.WithoutCancel(t.Context()))
	exec := func(sql string) {
		t.Helper()
		if _, err := other.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec("SET deadlock_timeout = '1min'") // who looks first loses: not this one
	exec("BEGIN")
	exec("UPDATE identity.profiles SET email = 'c@example.org' WHERE user_id = 'u-2'")
	var a answer
	var g errgroup.Group
	g.Go(func() (err error) {
		a, err = w.try("PUT", "/profiles/u-1", content1("b@example.org", "A"), "If-Match", `"1"`)
		return err
	})
	awaitBlocked(t, w.url)
	exec("UPDATE identity.profiles SET display_name = 'X' WHERE user_id = 'u-1'") // returns once the PUT has lost
	exec("ROLLBACK")
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if a.code != 409 || a.problem.Type != "/problems/conflict" { // b@ is still the other's
		t.Errorf("%d %s", a.code, a.body)
	}
}

// awaitBlocked returns when a session of the database waits for another's lock.
func awaitBlocked(t *testing.T, url string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var blocked bool
		if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted AND a.datname = current_database())").Scan(&blocked); err != nil {
			t.Fatalf("nobody waits for a lock: %v", err)
		}
		if blocked {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func TestBadProfilesAreRefusedWithAllThatIsWrong(t *testing.T) {
	w := newWorld(t)
	long := strings.Repeat("x", 600)
	for name, step := range map[string]struct {
		body string
		want map[string]bool
	}{
		"nothing":     {`{}`, map[string]bool{"/email": true, "/display_name": true}},
		"wrong types": {`{"email":1,"display_name":[],"address":null,"marketing_opt_in":"yes"}`, map[string]bool{"/email": true, "/display_name": true, "/address": true, "/marketing_opt_in": true}},
		"ranges":      {`{"email":"ada","display_name":"","address":"` + long + `","role":"admin"}`, map[string]bool{"/email": true, "/display_name": true, "/address": true, "/role": true}},
		"two lines":   {`{"email":"a@b\nc","display_name":"a\nb"}`, map[string]bool{"/email": true, "/display_name": true}},
		"too long":    {`{"email":"a@` + long + `","display_name":"` + long + `"}`, map[string]bool{"/email": true, "/display_name": true}},
		"no object":   {`[]`, map[string]bool{"": true}},
	} {
		t.Run(name, func(t *testing.T) {
			a := w.do("PUT", "/profiles/u-1", step.body, "If-None-Match", "*")
			got := map[string]bool{}
			for _, e := range a.problem.Errors {
				got[e.Pointer] = true
			}
			if diff := cmp.Diff(step.want, got); a.code != 422 || diff != "" {
				t.Errorf("%d %s\n%s", a.code, a.body, diff)
			}
		})
	}
	for _, id := range []string{"a%20b", "%00", "%ff", strings.Repeat("x", 65), "%F0%9F%99%82", "a%2Fb", "'--"} {
		for _, method := range []string{"GET", "PUT"} {
			if a := w.do(method, "/profiles/"+id, ada, "If-None-Match", "*"); a.code != 404 || a.problem.Type != "/problems/not-found" {
				t.Errorf("%s %s: %d %s", method, id, a.code, a.body)
			}
		}
	}
	for _, etags := range []string{`"1"`, ""} {
		if a := w.do("GET", "/profiles/absent", "", "If-None-Match", etags); a.code != 404 || a.etag != "" {
			t.Errorf("%d %s", a.code, a.body)
		}
	}
	if said := w.versions(); said != nil {
		t.Errorf("announced %q", said)
	}
}

// Whatever characters a person has in the name come back as they were sent.
func TestNamesSurviveUnharmed(t *testing.T) {
	w := newWorld(t)
	for i, name := range []string{"Zoë", "山田 太郎", "🙂", "a\"b\\c", "<b>&amp;", "\u202eright to left", "e\u0301", "\\u0000", "' OR 1=1 --", strings.Repeat("ß", 200)} {
		sent, err := json.Marshal(map[string]string{"email": fmt.Sprintf("u%d@exämple.org", i), "display_name": name, "address": "line\none"})
		if err != nil {
			t.Fatal(err)
		}
		path := fmt.Sprintf("/profiles/u-%d", i)
		if a := w.do("PUT", path, string(sent), "If-None-Match", "*"); a.code != 201 {
			t.Errorf("%q: %d %s", name, a.code, a.body)
		}
		if a := w.do("GET", path, ""); a.profile.DisplayName != name || a.profile.Address != "line\none" {
			t.Errorf("%q: %s", name, a.body)
		}
	}
	for i, p := range w.said() {
		if got := w.do("GET", fmt.Sprintf("/profiles/u-%d", i), "").profile; p.DisplayName != got.DisplayName || p.Email != got.Email {
			t.Errorf("announced %+v of %+v", p, got)
		}
	}
}
