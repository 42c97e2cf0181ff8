package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"converge/internal/sandbox"
	"converge/internal/usage"
)

// options are the command line.
type options struct {
	relay      string
	json       string
	cache      string
	small      bool
	scale      float64
	rounds     int
	seconds    int
	cases      string
	contenders string
}

// The cases' names, as --cases takes them.
const (
	caseHundreds = "100"
	caseOnes     = "1"
	caseOne      = "all"
	case2k       = "2k"
	case5k       = "5k"
)

func main() {
	var o options
	flag.StringVar(&o.relay, "relay", "bin/converge", "the program whose relay is measured; several, separated by commas, compare builds")
	flag.StringVar(&o.json, "json", "", "also write all measurements to this `file`")
	flag.StringVar(&o.cache, "cache", ".cache", "`directory` that keeps Debezium's jars")
	flag.BoolVar(&o.small, "small", false, "embedded Kafka, no Debezium, a tenth of the rows: a minute, and no Java")
	flag.Float64Var(&o.scale, "scale", 1, "`factor` for the number of rows of the backlogs")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each contender has its turn in each case")
	flag.IntVar(&o.seconds, "seconds", 15, "how long each steady pass lasts")
	flag.StringVar(&o.cases, "cases", "100,1,all,2k,5k", "backlogs in transactions of 100 rows, of 1 row, of all rows; steady rates")
	flag.StringVar(&o.contenders, "contenders", "converge,pg_recvlogical,debezium", "who takes part")
	flag.Parse()
	// The first signal ends the run and cleans up; a second ends the program, and with it its children.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	if err := run(ctx, o); err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		fmt.Fprintln(os.Stderr, "bench-relay:", err)
		os.Exit(1)
	}
}

// began is when the program did.
var began = time.Now()

// progress tells whoever waits what happens.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%4.0fs %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
}

// trials returns the chosen cases.
func (o options) trials() ([]trial, error) {
	rows := func(n float64) int { return max(1000, int(n*o.scale)) }
	steady := func(rate int) trial {
		return trial{Name: fmt.Sprintf("steady %d rows/s", rate), rows: rate * o.seconds, perTransaction: 1, rate: rate}
	}
	million := rows(1e6)
	known := map[string]trial{
		caseHundreds: {Name: fmt.Sprintf("backlog of %d rows in transactions of 100", million), rows: million, perTransaction: 100},
		caseOnes:     {Name: fmt.Sprintf("backlog of %d transactions of one row", rows(3e5)), rows: rows(3e5), perTransaction: 1},
		caseOne:      {Name: fmt.Sprintf("one transaction of %d rows", million), rows: million, perTransaction: million},
		case2k:       steady(2000),
		case5k:       steady(5000),
	}
	var chosen []trial
	for name := range strings.SplitSeq(o.cases, ",") {
		t, ok := known[name]
		if !ok {
			return nil, fmt.Errorf("there is no case %q: choose from 100,1,all,2k,5k", name)
		}
		chosen = append(chosen, t)
	}
	return chosen, nil
}

// settle checks the options before anything is started.
func (o *options) settle() ([]trial, error) {
	if o.scale <= 0 || o.rounds < 1 || o.seconds < 1 {
		return nil, errors.New("scale, rounds and seconds must be positive")
	}
	for name := range strings.SplitSeq(o.contenders, ",") {
		if !slices.Contains([]string{"converge", "pg_recvlogical", "debezium"}, name) {
			return nil, fmt.Errorf("there is no contender %q: choose from converge,pg_recvlogical,debezium", name)
		}
	}
	if runtime.GOOS != "linux" {
		return nil, errors.New("processor time and memory of the contenders are read from Linux's /proc: run it there")
	}
	for binary := range strings.SplitSeq(o.relay, ",") {
		if _, err := os.Stat(binary); err != nil {
			return nil, fmt.Errorf("looking for the relay: %w: make build makes it", err)
		}
	}
	if !o.small {
		for _, command := range []string{"java", "mvn"} {
			if _, err := exec.LookPath(command); err != nil {
				progress("%s is not installed (Debian: openjdk-17-jre-headless maven): this is the small version, with an embedded Kafka and without Debezium", command)
				o.small = true
				break
			}
		}
	}
	if o.small {
		o.scale, o.seconds, o.rounds = o.scale/10, min(o.seconds, 4), min(o.rounds, 3)
	}
	return o.trials()
}

func (o options) takesPart(name string) bool {
	return slices.Contains(strings.Split(o.contenders, ","), name)
}

