package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"converge/producers/httpapi"
)

// apiFlags say who may ask the API, and bound what a request may cost.
type apiFlags struct {
	APITokens    string        `name:"api-tokens" placeholder:"FILE" help:"Answer only who brings a bearer token of this file, each tenant with what is its own: lines of TOKEN TENANT, # begins a comment. /healthz, /readyz, /metrics and the console ask nobody."`
	MaxBody      byteSize      `default:"64KiB" placeholder:"SIZE" help:"Largest body of a request: bytes, or with KiB or MiB behind them."`
	BodyTime     time.Duration `default:"10s" help:"How long a body may take to arrive."`
	MaxInFlight  int           `default:"512" placeholder:"N" help:"Requests that are processed at once; the next is told to come back."`
	MaxWaiting   int           `default:"1024" placeholder:"N" help:"Requests that wait for a change, by Prefer, by a Consistency-Token or as a stream, beside those that are processed."`
	KeyWait      time.Duration `default:"2s" help:"How long a request waits for another with its Idempotency-Key."`
	KeyRetention time.Duration `default:"72h" help:"How long the answer for an Idempotency-Key is given again; then it is forgotten. The key stays taken."`
}

// check refuses bounds that nothing can keep.
func (f apiFlags) check() error {
	switch {
	case f.MaxBody < 1:
		return usageError{fmt.Errorf("--max-body %v lets no body pass: give at least 1", f.MaxBody)}
	case f.MaxInFlight < 1:
		return usageError{fmt.Errorf("--max-in-flight %d lets no request pass: give at least 1", f.MaxInFlight)}
	case f.MaxWaiting < 1:
		return usageError{fmt.Errorf("--max-waiting %d lets no request wait: give at least 1", f.MaxWaiting)}
	}
	for _, bound := range []struct {
		flag  string
		given time.Duration
		least time.Duration
	}{
		{"--body-time", f.BodyTime, time.Millisecond},
		{"--key-wait", f.KeyWait, time.Millisecond}, // PostgreSQL counts in these, and takes 0 for no bound
		{"--key-retention", f.KeyRetention, time.Second},
	} {
		if bound.given < bound.least {
			return usageError{fmt.Errorf("%s %v is too short: give at least %v", bound.flag, bound.given, bound.least)}
		}
	}
	return nil
}

// config returns the flags as the API takes them. It reads the tokens, and logs who is answered.
func (f apiFlags) config(log *slog.Logger, allowRemote bool) (httpapi.Config, error) {
	cfg := httpapi.Config{AllowRemote: allowRemote, MaxBody: int64(f.MaxBody), BodyTime: f.BodyTime, MaxInFlight: f.MaxInFlight,
		MaxWaiting: f.MaxWaiting, KeyWait: f.KeyWait, KeyRetention: f.KeyRetention}
	err := f.check()
	if err == nil {
		cfg.Tokens, err = f.tokens(log)
	}
	switch {
	case err != nil:
		return httpapi.Config{}, err
	case cfg.Tokens.Required():
		log.Info("the API answers who brings a token", "tokens", f.APITokens)
	case allowRemote:
		log.Warn("the API answers everybody who reaches it: put authentication in front, or give --api-tokens")
	default:
		log.Info("the API answers this machine alone, and asks nobody for a token")
	}
	return cfg, nil
}

// othersRead is the permission of users who neither own a file nor are of its group.
const othersRead fs.FileMode = 0o004

// tokens reads --api-tokens. What it says of a file that is no such file names the line and never the token.
func (f apiFlags) tokens(log *slog.Logger) (httpapi.Tokens, error) {
	if f.APITokens == "" {
		return httpapi.Tokens{}, nil
	}
	file, err := os.Open(f.APITokens)
	if err != nil {
		return httpapi.Tokens{}, usageError{fmt.Errorf("--api-tokens names no file that can be read: %w", err)}
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return httpapi.Tokens{}, usageError{fmt.Errorf("--api-tokens: %w", err)}
	}
	if info.Mode().Perm()&othersRead != 0 {
		log.Warn("every user of this machine can read the API's tokens: chmod o-r", "tokens", f.APITokens)
	}
	tokens, err := httpapi.ReadTokens(file)
	if err != nil {
		return httpapi.Tokens{}, usageError{fmt.Errorf("--api-tokens %s: %w: write lines of TOKEN TENANT, each token once", f.APITokens, err)}
	}
	return tokens, nil
}

// byteSize is a number of bytes, as flags take it.
type byteSize int64

var byteUnits = []struct {
	name  string
	bytes int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"", 1}}

// UnmarshalText reads bytes, KiB or MiB.
func (s *byteSize) UnmarshalText(text []byte) error {
	for _, unit := range byteUnits {
		digits, ok := strings.CutSuffix(string(text), unit.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n < 0 || n > math.MaxInt32/unit.bytes {
			break
		}
		*s = byteSize(n * unit.bytes)
		return nil
	}
	return errors.New("a size is a number of bytes below 2 GiB, or one of KiB or MiB, as in 64KiB")
}

// String returns the size in the largest unit that divides it.
func (s byteSize) String() string {
	switch {
	case s != 0 && s%(1<<20) == 0:
		return fmt.Sprintf("%dMiB", s>>20)
	case s != 0 && s%(1<<10) == 0:
		return fmt.Sprintf("%dKiB", s>>10)
	}
	return fmt.Sprint(int64(s))
}
