package httpapi

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"converge/internal/opshttp"
)

// following is an API over things in memory, for bubbles.
type following struct {
	*things
	api *API
}

func newFollowing(t *testing.T, cfg Config) *following {
	t.Helper()
	api, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := newThings()
	watch := newWatch(api, s.versions)
	api.follow("/things", Progress{Name: "thing", Find: s.find, P90: func() time.Duration { return 90 * time.Second }}, watch)
	api.Handle("GET /views/{id}/{version}", func(w http.ResponseWriter, r *http.Request) error { // of a read model
		version, err := strconv.ParseInt(r.PathValue("version"), 10, 64)
		if err != nil {
			return err
		}
		reached, err := watch.Reach(r, r.PathValue("id"), version, ReadPreference(r).Wait)
		if err == nil && !reached {
			err = Fail(ReadModelLagging, "")
		}
		return err
	})
	return &following{s, api}
}

// ask answers a request and says how long that took.
func (f *following) ask(ctx context.Context, method, path string, headers ...string) (*httptest.ResponseRecorder, time.Duration) {
	w := httptest.NewRecorder()
	began := time.Now()
	f.serve(ctx, w, method, path, headers...)
	return w, time.Since(began)
}

func (f *following) serve(ctx context.Context, w *httptest.ResponseRecorder, method, path string, headers ...string) {
	r := httptest.NewRequestWithContext(ctx, method, "http://localhost"+path, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	defer func() { _ = recover() }() // a client that left gets half an answer
	f.api.ServeHTTP(w, r)
}

func TestAStatusSaysWhenToAskAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFollowing(t, Config{})
		id := f.begun()
		for _, c := range []struct {
			age  time.Duration
			want string
		}{{0, "90"}, {1500 * time.Millisecond, "89"}, {time.Minute, "30"}, {time.Hour, "1"}} {
			f.known[id].CreatedAt = time.Now().Add(-c.age)
			for _, part := range []string{"", "/status"} {
				for _, method := range []string{"GET", "HEAD"} {
					w, _ := f.ask(t.Context(), method, "/things/"+id.String()+part)
					if w.Code != 200 || w.Header().Get("Retry-After") != c.want || w.Header().Get("Cache-Control") != "no-cache" || w.Header().Get("ETag") != `"1"` {
						t.Errorf("%s %s after %v: %d %v", method, part, c.age, w.Code, w.Header())
					}
				}
			}
		}
		f.enters(id, stateFailed)
		w, _ := f.ask(t.Context(), "GET", "/things/"+id.String()+"/status")
		if w.Code != 200 || w.Header().Get("Retry-After") != "" || !strings.Contains(w.Body.String(), `"problem":{"type":"/problems/timed-out","title":"It was not finished in time"}`) {
			t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
		}
	})
}

// The table of Prefer: wait. The thing has version 2 and gets version 3 after 10 s, where it says so.
func TestAPreferenceToWaitIsHonoured(t *testing.T) {
	for name, c := range map[string]struct {
		prefer, noneMatch string
		changes, terminal bool
		code              int
		after             time.Duration
		applied           string
	}{
		"no wish":                        {"", "", true, false, 200, 0, ""},
		"no wish, unchanged":             {"", `"2"`, true, false, 304, 0, ""},
		"a change":                       {"wait=20", "", true, false, 200, 10 * time.Second, "wait=20"},
		"a change from the version":      {"wait=20", `"2"`, true, false, 200, 10 * time.Second, "wait=20"},
		"a change from a weak tag":       {"wait=20", `W/"2"`, true, false, 200, 10 * time.Second, "wait=20"},
		"no change":                      {"wait=20", "", false, false, 200, 20 * time.Second, "wait=20"},
		"no change, and the version":     {"wait=20", `"2"`, false, false, 304, 20 * time.Second, "wait=20"},
		"too late a change":              {"wait=5", `"2"`, true, false, 304, 5 * time.Second, "wait=5"},
		"another version":                {"wait=20", `"1"`, true, false, 200, 0, "wait=20"},
		"more than the bound":            {"wait=3600", "", false, false, 200, 30 * time.Second, "wait=30"},
		"no time":                        {"wait=0", `"2"`, true, false, 304, 0, "wait=0"},
		"nonsense":                       {"wait=-1", "", true, false, 200, 0, ""},
		"at the end":                     {"wait=20", "", false, true, 200, 0, "wait=20"},
		"at the end, and the version":    {"wait=20", `"2"`, false, true, 304, 0, "wait=20"},
		"beside another, in other words": {`respond-async, WAIT="20"; x=y`, "", true, false, 200, 10 * time.Second, "wait=20"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFollowing(t, Config{})
				id := f.begun()
				second := "PAID"
				if c.terminal {
					second = stateCompleted
				}
				f.enters(id, second)
				if c.changes {
					time.AfterFunc(10*time.Second, func() { f.enters(id, "SHIPPED") })
				}
				headers := []string{"Prefer", c.prefer}
				if c.noneMatch != "" {
					headers = append(headers, "If-None-Match", c.noneMatch)
				}
				w, took := f.ask(t.Context(), "GET", "/things/"+id.String()+"/status", headers...)
				if w.Code != c.code || took < c.after || took > c.after+2*watchEvery || w.Header().Get("Preference-Applied") != c.applied {
					t.Errorf("%d after %v, %v", w.Code, took, w.Header())
				}
				version := `"2"`
				if c.after == 10*time.Second {
					version = `"3"`
				}
				if w.Header().Get("ETag") != version || (w.Code == 200) != strings.Contains(w.Body.String(), `"version":`+strings.Trim(version, `"`)) {
					t.Errorf("%v %s", w.Header(), w.Body)
				}
				time.Sleep(time.Minute) // what was to change later does
			})
		})
	}
}

func TestWhoWaitsLeavesRoomForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		f := newFollowing(t, Config{MaxInFlight: 1, MaxWaiting: 3, Registerer: registry})
		id := f.begun()
		path := "/things/" + id.String()
		ctx, leave := context.WithCancel(t.Context())
		go f.ask(ctx, "GET", path, "Prefer", "wait=30")
		synctest.Wait()
		go f.ask(ctx, "GET", path+"/events")
		synctest.Wait()
		view := "/views/" + id.String()
		go f.ask(ctx, "GET", view+"/2", "Prefer", "wait=30")
		synctest.Wait()
		for _, path := range []string{path, view + "/1"} {
			if w, _ := f.ask(t.Context(), "GET", path, "Prefer", "wait=0"); w.Code != 200 {
				t.Errorf("three wait and one asks: %d %s", w.Code, w.Body)
			}
		}
		for _, headers := range [][]string{{path, "Prefer", "wait=9"}, {path + "/events"}, {view + "/2", "Prefer", "wait=9"}} {
			w, took := f.ask(t.Context(), "GET", headers[0], headers[1:]...)
			if w.Code != 429 || w.Header().Get("Retry-After") != "1" || took != 0 || w.Header().Get("Content-Type") != "application/problem+json" {
				t.Errorf("one too many waits: %d %v %s", w.Code, w.Header(), w.Body)
			}
		}
		if n := testutil.ToFloat64(f.api.metrics.waiting); n != 3 {
			t.Errorf("the gauge says %v", n)
		}
		leave()
		synctest.Wait()
		if len(f.api.waiting) != 0 || len(f.api.slots) != 0 || testutil.ToFloat64(f.api.metrics.waiting) != 0 {
			t.Errorf("they left: %d wait, %d are processed", len(f.api.waiting), len(f.api.slots))
		}
		if w, _ := f.ask(t.Context(), "GET", path, "Prefer", "wait=1"); w.Code != 200 {
			t.Errorf("there is room again: %d", w.Code)
		}
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			for _, m := range family.GetMetric() { // how long they waited is not how long requests take
				if h := m.GetHistogram(); h.GetSampleSum() > 0.5 {
					t.Errorf("%s: %v s", family.GetName(), h.GetSampleSum())
				}
			}
		}
	})
}

// The table of a view's wait. The thing has version 2 and gets version 3 after 10 s, where it says so.
func TestAViewWaitsForItsVersion(t *testing.T) {
	for name, c := range map[string]struct {
		version, prefer string
		changes         bool
		code            int
		after           time.Duration
	}{
		"an older version":          {"1", "wait=20", false, 200, 0},
		"the version":               {"2", "wait=20", false, 200, 0},
		"the version, without time": {"2", "wait=0", false, 200, 0},
		"the next version":          {"3", "wait=20", true, 200, 10 * time.Second},
		"too late a version":        {"3", "wait=5", true, 503, 5 * time.Second},
		"the one after the next":    {"4", "wait=20", true, 503, 20 * time.Second},
		"no time":                   {"3", "wait=0", true, 503, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFollowing(t, Config{})
				id := f.begun()
				f.enters(id, "PAID")
				if c.changes {
					time.AfterFunc(10*time.Second, func() { f.enters(id, "SHIPPED") })
				}
				w, took := f.ask(t.Context(), "GET", "/views/"+id.String()+"/"+c.version, "Prefer", c.prefer)
				if w.Code != c.code || took < c.after || took > c.after+2*watchEvery {
					t.Errorf("%d after %v", w.Code, took)
				}
				time.Sleep(time.Minute) // what was to change later does
			})
		})
	}
}

