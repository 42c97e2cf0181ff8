package challenge

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"converge/lab/history"
)

// user is one profile. Its changes are sent one after the other, each on the version before.
type user struct {
	id string

	// Owned by whoever took the user from the population.
	version int64
	etag    string // "" while the profile does not exist
	content profile
	unsure  *history.Write // a change whose outcome is not known: look before the next one
}

type profile struct {
	Email          string `json:"email"`
	DisplayName    string `json:"display_name"`
	Address        string `json:"address,omitempty"`
	MarketingOptIn bool   `json:"marketing_opt_in"`
}

// inFlight bounds the requests that wait for a reply; there are more users than that.
const (
	inFlight     = 48
	usersAtLeast = 2 * inFlight
	replyTimeout = 10 * time.Second
)

// population sends changes in an open model: they are due at fixed times, whatever the replies do.
type population struct {
	base   string // of identity
	client *http.Client
	clock  clock
	record func(history.Write)

	mu    sync.Mutex
	rng   *rand.Rand
	zipf  *rand.Zipf
	users []*user
	busy  []bool
	sent  int
	acked int
}

func newPopulation(base, run string, n int, seed uint64, clock clock, record func(history.Write)) *population {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost, transport.Proxy = inFlight, inFlight, nil
	rng := rand.New(rand.NewPCG(seed, 1))
	p := &population{base: base, client: &http.Client{Transport: transport, Timeout: replyTimeout}, clock: clock, record: record,
		rng: rng, zipf: rand.NewZipf(rng, 1.05, 10, uint64(n-1)), busy: make([]bool, n)}
	for i := range n {
		p.users = append(p.users, &user{id: fmt.Sprintf("%s-%d", run, i)})
	}
	return p
}

// counts returns how many changes were sent and how many acknowledged.
func (p *population) counts() (sent, acked int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent, p.acked
}

// take draws a user, some far more often than others, and reserves it; when somebody is at it, the next
// one who is free. There are always more users than requests in flight.
func (p *population) take() (index int, content profile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	index = int(p.zipf.Uint64())
	for p.busy[index] {
		index = (index + 1) % len(p.users)
	}
	p.busy[index] = true
	p.sent++
	content = profile{
		Email:          p.users[index].id + "@example.com",
		DisplayName:    fmt.Sprintf("User %d, change %d", index, p.sent),
		MarketingOptIn: p.rng.IntN(2) == 0,
	}
	if p.rng.IntN(3) == 0 {
		content.Address = fmt.Sprintf("%d Main Street", p.rng.IntN(1000))
	}
	return index, content
}

func (p *population) giveBack(index int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy[index] = false
}

// send sends n changes evenly over d and returns when each has its reply, or ctx has ended.
func (p *population) send(ctx context.Context, n int, d time.Duration) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, inFlight)
	start := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for i := range n {
		if wait := time.Until(start.Add(d * time.Duration(i) / time.Duration(n))); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return
			}
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		index, content := p.take()
		wg.Go(func() {
			defer func() { p.giveBack(index); <-slots }()
			p.change(ctx, p.users[index], content)
		})
	}
}

// change sends one change of the user's profile, conditional on its last known version.
func (p *population) change(ctx context.Context, u *user, content profile) {
	if u.unsure != nil && !p.look(ctx, u) {
		return // identity doesn't answer: nothing was sent
	}
	w := history.Write{UserID: u.id, Version: u.version + 1, SentAt: p.clock.now()}
	status, etag, version, err := p.put(ctx, u, content)
	w.Status = status
	switch {
	case err == nil && (status == http.StatusOK || status == http.StatusCreated):
		w.Outcome, w.AckedAt, w.Version = history.OK, p.clock.now(), version
		u.version, u.etag, u.content = version, etag, content
	case err == nil && status >= 400 && status < 500:
		w.Outcome = history.Failed
		u.unsure = &w // a 412 means that we don't know its version after all
	default:
		w.Outcome = history.Unknown
		u.unsure, u.content = &w, content
	}
	p.note(w)
}

func (p *population) note(w history.Write) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.Outcome == history.OK {
		p.acked++
	}
	p.record(w)
}

func (p *population) put(ctx context.Context, u *user, content profile) (status int, etag string, version int64, err error) {
	body, err := json.Marshal(content)
	if err != nil {
		return 0, "", 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, p.base+"/profiles/"+u.id, bytes.NewReader(body))
	if err != nil {
		return 0, "", 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	if u.etag == "" {
		req.Header.Set("If-None-Match", "*")
	} else {
		req.Header.Set("If-Match", u.etag)
	}
	var reply struct{ Version int64 }
	status, header, err := fetch(p.client, req, &reply)
	return status, header.Get("ETag"), reply.Version, err
}

// look learns what became of a change whose outcome is not known. A version that can be read is
// committed, so it counts as acknowledged: nobody else changes this user.
func (p *population) look(ctx context.Context, u *user) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.base+"/profiles/"+u.id, nil)
	if err != nil {
		return false
	}
	var reply struct{ Version int64 }
	status, header, err := fetch(p.client, req, &reply)
	switch {
	case err == nil && status == http.StatusOK:
		if u.unsure.Outcome == history.Unknown && reply.Version == u.unsure.Version {
			learned := *u.unsure
			learned.Outcome, learned.AckedAt, learned.Status = history.OK, p.clock.now(), 0
			p.note(learned)
		}
		u.version, u.etag, u.unsure = reply.Version, header.Get("ETag"), nil
		return true
	case err == nil && status == http.StatusNotFound:
		u.version, u.etag, u.unsure = 0, "", nil
		return true
	default:
		return false
	}
}

// fetch sends the request and decodes a reply that succeeded into reply.
func fetch(client *http.Client, req *http.Request, reply any) (status int, header http.Header, err error) {
	res, err := client.Do(req)
	if err != nil {
		return 0, http.Header{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil && res.StatusCode < 300 {
		err = json.Unmarshal(body, reply)
	}
	return res.StatusCode, res.Header, err
}
