package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/internal/process"
)

// defaults are what the flags say when nobody gives any.
var defaults = apiFlags{MaxBody: 64 << 10, BodyTime: 10 * time.Second, MaxInFlight: 512, MaxWaiting: 1024, KeyWait: 2 * time.Second, KeyRetention: 72 * time.Hour}

func TestBoundsThatNothingCanKeepAreRefused(t *testing.T) {
	for says, edit := range map[string]func(*apiFlags){
		"":                                  func(*apiFlags) {},
		"--max-body 0 lets no body":         func(f *apiFlags) { f.MaxBody = 0 },
		"--max-in-flight 0 lets no request": func(f *apiFlags) { f.MaxInFlight = 0 },
		"--max-waiting 0 lets no request":   func(f *apiFlags) { f.MaxWaiting = 0 },
		"--max-in-flight -1":                func(f *apiFlags) { f.MaxInFlight = -1 },
		"--body-time 0s is too short":       func(f *apiFlags) { f.BodyTime = 0 },
		"--key-wait 1µs is too short":       func(f *apiFlags) { f.KeyWait = time.Microsecond },
		"--key-wait -1s is too short":       func(f *apiFlags) { f.KeyWait = -time.Second },
		"--key-retention 0s is too short":   func(f *apiFlags) { f.KeyRetention = 0 },
	} {
		f := defaults
		edit(&f)
		err := f.check()
		var usage usageError
		switch {
		case says == "" && err != nil:
			t.Errorf("refused: %v", err)
		case says != "" && (!errors.As(err, &usage) || !strings.Contains(err.Error(), says)):
			t.Errorf("got %v, want a usage error with %q", err, says)
		}
	}
}

func TestEveryBoundIsAFlagWithItsDefault(t *testing.T) {
	for _, command := range []string{"up", "serve orders"} {
		var out, errs strings.Builder
		if code := run(append([]string{"config"}, strings.Fields(command)...), &out, &errs); code != process.ExitOK {
			t.Fatal(errs.String())
		}
		text := strings.Join(strings.Fields(out.String()), " ")
		for _, line := range []string{"--api-tokens (none) default", "--max-body 64KiB default", "--body-time 10s default", "--max-in-flight 512 default",
			"--max-waiting 1024 default",
			"--key-wait 2s default", "--key-retention 72h0m0s default"} {
			if !strings.Contains(text, line) {
				t.Errorf("config %s lacks %q:\n%s", command, line, out.String())
			}
		}
	}
	t.Setenv("CONVERGE_MAX_BODY", "1MiB")
	t.Setenv("CONVERGE_API_TOKENS", "S3CRET")
	var out, errs strings.Builder
	if code := run([]string{"config", "up"}, &out, &errs); code != process.ExitOK || strings.Contains(out.String(), "S3CRET") ||
		!strings.Contains(strings.Join(strings.Fields(out.String()), " "), "--max-body 1MiB CONVERGE_MAX_BODY") {
		t.Errorf("code %d\n%s%s", code, out.String(), errs.String())
	}
}

func TestSizesAreBytesOrHaveAUnit(t *testing.T) {
	for text, want := range map[string]byteSize{"0": 0, "1": 1, "65536": 64 << 10, "64KiB": 64 << 10, "2MiB": 2 << 20, "2047MiB": 2047 << 20} {
		var s byteSize
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%s: %d %v", text, s, err)
		}
		var again byteSize
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s {
			t.Errorf("%s is shown as %v", text, s)
		}
	}
	for _, text := range []string{"", "-1", "KiB", "1 KiB", "1kb", "1.5MiB", "2GiB", "2048MiB", "99999999999999999999"} {
		var s byteSize
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is %d bytes", text, s)
		}
	}
}