func TestWhoWaitsIsToldThatTheDatabaseIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFollowing(t, Config{})
		id := f.begun()
		time.AfterFunc(3*time.Second, func() { f.fails(&pgconn.ConnectError{}) })
		for _, path := range []string{"/things/" + id.String(), "/views/" + id.String() + "/2"} { // waiting, and at once
			w, took := f.ask(t.Context(), "GET", path, "Prefer", "wait=20")
			if w.Code != 503 || w.Header().Get("Retry-After") != "1" || took > 4*time.Second {
				t.Errorf("%s: %d after %v: %s", path, w.Code, took, w.Body)
			}
		}
	})
}

func TestWhatIsNotThereIsNotFound(t *testing.T) {
	f := newFollowing(t, Config{})
	for _, id := range []string{uuid.NewString(), "42", "%00", strings.ToUpper(f.begun().String())} {
		for _, part := range []string{"", "/status", "/events"} {
			w, _ := f.ask(t.Context(), "GET", "/things/"+id+part, "Prefer", "wait=9", "Last-Event-ID", "1")
			if w.Code != 404 || w.Header().Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s%s: %d %s", id, part, w.Code, w.Body)
			}
		}
	}
}

// event is one that a client read.
type sseEvent struct{ ID, Name, Data string }

// parse reads a stream as a client does; comments are apart.
func parse(stream string) (events []sseEvent, comments []string) {
	for block := range strings.SplitSeq(stream, "\n\n") {
		var e sseEvent
		for line := range strings.SplitSeq(block, "\n") {
			name, value, _ := strings.Cut(line, ": ")
			switch name {
			case "id":
				e.ID = value
			case "event":
				e.Name = value
			case "data":
				e.Data = value
			case "":
				if value != "" {
					comments = append(comments, value)
				}
			}
		}
		if e.ID != "" {
			events = append(events, e)
		}
	}
	return events, comments
}

func ids(events []sseEvent) string {
	var list []string
	for _, e := range events {
		list = append(list, e.ID)
	}
	return strings.Join(list, " ")
}

// Whatever the moments of coming and of changes: each version is one event, with the status as it was.
func TestAStreamHasEveryVersionOnce(t *testing.T) {
	all := []string{"RESERVED", "PAID", "SHIPPED", stateCompleted} // after PENDING
	for batch := 1; batch <= len(all); batch++ {
		for before := 0; before <= len(all); before += batch {
			synctest.Test(t, func(t *testing.T) {
				f := newFollowing(t, Config{})
				id := f.begun()
				var want []string
				enter := func(states []string) {
					for _, state := range states { // one by one, to see what was shown in between
						f.enters(id, state)
						w, _ := f.ask(t.Context(), "GET", "/things/"+id.String()+"/status")
						want = append(want, w.Body.String())
					}
				}
				w, _ := f.ask(t.Context(), "GET", "/things/"+id.String()+"/status")
				want = append(want, w.Body.String())
				enter(all[:before])
				stream := httptest.NewRecorder()
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					f.serve(t.Context(), stream, "GET", "/things/"+id.String()+"/events")
				}()
				for at := before; at < len(all); at += batch {
					time.Sleep(time.Second)
					enter(all[at:min(at+batch, len(all))])
				}
				<-ended
				events, _ := parse(stream.Body.String())
				var got []string
				for _, e := range events {
					got = append(got, e.Data)
					if e.Name != "status" || !strings.Contains(e.Data, `"version":`+e.ID+`,`) {
						t.Errorf("%+v", e)
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%d at a time, %d before (-shown +streamed):\n%s", batch, before, diff)
				}
			})
		}
	}
}