func run(ctx context.Context, o options) (err error) {
	trials, err := o.settle()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "converge-bench-")
	if err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	const room = 8 << 30
	if free, err := usage.Free(dir); err == nil && float64(free) < room*min(1, o.scale) {
		return fmt.Errorf("%s has room for %s MB only: point TMPDIR to where there are 8 GB", dir, megabytes(float64(free)))
	}
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL may run as another user
		return fmt.Errorf("making a directory: %w", err)
	}
	// What is started ends only after all measuring has: its context is not the signal's.
	b := &bench{rounds: o.rounds, seconds: o.seconds}
	postgres, err := sandbox.StartPostgres(ctx, sandbox.PostgresConfig{Dir: filepath.Join(dir, "postgres"), Volatile: true,
		Progress: func(what string) { progress("%s", what) }})
	if err != nil {
		return err
	}
	defer func() {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		err = errors.Join(err, postgres.Stop(stopping))
	}()
	if b.database, err = openDatabase(ctx, postgres.URL()); err != nil {
		return err
	}
	defer b.database.conn.Close(context.WithoutCancel(ctx))
	if b.kafka, err = startKafka(ctx, filepath.Join(dir, "kafka"), o.small); err != nil {
		return err
	}
	defer b.kafka.close()
	r := &Report{Date: time.Now().UTC(), Machine: usage.Describe(), Scale: o.scale, Rounds: o.rounds, Small: o.small,
		Versions: map[string]string{"converge": firstLine(strings.Split(o.relay, ",")[0], "version"), "PostgreSQL": strconv.Itoa(postgres.Version), "Kafka": b.kafka.version}}
	stop, err := b.enter(ctx, o, dir, postgres, r)
	if err != nil {
		return err
	}
	defer stop()
	err = b.measure(ctx, trials)
	// What was measured before a failure or a signal is shown too.
	r.Measurements, r.Seconds = b.completed, time.Since(began).Seconds()
	r.compare(trials)
	r.print(os.Stdout)
	if o.json != "" {
		err = errors.Join(err, r.write(o.json))
	}
	return errors.Join(append(b.failures, err)...)
}

// enter gets the contenders ready.
func (b *bench) enter(ctx context.Context, o options, dir string, postgres *sandbox.Postgres, r *Report) (stop func(), err error) {
	stop = func() {}
	url := postgres.URL()
	if o.takesPart("converge") {
		for binary := range strings.SplitSeq(o.relay, ",") {
			if binary, err = filepath.Abs(binary); err != nil {
				return stop, fmt.Errorf("looking for the relay: %w", err)
			}
			relay := &ours{title: ourName, binary: binary, dir: dir, url: url, brokers: b.kafka.brokers}
			if len(b.rivals) > 0 {
				relay.title = filepath.Base(binary)
			}
			b.rivals = append(b.rivals, relay)
		}
	}
	if o.takesPart("pg_recvlogical") {
		binary := filepath.Join(postgres.Bin, "pg_recvlogical")
		if _, err := os.Stat(binary); err != nil {
			binary, err = exec.LookPath("pg_recvlogical")
			if err != nil {
				progress("pg_recvlogical is not installed (Debian: postgresql-client): it takes no part")
			}
		}
		if binary != "" {
			b.rivals = append(b.rivals, &yardstick{binary, dir, url})
		}
	}
	if o.takesPart("debezium") && !o.small {
		libs, err := debeziumJars(ctx, o.cache)
		if err != nil {
			return stop, err
		}
		progress("starting Kafka Connect")
		d, err := startDebezium(ctx, libs, filepath.Join(dir, "connect"), url, b.kafka.brokers)
		if err != nil {
			return stop, err
		}
		stop = d.kill
		r.Versions["Debezium"] = d.version + " on Kafka Connect " + jarVersion(libs, "connect-runtime")
		r.Versions["Java"] = javaVersion()
		b.rivals = append(b.rivals, d)
	}
	return stop, nil
}

// measure warms everybody up, and then measures case by case.
func (b *bench) measure(ctx context.Context, trials []trial) error {
	rounds := b.rounds
	for i, t := range trials {
		if t.rate == 0 && i < 2 || i == 0 {
			warm := t
			warm.Name = "warm-up"
			if t.rate == 0 {
				warm.rows = max(1000, t.rows/2)
			}
			b.rounds = 1
			err := b.run(ctx, warm)
			b.completed = nil
			if err != nil {
				return err
			}
		}
	}
	b.rounds = rounds
	for _, t := range trials {
		if err := b.run(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

func firstLine(command string, args ...string) string {
	out, err := exec.Command(command, args...).CombinedOutput()
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(strings.TrimPrefix(line, "converge"))
}

func javaVersion() string {
	_, rest, _ := strings.Cut(firstLine("java", "-version"), `"`)
	version, _, _ := strings.Cut(rest, `"`)
	return version
}
