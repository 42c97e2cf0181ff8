package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/alecthomas/kong"

	"converge/internal/database"
	"converge/internal/process"
)

type configCmd struct {
	Command []string `arg:"" optional:"" passthrough:"" help:"The command with its flags, as you would run it; up when none is given."`
}

// Run prints each flag of the command with its value and where the value comes from.
func (c *configCmd) Run(stdout io.Writer) error {
	args := c.Command
	if len(args) == 0 {
		args = []string{"up"}
	}
	var other cli
	parser, err := newParser(&other, io.Discard, io.Discard)
	if err != nil {
		return err
	}
	parsed, err := parse(parser, args)
	var left exited
	if errors.As(err, &left) {
		return usageError{errors.New("config takes a command and its flags, not --help")}
	}
	if err != nil {
		return usageError{err}
	}
	out := tabwriter.NewWriter(stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintf(out, "# converge %s\n", parsed.Command())
	for _, flag := range parsed.Flags() {
		if flag.Name == "help" {
			continue
		}
		fmt.Fprintf(out, "--%s\t%s\t%s\n", flag.Name, redacted(flag.Name, fmt.Sprint(parsed.FlagValue(flag))), source(parsed, flag))
	}
	return out.Flush()
}

// redacted hides what must not be printed: passwords in URLs and anything that is named a secret.
func redacted(name, value string) string {
	switch {
	case value == "":
		return "(none)"
	case strings.Contains(name, "token") || strings.Contains(name, "password") || strings.Contains(name, "secret"):
		return "(hidden)"
	case name == "database" || strings.Contains(value, "://"):
		return database.Redact(value)
	}
	return value
}

func source(parsed *kong.Context, flag *kong.Flag) string {
	for _, path := range parsed.Path {
		if path.Flag == flag && !path.Resolved {
			return "flag"
		}
	}
	for _, env := range flag.Envs {
		if _, ok := os.LookupEnv(env); ok {
			return env
		}
	}
	return "default"
}

// usageError is a mistake in how the command was called.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }
func (usageError) ExitCode() int   { return process.ExitUsage }