func TestAStreamResumesWithoutGapOrDuplicate(t *testing.T) {
	for name, c := range map[string]struct {
		terminal bool
		last     string
		code     int
		want     string
	}{
		"first time":             {false, "", 200, "1 2 3"},
		"after the first":        {false, "1", 200, "2 3"},
		"after all there is":     {false, "3", 200, ""},
		"unreadable":             {false, "x", 200, "1 2 3"},
		"negative":               {false, "-1", 200, "1 2 3"},
		"too long for a number":  {false, strings.Repeat("9", 30), 200, "1 2 3"},
		"nobody has sent it":     {false, "99", 200, "1 2 3"},
		"over, first time":       {true, "", 200, "1 2 3 4"},
		"over, before the last":  {true, "3", 200, "4"},
		"over":                   {true, "4", 204, ""},
		"over, and beyond":       {true, "5", 204, ""},
		"over, and unreadable":   {true, "four", 200, "1 2 3 4"},
		"over, and the first":    {true, "1", 200, "2 3 4"},
		"over, and before first": {true, "0", 200, "1 2 3 4"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFollowing(t, Config{})
				id := f.begun()
				f.enters(id, "RESERVED", "PAID")
				if c.terminal {
					f.enters(id, stateCompleted)
				}
				ctx, leave := context.WithCancel(t.Context())
				stream := httptest.NewRecorder()
				headers := []string{}
				if c.last != "" {
					headers = []string{"Last-Event-ID", c.last}
				}
				head, took := f.ask(t.Context(), "HEAD", "/things/"+id.String()+"/events", headers...)
				if head.Code != c.code || took != 0 || head.Body.Len() != 0 || head.Header().Get("Cache-Control") != "no-cache" {
					t.Errorf("HEAD: %d after %v, %v %s", head.Code, took, head.Header(), head.Body)
				}
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					f.serve(ctx, stream, "GET", "/things/"+id.String()+"/events", headers...)
				}()
				synctest.Wait()
				events, _ := parse(stream.Body.String())
				if stream.Code != c.code || ids(events) != c.want {
					t.Errorf("%d, events %q, want %q", stream.Code, ids(events), c.want)
				}
				if c.code == 200 && (!stream.Flushed || stream.Header().Get("Content-Type") != "text/event-stream" || stream.Header().Get("X-Accel-Buffering") != "no") {
					t.Errorf("flushed %t, %v", stream.Flushed, stream.Header())
				}
				if c.terminal {
					<-ended
				}
				leave()
				<-ended
			})
		})
	}
}

func TestAQuietStreamBeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFollowing(t, Config{})
		id := f.begun()
		time.AfterFunc(70*time.Second, func() { f.enters(id, stateFailed) })
		w, took := f.ask(t.Context(), "GET", "/things/"+id.String()+"/events")
		events, comments := parse(w.Body.String())
		if ids(events) != "1 2" || len(comments) != 4 || took > 71*time.Second {
			t.Errorf("after %v: %s", took, w.Body)
		}
	})
}

// The stream ends whole, and tells the client to come back.
func TestAStreamEndsWhenTheDatabaseIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFollowing(t, Config{})
		id := f.begun()
		time.AfterFunc(3*time.Second, func() { f.fails(errors.New("away")) })
		w, took := f.ask(t.Context(), "GET", "/things/"+id.String()+"/events")
		if events, _ := parse(w.Body.String()); ids(events) != "1" || !strings.HasSuffix(w.Body.String(), "\nretry: 1000\n\n") || took > 4*time.Second {
			t.Errorf("after %v: %s", took, w.Body)
		}
	})
}

// A server that drains ends what waits, long before its patience ends: each gets the answer that it would get at
// the end. Whoever waited on would be cut off.
func TestADrainEndsWhatWaits(t *testing.T) {
	f := newFollowing(t, Config{})
	id := f.begun()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- opshttp.Serve(ctx, l, f.api, 15*time.Second) }()
	get := func(path string) *http.Response {
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+l.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Prefer", "wait=30")
		w, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			return nil
		}
		return w
	}
	stream := get("/things/" + id.String() + "/events") // its head is there at once
	waiting := map[string]int{"/things/" + id.String() + "/status": 200, "/views/" + id.String() + "/2": 503}
	var polled sync.WaitGroup
	for path, code := range waiting {
		polled.Go(func() {
			if w := get(path); w != nil {
				w.Body.Close()
				if w.StatusCode != code {
					t.Errorf("%s: %d", path, w.StatusCode)
				}
			}
		})
	}
	for len(f.api.waiting) < 1+len(waiting) {
		runtime.Gosched()
	}
	stop()
	text, err := io.ReadAll(stream.Body)
	stream.Body.Close()
	if err != nil || !strings.HasSuffix(string(text), ": this server stops: come back\nretry: 1000\n\n") {
		t.Errorf("%v %s", err, text)
	}
	polled.Wait()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}
