package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"

	"converge/internal/sandbox"
)

var (
	requests = flag.Int("bench.requests", 50, "requests of each kind and round in SQL")
	rounds   = flag.Int("bench.rounds", 1, "how often each kind has its turn")
	seconds  = flag.Float64("bench.seconds", 0.3, "how long requests come at each rate")
	first    = flag.Int("bench.first", 200, "the lowest rate, a second; each step adds a half until p99 is above 20 ms twice in a row, the last one a quarter")
	last     = flag.Int("bench.last", 300, "the highest rate that is tried")
	clients  = flag.Int("bench.clients", 64, "connections")
	out      = flag.String("bench.json", "", "also write the results to this file")
)

// results is what a run found, for programs to read.
type results struct {
	PostgreSQL int                  `json:"postgresql"`
	SQL        map[string][]float64 `json:"sql_median_ms"` // by kind, one of each round
	Trips      map[string]float64   `json:"round_trips"`
	Steps      []step               `json:"http"`
	Storms     []storm              `json:"storms"`
}

type bench struct {
	t      *testing.T
	server *sandbox.Postgres
	root   *pgx.Conn
	found  results
}

// One run, side by side. Without flags it is small, and shows only that each way of working works.
func TestBenchHTTP(t *testing.T) {
	b := start(t)
	b.inSQL()
	b.overHTTP()
	t.Logf("\n%s", b.table())
	if *out != "" {
		text, err := json.MarshalIndent(b.found, "", "  ")
		must(t, err)
		must(t, os.WriteFile(*out, text, 0o644))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, found: results{SQL: map[string][]float64{}, Trips: map[string]float64{}}}
	var err error
	b.server, err = sandbox.StartPostgres(t.Context(), sandbox.PostgresConfig{Dir: t.TempDir(), Settings: map[string]string{"max_wal_size": "4GB"}})
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := b.server.Stop(ctx); err != nil {
			t.Errorf("stopping PostgreSQL: %v", err)
		}
	})
	b.found.PostgreSQL = b.server.Version
	b.root, err = pgx.Connect(t.Context(), b.server.URL())
	must(t, err)
	t.Cleanup(func() { b.root.Close(context.Background()) })
	for _, setting := range []string{"fsync", "synchronous_commit", "full_page_writes"} {
		var value string
		must(t, b.root.QueryRow(t.Context(), "SELECT current_setting($1)", setting).Scan(&value))
		if value != "on" {
			t.Fatalf("%s is %s: nothing that is measured would be durable", setting, value)
		}
	}
	return b
}

// median returns the middle one, and what stands at the ends.
func median(all []float64) (middle, least, most float64) {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2], sorted[0], sorted[len(sorted)-1]
}

// table shows the medians of the rounds, and their range.
func (b *bench) table() string {
	var text strings.Builder
	fmt.Fprintf(&text, "PostgreSQL %d, fsync and synchronous_commit on, %d rounds of %d requests, medians (least–most)\n",
		b.found.PostgreSQL, *rounds, *requests)
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "one connection, in SQL\tround trips\tms\t× bare INSERT\t")
	base := b.found.SQL[bare]
	for _, kind := range kinds {
		var ratios []float64
		for round, ms := range b.found.SQL[kind] {
			ratios = append(ratios, ms/base[round])
		}
		ms, _, _ := median(b.found.SQL[kind])
		ratio, least, most := median(ratios)
		fmt.Fprintf(w, "%s\t%.1f\t%.3f\t%.2f (%.2f–%.2f)\t\n", kind, b.found.Trips[kind], ms, ratio, least, most)
	}
	_ = w.Flush() // to memory
	fmt.Fprintln(&text)
	w = tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "over HTTP\tdue/s\tanswered/s\tp50 ms\tp99 ms\tmost ms\ta transaction\tCPU s per 1000: server\tPostgreSQL\tload\tothers %\tRSS MB\t")
	for _, s := range b.found.Steps {
		fmt.Fprintf(w, "%s\t%d\t%.0f\t%.2f\t%.2f\t%.2f\t%.1f\t%.3f\t%.3f\t%.3f\t%.0f\t%d\t\n", s.Kind, s.Due, s.Answered, s.P50, s.P99, s.Most, s.Shared,
			s.CPU.Server, s.CPU.PostgreSQL, s.CPU.Load, s.Machine.Stolen+s.Machine.Other, s.RSS>>20)
	}
	_ = w.Flush()
	for _, kind := range []string{fresh, replays} {
		var best []float64
		for round := range *rounds {
			most := 0.0
			for _, s := range b.found.Steps {
				if s.Kind == kind && s.Round == round && s.Sustained {
					most = max(most, s.Answered)
				}
			}
			best = append(best, most)
		}
		middle, least, most := median(best)
		fmt.Fprintf(&text, "%s: %.0f/s (%.0f–%.0f) with p99 within %v\n", kind, middle, least, most, bound)
	}
	slices.SortFunc(b.found.Storms, func(a, b storm) int { return cmp.Compare(a.MS, b.MS) })
	middle := b.found.Storms[len(b.found.Storms)/2]
	fmt.Fprintf(&text, "one key, %d clients at once: %d effect, all answered after %.1f ms\n", middle.Clients, middle.Effects, middle.MS)
	return text.String()
}
