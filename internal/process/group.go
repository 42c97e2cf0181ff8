// Package process runs the parts of a process and says how it ended.
//
// The guarantee: every part that a [Group] started has returned before Run returns, and parts stop in
// the reverse of the order in which they were added, so that what others lean on stops last. It fails
// to hold for a part that ignores its context for longer than the drain time: Run then returns
// [ErrDrain] and names it, and the process must end.
package process

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrDrain means that a part had not returned when the drain time was over.
var ErrDrain = errors.New("did not stop in time")

// Group runs parts together. The zero Group is empty and ready. It is not safe for concurrent use; Run
// may be called once.
type Group struct {
	// Drain bounds how long all parts together may take to stop; 0 means 15 seconds.
	Drain time.Duration

	parts []*part
}

type part struct {
	name   string
	run    func(context.Context) error
	cancel context.CancelFunc
	done   chan struct{}
	err    error // valid once done is closed
}

// Add adds a part. Its run blocks until its context ends or it fails; returning nil before that ends the
// group too, as a part that has nothing left to do is not expected.
func (g *Group) Add(name string, run func(context.Context) error) {
	g.parts = append(g.parts, &part{name: name, run: run, done: make(chan struct{})})
}

// Run starts every part and blocks until all have returned. It stops them when ctx ends or the first of
// them returns, the last added first, each before the next. The error is the first failure, named after
// its part; nil after a clean drain.
func (g *Group) Run(ctx context.Context) error {
	drain := g.Drain
	if drain == 0 {
		drain = 15 * time.Second
	}
	ended := make(chan *part, len(g.parts))
	for _, p := range g.parts {
		// Values are inherited, the end is not: each part's end comes in its turn.
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		p.cancel = cancel
		go func() {
			defer close(p.done)
			p.err = p.run(own)
			ended <- p
		}()
	}
	var first error
	select {
	case <-ctx.Done():
	case p := <-ended:
		<-p.done
		first = p.failure(nil)
		if first == nil && ctx.Err() == nil {
			first = fmt.Errorf("%s ended by itself", p.name)
		}
	}
	return errors.Join(first, g.stop(drain, first))
}

func (g *Group) stop(drain time.Duration, first error) error {
	deadline := time.NewTimer(drain)
	defer deadline.Stop()
	var failures error
	for i := len(g.parts) - 1; i >= 0; i-- {
		p := g.parts[i]
		p.cancel()
		select {
		case <-p.done:
			failures = errors.Join(failures, p.failure(first))
		case <-deadline.C:
			return errors.Join(failures, fmt.Errorf("%s: %w", p.name, ErrDrain))
		}
	}
	return failures
}

// failure returns the part's error, named, unless it only says that the part was asked to stop or it
// has been reported already.
func (p *part) failure(reported error) error {
	if p.err == nil || errors.Is(p.err, context.Canceled) || (reported != nil && errors.Is(reported, p.err)) {
		return nil
	}
	return fmt.Errorf("%s: %w", p.name, p.err)
}
