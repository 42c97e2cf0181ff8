package challenge

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"converge/lab/history"
)

// flaky is an identity service that sometimes answers 503 after it has committed, sometimes before, and
// sometimes drops the connection.
type flaky struct {
	mu       sync.Mutex
	n        int
	versions map[string]int64
	commits  map[string]int // of each user and version
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := r.URL.Path[len("/profiles/"):]
	if r.Method == http.MethodGet {
		if f.versions[id] == 0 {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("ETag", fmt.Sprintf(`"%d"`, f.versions[id]))
		fmt.Fprintf(w, `{"version":%d}`, f.versions[id])
		return
	}
	f.n++
	if f.n%7 == 3 {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	var body profile
	fits := r.Header.Get("If-Match") == fmt.Sprintf(`"%d"`, f.versions[id]) || f.versions[id] == 0 && r.Header.Get("If-None-Match") == "*"
	if !fits || json.NewDecoder(r.Body).Decode(&body) != nil {
		w.WriteHeader(http.StatusPreconditionFailed)
		return
	}
	f.versions[id]++
	f.commits[fmt.Sprintf("%s/%d", id, f.versions[id])]++
	switch f.n % 7 {
	case 5:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case 6:
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("ETag", fmt.Sprintf(`"%d"`, f.versions[id]))
	fmt.Fprintf(w, `{"version":%d}`, f.versions[id])
}

// A change that is recorded as acknowledged must have been committed, and none may be recorded as
// refused that was: the judge builds on nothing else.
func TestWhatIsRecordedAsAcknowledgedWasCommitted(t *testing.T) {
	f := &flaky{versions: map[string]int64{}, commits: map[string]int{}}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	var writes []history.Write
	p := newPopulation(server.URL, "u", usersAtLeast, 1, clock{}, func(w history.Write) { writes = append(writes, w) })
	p.send(t.Context(), 1000, 500*time.Millisecond)
	f.mu.Lock() // a handler that dropped its connection may still be on its way out
	defer f.mu.Unlock()

	outcomes, acked := map[history.Outcome]int{}, map[string]bool{}
	for _, w := range writes {
		outcomes[w.Outcome]++
		if w.Outcome == history.OK {
			acked[fmt.Sprintf("%s/%d", w.UserID, w.Version)] = true
		}
	}
	for change := range acked {
		if f.commits[change] != 1 {
			t.Errorf("%s is recorded as acknowledged, and was committed %d times", change, f.commits[change])
		}
	}
	open := map[string]bool{} // unknown to the end: nobody looked afterwards
	for _, u := range p.users {
		if u.unsure != nil {
			open[fmt.Sprintf("%s/%d", u.id, u.unsure.Version)] = true
		}
	}
	for change := range f.commits {
		if !acked[change] && !open[change] {
			t.Errorf("%s was committed, and is not recorded as acknowledged", change)
		}
	}
	if outcomes[history.Unknown] < 100 || outcomes[history.OK] < 300 {
		t.Errorf("outcomes are %v: the test didn't test", outcomes)
	}
}

func TestSomeUsersChangeFarMoreOftenThanOthers(t *testing.T) {
	p := newPopulation("", "u", 200, 1, clock{}, nil)
	drawn := map[int]int{}
	for range 6000 {
		index, _ := p.take()
		p.giveBack(index)
		drawn[index]++
	}
	if drawn[0] < 5*drawn[150] || len(drawn) < 180 {
		t.Errorf("the first of %d users changed %d times, a late one %d times", len(drawn), drawn[0], drawn[150])
	}
}
