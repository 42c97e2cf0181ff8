// Command converge runs a choreography of services over Kafka and PostgreSQL: all of it in one process
// (up), or its parts as separate processes (serve, relay, console), and the tools around it.
//
// The guarantee: what a command reports as done is durable, and every failure ends in one line that
// names the fix and an exit code from the table in package process. It fails to hold for a process that
// is killed: then the next start resumes from what was durable.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"os/user"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"converge/internal/eventcli"
	"converge/internal/process"
	"converge/lab/challenge"
	"converge/lab/load"
)

// version is set by the linker for a release; otherwise the build's own record is shown.
var version = ""

type cli struct {
	LogLevel  string `enum:"debug,info,warn,error" default:"info" help:"Least severe log line to print (${enum})."`
	LogFormat string `enum:"text,json" default:"text" help:"Log as ${enum}."`

	Up        upCmd             `cmd:"" help:"Run the whole pipeline in one process: embedded Kafka and registry, PostgreSQL, relay, services, console."`
	Serve     serveCmd          `cmd:"" help:"Run the named services against a Kafka and a PostgreSQL."`
	Relay     relayCmds         `cmd:"" help:"Stream outbox rows from the WAL into topics, and the tools around that."`
	Console   consoleCmd        `cmd:"" help:"Serve the dashboard, and export consumer lag."`
	Migrate   migrateCmd        `cmd:"" help:"Bring the database's schemas, roles and tables up to date, create the topics, and leave."`
	Event     eventcli.EventCmd `cmd:"" help:"Make, watch, encode and decode events, so that kcat is at home."`
	Dlq       dlqCmd            `cmd:"" help:"List, count, show, edit, redrive and discard dead letters."`
	Group     groupCmd          `cmd:"" help:"Show where consumer groups are, and set where they read on."`
	Rebuild   rebuildCmd        `cmd:"" help:"Build a read model anew from its topics, beside the one in use, and put it in its place."`
	Load      load.Cmd          `cmd:"" help:"Send orders or profile changes at a fixed rate and print percentiles."`
	Challenge challenge.Cmd     `cmd:"" help:"Run the profile-propagation challenge and print its verdict."`
	Config    configCmd         `cmd:"" help:"Print the effective configuration of a command, without secrets."`
	Version   versionCmd        `cmd:"" help:"Print the version."`
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is main with its edges passed in, so that a test can call it.
func run(args []string, stdout, stderr io.Writer) int {
	var c cli
	parser, err := newParser(&c, stdout, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "converge:", err)
		return process.ExitFailed
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parse(parser, args)
	var left exited
	if errors.As(err, &left) {
		return int(left)
	}
	if err == nil {
		err = unknownEnvironment(parser.Model, os.Environ())
	}
	if err != nil {
		fmt.Fprintln(stderr, "converge:", err)
		fmt.Fprintln(stderr, "Try: converge --help")
		return process.ExitUsage
	}

	// The first signal asks for a drain. After it the default action is back, so that a second ends the process.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)

	parsed.BindTo(ctx, (*context.Context)(nil))
	parsed.Bind(c.logger(stderr), parser)
	parsed.BindTo(stdout, (*io.Writer)(nil))
	if err := parsed.Run(); err != nil {
		return report(err, stderr)
	}
	return process.ExitOK
}

// oneLine joins the lines of an error.
var oneLine = strings.NewReplacer(":\n\t", ": ", "\n\t", "; ", "\n", "; ")

// report prints an error that carries a message, on one line, and returns the code that it asks for.
func report(err error, stderr io.Writer) int {
	if text := oneLine.Replace(err.Error()); text != "" {
		fmt.Fprintln(stderr, "converge:", text)
	}
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	return process.ExitFailed
}

// exited is what kong's own exits (--help) become.
type exited int

func (e exited) Error() string { return fmt.Sprintf("exit %d", int(e)) }

func newParser(c *cli, stdout, stderr io.Writer) (*kong.Kong, error) {
	return kong.New(c,
		kong.Name("converge"),
		kong.Description("A choreography of services over Kafka and PostgreSQL that converges.\n\nEvery flag has an environment twin, as in CONVERGE_HTTP for --http."),
		kong.DefaultEnvars("CONVERGE"),
		kong.Vars{"user": userName()},
		kong.Writers(stdout, stderr),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.Exit(func(code int) { panic(exited(code)) }),
	)
}

// userName is who runs the program, as far as the system can tell.
func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "unknown"
}

func parse(parser *kong.Kong, args []string) (parsed *kong.Context, err error) {
	defer func() {
		if r := recover(); r != nil {
			left, ok := r.(exited)
			if !ok {
				panic(r)
			}
			err = left
		}
	}()
	return parser.Parse(args)
}

// testPrefix marks the variables that steer the project's own tests; a binary that they start ignores them.
const testPrefix = "CONVERGE_TEST_"

// unknownEnvironment returns an error when a CONVERGE_ variable belongs to no flag: it is a typing error
// that would otherwise change nothing, silently.
func unknownEnvironment(model *kong.Application, environ []string) error {
	known := map[string]bool{}
	collectEnvironment(model.Node, known)
	var unknown []string
	for _, pair := range environ {
		name, _, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, "CONVERGE_") && !strings.HasPrefix(name, testPrefix) && !known[name] {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	slices.Sort(unknown)
	return fmt.Errorf("no flag belongs to the environment variable %s: unset it, or see converge --help for the flags",
		strings.Join(unknown, ", "))
}

func collectEnvironment(node *kong.Node, known map[string]bool) {
	for _, flag := range node.Flags {
		for _, env := range flag.Envs {
			known[env] = true
		}
	}
	for _, child := range node.Children {
		collectEnvironment(child, known)
	}
}

func (c *cli) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		level = slog.LevelInfo // kong's enum admits no other text
	}
	options := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

type versionCmd struct{}

func (versionCmd) Run(stdout io.Writer) error {
	_, err := fmt.Fprintln(stdout, "converge", buildVersion())
	return err
}

func buildVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	text := info.Main.Version + " " + info.GoVersion
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			text += " " + setting.Value
		}
	}
	return strings.TrimSpace(text)
}