// tokenFile writes a file of tokens.
func tokenFile(t *testing.T, mode os.FileMode, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTroubleWithTheTokensIsOneLineWithoutThem(t *testing.T) {
	for says, path := range map[string]string{
		"no such file":                           filepath.Join(t.TempDir(), "none"),
		"line 2 is not TOKEN TENANT, the tenant": tokenFile(t, 0o600, "t-1 acme\nS3CRET\n"),
		"line 2 has a token that stands above":   tokenFile(t, 0o600, "S3CRET acme\nS3CRET globex\n"),
		"there is no token in it":                tokenFile(t, 0o600, "# nobody\n"),
	} {
		for _, command := range []string{"up", "serve orders --database postgres://x --brokers x:1 --format json"} {
			var out, errs strings.Builder
			args := append(strings.Fields(command), "--api-tokens", path, "--http", "127.0.0.1:0")
			if command == "up" {
				args = append(args, "--dir", filepath.Join(t.TempDir(), "state"))
			}
			code := run(args, &out, &errs)
			if text := errs.String(); code != process.ExitUsage || !strings.Contains(text, says) || !strings.Contains(text, path) || !strings.Contains(text, "--api-tokens") ||
				strings.Contains(text, "S3CRET") || strings.Count(text, "\n") != 1 {
				t.Errorf("%s: code %d\n%s", command, code, text)
			}
		}
	}
}

// Who is answered stands in the log, and a file that everybody can read is worth a warning.
func TestTheLogSaysWhoIsAnswered(t *testing.T) {
	for name, step := range map[string]struct {
		tokens string
		remote bool
		says   string
		warns  bool
		needs  bool
	}{
		"open on this machine": {"", false, "this machine alone", false, false},
		"open to everybody":    {"", true, "the API answers everybody", true, false},
		"with tokens":          {tokenFile(t, 0o600, "S3CRET acme"), false, "who brings a token", false, true},
		"with tokens, remote":  {tokenFile(t, 0o640, "S3CRET acme"), true, "who brings a token", false, true},
		"tokens for all eyes":  {tokenFile(t, 0o644, "S3CRET acme"), false, "chmod o-r", true, true},
	} {
		f := defaults
		f.APITokens = step.tokens
		var log strings.Builder
		cfg, err := f.config(slog.New(slog.NewTextHandler(&log, nil)), step.remote)
		if err != nil || cfg.Tokens.Required() != step.needs || cfg.AllowRemote != step.remote || cfg.MaxBody != 64<<10 || cfg.KeyRetention != 72*time.Hour {
			t.Errorf("%s: %v %+v", name, err, cfg)
		}
		if text := log.String(); !strings.Contains(text, step.says) || strings.Contains(text, "level=WARN") != step.warns || strings.Contains(text, "S3CRET") {
			t.Errorf("%s: logged %s", name, text)
		}
	}
}

// Beyond loopback a process listens only where it asks who is there, or was told not to care.
func TestListeningBeyondLoopbackNeedsTokensOrLeave(t *testing.T) {
	for _, step := range []struct {
		l  listener
		ok bool
	}{
		{listener{HTTP: "127.0.0.1:1"}, true},
		{listener{HTTP: "localhost:1"}, true},
		{listener{HTTP: "[::1]:1"}, true},
		{listener{HTTP: "0.0.0.0:1"}, false},
		{listener{HTTP: ":1"}, false},
		{listener{HTTP: "shop.example:1"}, false},
		{listener{HTTP: "0.0.0.0:1", AllowRemote: true}, true},
		{listener{HTTP: "0.0.0.0:1", guarded: true}, true},
		{listener{HTTP: "nonsense", guarded: true}, false},
	} {
		if err := step.l.check(); (err == nil) != step.ok {
			t.Errorf("%+v: %v", step.l, err)
		}
	}
	path := tokenFile(t, 0o600, "t-1 acme")
	for says, args := range map[string][]string{
		"and not the console beside it": {"--http", "0.0.0.0:0"},
		"the load of --demo":            {"--demo"},
	} {
		var out, errs strings.Builder
		if code := run(append([]string{"up", "--dir", filepath.Join(t.TempDir(), "state"), "--api-tokens", path}, args...), &out, &errs); code != process.ExitUsage || !strings.Contains(errs.String(), says) {
			t.Errorf("code %d\n%s", code, errs.String())
		}
	}
}

// A request that is under way when the process is told to end gets its answer; who comes then is turned away. The
// process asks for tokens, and answers by any name.
func TestEndToEndARequestUnderWayIsFinishedByAProcessThatEnds(t *testing.T) {
	kafka, url := startKafka(t), pgtest.URL(t)
	chosen, err := choose([]string{"payments"})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(database.Migrate(t.Context(), url, modules(chosen)...), database.MigrateSecrets(t.Context(), url, "payments")); err != nil {
		t.Fatal(err)
	}
	addr := freeAddr(t)
	r := start(t, addr, "serve", "payments", "--database", url, "--brokers", kafka.Brokers(), "--format", "json",
		"--api-tokens", tokenFile(t, 0o600, "t-1 acme")).ready()
	if err := wants(http.StatusUnauthorized, r.get("/payments/x")); err != nil {
		t.Error(err)
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second)) // against a test that hangs
	body := `{"order_id":42,"amount":100}`
	fmt.Fprintf(conn, "POST /payments HTTP/1.1\r\nHost: shop.example\r\nAuthorization: Bearer t-1\r\nContent-Type: application/json\r\n"+
		"Idempotency-Key: k\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", len(body))
	reader := bufio.NewReader(conn)
	if line, err := reader.ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") { // the handler reads
		t.Fatalf("%q %v", line, err)
	}
	if _, err := reader.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, body[:5]); err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		late, err := net.Dial("tcp", addr)
		if err != nil {
			return nil
		}
		late.Close()
		return errors.New("it takes connections still")
	})
	if _, err := io.WriteString(conn, body[5:]); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answered, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusCreated || !res.Close {
		t.Errorf("%v %d %v %s", err, res.StatusCode, res.Header, answered)
	}
	if code := r.wait(30 * time.Second); code != process.ExitOK {
		t.Errorf("ended with code %d", code)
	}
}
