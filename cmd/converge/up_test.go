package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"converge/deploy/metrics"
	"converge/internal/process"
)

func TestEndToEndUpServesTheWholeChoreographyAndSurvivesKillNine(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	args, http1 := upArgs(t, dir), freeAddr(t)
	up := start(t, http1, args...).ready()

	stock := up.available("BOOK-1")
	done := up.order("one", "card-ok", 2)
	declined := up.order("two", "card-declined", 3)
	up.ends(done, "COMPLETED")
	if reason := up.ends(declined, "FAILED"); reason != "payment_declined" {
		t.Errorf("the declined order's reason is %q, want payment_declined", reason)
	}
	if again := up.order("one", "card-ok", 2); again != done {
		t.Errorf("the same Idempotency-Key made order %s beside %s", again, done)
	}
	eventually(t, 60*time.Second, func() error {
		if got := up.available("BOOK-1"); got != stock-2 {
			return fmt.Errorf("available is %v, want %v: two sold, three back", got, stock-2)
		}
		return nil
	})

	put := up.do("PUT", "/profiles/u-1", `{"email":"ada@example.org","display_name":"Ada"}`, map[string]string{"If-None-Match": "*"})
	if err := wants(http.StatusCreated, put); err != nil {
		t.Fatalf("PUT /profiles: %v", err)
	}
	up.viewsAgree("u-1", 1)

	// Unfinished sagas: placed, and everything killed before they can end.
	var open []string
	for i := range 20 {
		open = append(open, up.order(fmt.Sprintf("open-%d", i), "card-ok", 1))
	}
	up.kill()

	again := start(t, http1, args...).ready()
	again.ends(done, "COMPLETED")
	for _, id := range open {
		again.ends(id, "COMPLETED")
	}
	again.viewsAgree("u-1", 1)
	put = again.do("PUT", "/profiles/u-1", `{"email":"ada@example.org","display_name":"Ada L."}`, map[string]string{"If-Match": put.header.Get("ETag")})
	if err := wants(http.StatusOK, put); err != nil {
		t.Fatalf("PUT /profiles after the restart: %v", err)
	}
	again.viewsAgree("u-1", 2)
	eventually(t, 60*time.Second, func() error {
		if got := again.available("BOOK-1"); got != stock-22 {
			return fmt.Errorf("available is %v, want %v", got, stock-22)
		}
		return nil
	})
	again.exportsWhatDashboardsAskFor()
	if code := again.interrupt(); code != process.ExitOK {
		t.Errorf("Ctrl-C ended with code %d, want %d", code, process.ExitOK)
	}
	noProcessUses(t, dir)
}

// exportsWhatDashboardsAskFor compares /metrics with the list that dashboards and alerts are held against.
func (r *running) exportsWhatDashboardsAskFor() {
	r.t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(r.get("/metrics").body))
	if err != nil {
		r.t.Fatal(err)
	}
	exported, err := metrics.Describe(prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		var ours []*dto.MetricFamily
		for name, family := range families {
			if strings.HasPrefix(name, "converge_") || strings.Contains(metrics.List, "\n"+name+" ") {
				ours = append(ours, family)
			}
		}
		return ours, nil
	}))
	if err != nil {
		r.t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(metrics.List, "\n"), strings.Split(exported, "\n")); diff != "" {
		r.t.Errorf("deploy/metrics/metrics.txt (-) and /metrics (+) differ:\n%s", diff)
	}
}

func (r *running) viewsAgree(user string, version float64) {
	r.t.Helper()
	for _, path := range []string{"/billing/accounts/", "/analytics/profiles/"} {
		eventually(r.t, 30*time.Second, func() error {
			a := r.get(path + user)
			if err := wants(http.StatusOK, a); err != nil {
				return err
			}
			if got := a.json(r.t)["version"]; got != version {
				return fmt.Errorf("GET %s has version %v, want %v", path+user, got, version)
			}
			return nil
		})
	}
}

// noProcessUses fails when a process still names dir in its command line.
func noProcessUses(t *testing.T, dir string) {
	t.Helper()
	eventually(t, 60*time.Second, func() error {
		out, err := exec.Command("ps", "-eo", "pid,args").Output()
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, dir) {
				return fmt.Errorf("left behind: %s", strings.TrimSpace(line))
			}
		}
		return nil
	})
}

func TestEndToEndNothingIsLeftBehindByKillNine(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	up := start(t, freeAddr(t), upArgs(t, dir)...).ready()
	// Only the process itself, not its group: PostgreSQL must notice.
	if err := up.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-up.done
	noProcessUses(t, dir)
}

