package httpapi

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
)

// things are resources in memory, and what was asked about them.
type things struct {
	mu    sync.Mutex
	known map[uuid.UUID]*Followed
	away  error // what is answered instead
	asked []int // of how many ids, question by question
	found int   // how often one was read
}

func newThings() *things { return &things{known: map[uuid.UUID]*Followed{}} }

func (s *things) versions(_ context.Context, ids []string) (map[string]int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, len(ids))
	versions := map[string]int64{}
	for _, id := range ids {
		if f := s.known[uuid.MustParse(id)]; f != nil {
			versions[id] = f.Now().Version
		}
	}
	return versions, s.away
}

func (s *things) find(_ context.Context, id uuid.UUID) (*Followed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found++
	f := s.known[id]
	if f == nil || s.away != nil {
		return nil, s.away
	}
	return &Followed{Past: f.Past[:len(f.Past):len(f.Past)], CreatedAt: f.CreatedAt, Whole: map[string]any{"whole": f.Now()}}, nil
}

// enters makes a thing enter states, as one transaction does.
func (s *things) enters(id uuid.UUID, states ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[id] == nil {
		s.known[id] = &Followed{CreatedAt: time.Now()}
	}
	for _, state := range states {
		public, reason := "IN_PROGRESS", ""
		if state == "PENDING" || state == stateCompleted || state == stateFailed {
			public = state
		}
		if state == stateFailed {
			reason = "timed_out"
		}
		s.known[id].Add(id, public, state, reason, time.Now())
	}
}

func (s *things) begun() uuid.UUID {
	id := uuid.New()
	s.enters(id, "PENDING")
	return id
}

func (s *things) fails(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = err
}

// A client reads version 1; version 2 is committed; only then the client begins to wait. Nothing changes any
// more, and the wait must end all the same.
func TestAChangeBetweenReadingAndWaitingIsNotMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThings()
		w := newWatch(nil, s.versions)
		id := s.begun()
		s.enters(id, "PAID")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := w.changed(ctx, nil, id.String(), 1); err != nil {
			t.Errorf("the change was missed: %v", err)
		}
	})
}

// An answer that was on its way when a client came may be older than what the client has read.
func TestAnOlderVersionWakesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThings()
		w := newWatch(nil, s.versions)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := w.changed(ctx, nil, s.begun().String(), 2); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("woken by version 1, having 2: %v", err)
		}
	})
}

func TestOneQuestionServesAllThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThings()
		w := newWatch(nil, s.versions)
		same, other := s.begun(), s.begun()
		var wait sync.WaitGroup
		for i := range 100 {
			wait.Go(func() {
				id := same
				if i == 0 {
					id = other
				}
				if err := w.changed(t.Context(), nil, id.String(), 1); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(time.Second - time.Millisecond) // of the bubble
		s.enters(other, "PAID")
		time.Sleep(time.Second)
		s.enters(same, "PAID")
		wait.Wait()
		if n := len(s.asked); n > 102 {
			t.Errorf("%d questions in two seconds", n)
		}
		if diff := cmp.Diff([]int{2, 1}, []int{s.asked[1], s.asked[len(s.asked)-1]}); diff != "" {
			t.Errorf("of how many ids:\n%s", diff)
		}
		asked := len(s.asked)
		time.Sleep(time.Minute)
		if len(s.asked) != asked {
			t.Error("asked although nobody waits")
		}
		if len(w.waiters) != 0 || len(w.lead) != 0 {
			t.Errorf("%d wait, %d lead", len(w.waiters), len(w.lead))
		}
	})
}

// Whoever leads may leave at any time; the others are served on.
func TestTheLeadPassesOnWhenItsClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThings()
		w := newWatch(nil, s.versions)
		id := s.begun()
		var wait sync.WaitGroup
		for i := range 10 {
			ctx, leave := context.WithCancel(t.Context())
			wait.Go(func() {
				if err := w.changed(ctx, nil, id.String(), 1); (err == nil) != (i == 9) {
					t.Errorf("client %d: %v", i, err)
				}
			})
			synctest.Wait() // the first comes to lead
			if i < 9 {
				time.AfterFunc(time.Duration(i+1)*77*time.Millisecond, leave)
			} else {
				defer leave()
			}
		}
		time.Sleep(time.Second)
		s.enters(id, "PAID")
		wait.Wait()
	})
}

func TestAllThatWaitLearnThatTheDatabaseIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThings()
		w := newWatch(nil, s.versions)
		id := s.begun()
		away := errors.New("away")
		var wait sync.WaitGroup
		for range 3 {
			wait.Go(func() {
				if err := w.changed(t.Context(), nil, id.String(), 1); !errors.Is(err, away) {
					t.Errorf("got %v", err)
				}
			})
		}
		time.Sleep(time.Second)
		s.fails(away)
		wait.Wait()
		s.fails(nil)
		s.enters(id, "PAID")
		if err := w.changed(t.Context(), nil, id.String(), 1); err != nil {
			t.Errorf("it is back: %v", err)
		}
	})
}
