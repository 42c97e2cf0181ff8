package load

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

type profileRequest struct {
	Email       string `json:"email"`
	DisplayName string `json:"display_name"`
}

// changed is what PUT /profiles answered.
type changed struct {
	err     error
	status  int
	etag    string
	Version int64 `json:"version"`
}

func (c changed) accepted() bool {
	return c.err == nil && (c.status == http.StatusOK || c.status == http.StatusCreated)
}

const tries = 4 // of one conditional write that others get ahead of

// sendProfile changes the profile and returns how to follow the change, nil when it was not accepted.
// Several arrivals may change one profile at the same time: whoever is told 412 looks and tries again,
// as a client would, within the latency that counts.
func (r *runner) sendProfile(ctx context.Context, a arrival) func(context.Context) {
	user := fmt.Sprintf("load-%d", a.customer)
	body, err := json.Marshal(profileRequest{Email: user + "@example.com", DisplayName: fmt.Sprintf("Customer %d.%d", a.customer, a.n)})
	if err != nil {
		r.tally.failed("not sent")
		return nil
	}
	var reply changed
	var condition string
	for range tries {
		condition = r.etag(user)
		reply = r.change(ctx, user, condition, body)
		if reply.status != http.StatusPreconditionFailed {
			break
		}
		r.look(ctx, user)
	}
	replied := time.Since(a.due)
	if !reply.accepted() {
		if ctx.Err() == nil {
			r.tally.failed(reason(reply.status, reply.err))
		}
		return nil
	}
	r.remember(user, reply.etag)
	if a.twice {
		r.repeat(ctx, user, condition, body, reply)
	}
	r.tally.accepted(replied)
	return func(ctx context.Context) { r.followProfile(ctx, a, user, reply.Version) }
}

// repeat sends the same change again, as a client does that lost the reply. It is either told that it
// is too late (412) or that this is still the last change, which makes no new version.
func (r *runner) repeat(ctx context.Context, user, condition string, body []byte, first changed) {
	r.tally.duplicate()
	second := r.change(ctx, user, condition, body)
	if second.accepted() && second.Version != first.Version {
		r.tally.broke(fmt.Sprintf("one change of profile %s, sent twice, made versions %d and %d", user, first.Version, second.Version))
	}
}

func (r *runner) etag(user string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.etags[user]
}

func (r *runner) remember(user, etag string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.etags[user] = etag
}

func (r *runner) change(ctx context.Context, user, etag string, body []byte) (c changed) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, r.cfg.Target+"/profiles/"+user, bytes.NewReader(body))
	if err != nil {
		return changed{err: err}
	}
	req.Header.Set("Content-Type", "application/json")
	if etag == "" {
		req.Header.Set("If-None-Match", "*")
	} else {
		req.Header.Set("If-Match", etag)
	}
	status, header, reply, err := r.do(req)
	if err == nil && status < 300 {
		err = json.Unmarshal(reply, &c)
		c.etag = header.Get("ETag")
	}
	c.status, c.err = status, err
	return c
}

// look learns the profile's current ETag.
func (r *runner) look(ctx context.Context, user string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.cfg.Target+"/profiles/"+user, nil)
	if err != nil {
		return
	}
	status, header, _, err := r.do(req)
	switch {
	case err != nil:
	case status == http.StatusOK:
		r.remember(user, header.Get("ETag"))
	case status == http.StatusNotFound:
		r.remember(user, "")
	}
}

// followProfile looks until every view has the version, or a newer one.
func (r *runner) followProfile(ctx context.Context, a arrival, user string, version int64) {
	waiting := []string{"/billing/accounts/" + user, "/analytics/profiles/" + user}
	ended := r.poll(ctx, a.due, func(ctx context.Context) bool {
		for len(waiting) > 0 {
			if r.versionOf(ctx, waiting[0]) < version {
				return false
			}
			waiting = waiting[1:]
		}
		return true
	})
	if !ended {
		r.tally.unfinished(fmt.Sprintf("profile %s version %d, not yet in %s", user, version, waiting[0]))
		return
	}
	r.tally.finished("in every view", time.Since(a.due))
}

func (r *runner) versionOf(ctx context.Context, path string) int64 {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.cfg.Target+path, nil)
	if err != nil {
		return 0
	}
	status, _, reply, err := r.do(req)
	var view struct{ Version int64 }
	if err != nil || status != http.StatusOK || json.Unmarshal(reply, &view) != nil {
		return 0
	}
	return view.Version
}