func TestEndToEndKcatIsAtHome(t *testing.T) {
	kcat, err := exec.LookPath("kcat")
	if err != nil {
		t.Skip("kcat is not installed: the same records are produced by the Go client in the consumers' tests")
	}
	dir := filepath.Join(t.TempDir(), "state")
	args := upArgs(t, dir)
	kafka := args[4]
	up := start(t, freeAddr(t), args...).ready()

	listing, err := exec.Command(kcat, "-b", kafka, "-L").CombinedOutput()
	if err != nil {
		t.Fatalf("kcat -L: %v\n%s", err, listing)
	}
	for _, topic := range []string{"orders", "inventory", "payments", "shipping", "identity", "identity.analytics.retry.1s", "identity.analytics.dlq"} {
		if !strings.Contains(string(listing), fmt.Sprintf("topic %q", topic)) {
			t.Errorf("kcat -L does not show topic %s", topic)
		}
	}

	produce := func(value string, headers ...string) {
		t.Helper()
		args := []string{"-b", kafka, "-P", "-t", "identity", "-k", "u-9"}
		for _, h := range headers {
			args = append(args, "-H", h)
		}
		cmd := exec.Command(kcat, args...)
		cmd.Stdin = strings.NewReader(value)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("kcat -P: %v\n%s", err, out)
		}
	}
	profile := `{"user_id":"u-9","version":1,"email":"kc@example.org","display_name":"KC"}`
	id := "event_id=0197a1b2-0000-7000-8000-000000000009"
	produce(profile, "event_type=ProfileUpdated", id)
	produce(profile, "event_type=ProfileUpdated", id)
	produce(strings.Replace(profile, `"version":1`, `"version":2`, 1), "event_type=ProfileUpdated")
	produce(`{"user_id":`, "event_type=ProfileUpdated")
	produce(strings.Replace(profile, `"version":1`, `"version":3`, 1), "event_type=ProfileUpdated")
	up.viewsAgree("u-9", 3)

	metrics := string(up.get("/metrics").body)
	for _, line := range []string{
		`converge_consumer_events_total{group="analytics",outcome="applied",topic="identity"} 3`,
		`converge_consumer_events_total{group="analytics",outcome="duplicate",topic="identity"} 1`,
		`converge_consumer_events_total{group="analytics",outcome="dead",topic="identity"} 1`,
	} {
		if !strings.Contains(metrics, line) {
			t.Errorf("/metrics lacks %s", line)
		}
	}

	// The dead letter is on its topic, with its bytes and its cause.
	eventually(t, 60*time.Second, func() error {
		out, err := exec.Command(kcat, "-b", kafka, "-C", "-e", "-q", "-t", "identity.analytics.dlq", "-f", "%s|%h\n").CombinedOutput()
		if err != nil {
			return fmt.Errorf("kcat -C: %w: %s", err, out)
		}
		if !strings.Contains(string(out), `{"user_id":|`) || !strings.Contains(string(out), "error_class=permanent") || !strings.Contains(string(out), "origin_topic=identity") {
			return fmt.Errorf("the dead-letter topic holds %q", out)
		}
		return nil
	})

	// Mended and redriven, it takes effect.
	database := regexp.MustCompile(`postgres://\S+`).FindString(up.output.String())
	letter := regexp.MustCompile(`[0-9a-f-]{36}`)
	list, stderr, code := command("dlq", "list", "--group", "analytics", "--database", database)
	if code != process.ExitOK || !letter.MatchString(list) {
		t.Fatalf("dlq list: code %d\n%s%s", code, list, stderr)
	}
	mended := filepath.Join(t.TempDir(), "mended.json")
	if err := os.WriteFile(mended, []byte(strings.Replace(profile, `"version":1`, `"version":4`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"edit", letter.FindString(list), "--group", "analytics", "--value", mended, "--why", "it was cut"},
		{"redrive", "--group", "analytics", "--all", "--wait", "60s"},
	} {
		out, stderr, code := command(append(append([]string{"dlq"}, args...), "--database", database)...)
		if code != process.ExitOK || args[0] == "redrive" && !strings.Contains(out, "1 applied, 0 dead again, 0 waiting") {
			t.Fatalf("dlq %s: code %d\n%s%s", args, code, out, stderr)
		}
	}
	if got := up.get("/analytics/profiles/u-9").json(t)["version"]; got != 4.0 {
		t.Errorf("after the redrive analytics has version %v, want 4", got)
	}

	// Read again from the start, everything is a duplicate.
	both := []string{"--database", database, "--brokers", kafka}
	for _, step := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"show"}, process.ExitOK, "orderviews"},
		{[]string{"show", "analytics", "--json"}, process.ExitOK, `"member": "converge-analytics`},
		{[]string{"show", "nobody"}, process.ExitUsage, `there is no consumer group "nobody"`},
		{[]string{"reset", "analytics", "--topic", "orders", "--to", "start"}, process.ExitUsage, `analytics does not read a topic "orders"`},
		{[]string{"reset", "analytics", "--topic", "identity", "--to", "yesterday"}, process.ExitUsage, `"yesterday" is neither`},
		{[]string{"reset", "analytics", "--topic", "identity", "--to", "1000000"}, process.ExitUsage, "the log has no such offset"},
		{[]string{"reset", "analytics", "--topic", "identity", "--to", "start", "--partition", "99"}, process.ExitUsage, "does not have all of the partitions"},
		{[]string{"reset", "analytics", "--topic", "identity", "--to", "1h", "--dry-run"}, process.ExitOK, "would set: analytics identity/0 from"},
		{[]string{"reset", "analytics", "--topic", "identity", "--to", "start"}, process.ExitOK, "set: analytics identity/0 from"},
	} {
		out, stderr, code := command(append(append([]string{"group"}, step.args...), both...)...)
		if code != step.code || !strings.Contains(out+stderr, step.says) {
			t.Errorf("group %s: code %d, want %d and %q\n%s%s", step.args, code, step.code, step.says, out, stderr)
		}
	}
	eventually(t, 60*time.Second, func() error {
		const line = `converge_consumer_events_total{group="analytics",outcome="duplicate",topic="identity"} 6`
		if metrics := string(up.get("/metrics").body); !strings.Contains(metrics, line) {
			return fmt.Errorf("/metrics lacks %s", line)
		}
		return nil
	})

	order := up.order("kcat", "card-ok", 1)
	up.ends(order, "COMPLETED")
	events, err := exec.Command(kcat, "-b", kafka, "-C", "-e", "-q", "-t", "orders", "-f", "%k %h\n").CombinedOutput()
	eventually(t, 60*time.Second, func() error { // until the views have it, they differ
		out, stderr, code := command(append([]string{"rebuild", "orderviews", "--registry", "http://" + args[6]}, both...)...)
		if code != process.ExitOK || !strings.Contains(out, "replaced: orderviews, 1 rows") || !strings.Contains(out, "1 as before") {
			return fmt.Errorf("rebuild: code %d\n%s%s", code, out, stderr)
		}
		return nil
	})
	if view := up.get("/order-views/" + order).json(t); view["state"] != "COMPLETED" {
		t.Errorf("the rebuilt view shows %v", view)
	}
	if err != nil || !strings.Contains(string(events), order+" event_id=") || !strings.Contains(string(events), "event_type=OrderPlaced") {
		t.Errorf("kcat -t orders -C -e does not print the order's events: %v\n%s", err, events)
	}
}

func TestEndToEndTroubleAtStartIsOneLineWithTheFix(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	args := upArgs(t, dir)
	start(t, freeAddr(t), args...).ready()

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other := func() string { return filepath.Join(t.TempDir(), "state") }
	for name, test := range map[string]struct {
		args  []string
		http  string
		wants string
		code  int
	}{
		"second up on the directory": {args, freeAddr(t), dir, process.ExitFailed},
		"kafka port taken":           {[]string{"up", "--dir", other(), "--kafka", taken.Addr().String(), "--registry", freeAddr(t)}, freeAddr(t), "--kafka", process.ExitFailed},
		"registry port taken":        {[]string{"up", "--dir", other(), "--registry", taken.Addr().String(), "--kafka", freeAddr(t)}, freeAddr(t), "--registry", process.ExitFailed},
		"http port taken":            {upArgs(t, other()), taken.Addr().String(), "--http", process.ExitFailed},
		"directory is a file":        {upArgs(t, file), freeAddr(t), file, process.ExitFailed},
		"no database":                {append(upArgs(t, other()), "--database", "postgres://nobody@127.0.0.1:1/none"), freeAddr(t), "127.0.0.1:1", process.ExitFailed},
		"remote without leave":       {upArgs(t, other()), "0.0.0.0:0", "--allow-remote", process.ExitUsage},
		"unknown flag":               {append(upArgs(t, other()), "--no-such-flag"), freeAddr(t), "--no-such-flag", process.ExitUsage},
		"unknown service":            {[]string{"serve", "ordres", "--database", "postgres://x", "--brokers", "x:1"}, freeAddr(t), "orders", process.ExitUsage},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, test.http, test.args...)
			if code := r.wait(60 * time.Second); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			text := r.output.String()
			if !strings.Contains(text, test.wants) || strings.Contains(text, "goroutine ") {
				t.Errorf("printed %q, want one line that names %s", text, test.wants)
			}
		})
	}
}

func TestEndToEndPostgresThatDiesUnderUpIsStartedAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	up := start(t, freeAddr(t), upArgs(t, dir)...).ready()
	before := up.order("before", "card-ok", 1)
	up.ends(before, "COMPLETED")

	text, err := os.ReadFile(filepath.Join(dir, "postgres", "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.SplitN(string(text), "\n", 2)[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, func() error {
		if !strings.Contains(up.output.String(), "PostgreSQL answers again") {
			return errors.New("the server is not back")
		}
		return wants(http.StatusOK, up.get("/readyz"))
	})
	up.ends(up.order("after", "card-ok", 1), "COMPLETED")
	up.ends(before, "COMPLETED")
	if code := up.interrupt(); code != process.ExitOK {
		t.Errorf("Ctrl-C ended with code %d, want %d", code, process.ExitOK)
	}
	noProcessUses(t, dir)
}
