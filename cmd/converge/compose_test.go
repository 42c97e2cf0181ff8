package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/compose-spec/compose-go/v2/graph"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"

	"converge/schemas"
)

// loadCompose returns the project that the compose file's text describes.
func loadCompose(text string) (*types.Project, error) {
	return loader.LoadWithContext(context.Background(), types.ConfigDetails{
		WorkingDir:  "../..",
		ConfigFiles: []types.ConfigFile{{Filename: "docker-compose.yml", Content: []byte(text)}},
		Environment: types.Mapping{},
	}, func(o *loader.Options) { o.SetProjectName("converge", true) })
}

func composeText(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// container is one of the compose file's containers that run converge.
type container struct {
	name        string
	command     []string
	environment []string // NAME=VALUE, sorted
	leaves      bool     // others wait for its end
	awaited     bool     // others wait until it is healthy
}

// containers returns those that run converge, in the order in which the file lets them start.
func containers(p *types.Project) ([]container, error) {
	var mu sync.Mutex
	var ordered []container
	err := graph.InDependencyOrder(context.Background(), p, func(_ context.Context, name string, s types.ServiceConfig) error {
		if s.Build == nil {
			return nil
		}
		c := container{name: name, command: s.Command}
		for variable, value := range s.Environment {
			if value != nil {
				c.environment = append(c.environment, variable+"="+*value)
			}
		}
		slices.Sort(c.environment)
		mu.Lock()
		defer mu.Unlock()
		ordered = append(ordered, c)
		return nil
	}, graph.WithMaxConcurrency(1))
	for i, c := range ordered {
		for _, s := range p.Services {
			switch s.DependsOn[c.name].Condition {
			case types.ServiceConditionCompletedSuccessfully:
				ordered[i].leaves = true
			case types.ServiceConditionHealthy:
				ordered[i].awaited = true
			}
		}
	}
	return ordered, err
}

// refused returns why converge would not start as the container says, nil when it would: by the parser
// that main uses, and the checks that the commands make before they do anything.
func refused(t *testing.T, c container) (served []string, err error) {
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "CONVERGE_") || name == "DATABASE_URL" {
			t.Setenv(name, "") // remembers it for afterwards
			os.Unsetenv(name)
		}
	}
	for _, pair := range c.environment {
		name, value, _ := strings.Cut(pair, "=")
		t.Setenv(name, value)
	}
	var parsed cli
	parser, err := newParser(&parsed, io.Discard, io.Discard)
	if err != nil {
		return nil, err
	}
	if err := unknownEnvironment(parser.Model, c.environment); err != nil {
		return nil, err
	}
	if len(c.command) == 0 {
		return nil, errors.New("it has no command")
	}
	if _, err := parse(parser, c.command); err != nil {
		return nil, err
	}
	switch c.command[0] {
	case "serve":
		s := parsed.Serve
		_, unknown := choose(s.Names)
		return s.Names, errors.Join(unknown, s.connection.check(), s.encoding.check(), s.listener.check())
	case "relay":
		return nil, errors.Join(parsed.Relay.Run.connection.check(), parsed.Relay.Run.listener.check())
	case "console":
		return nil, errors.Join(parsed.Console.connection.check(), parsed.Console.listener.check())
	case "migrate":
		if len(parsed.Migrate.Brokers) == 0 {
			return nil, errors.New("nobody creates the topics: give --brokers")
		}
		return nil, nil
	}
	return nil, fmt.Errorf("a container is not for %s", c.command[0])
}

// composeFaults returns what is wrong with the commands of the compose file.
func composeFaults(t *testing.T, text string) []string {
	project, err := loadCompose(text)
	if err != nil {
		return []string{err.Error()}
	}
	list, err := containers(project)
	if err != nil {
		return []string{err.Error()}
	}
	var faults []string
	unserved := map[string]bool{}
	for _, r := range schemas.Routes() {
		unserved[r.Emitter] = true
		for _, reader := range r.Readers {
			unserved[reader] = true
		}
	}
	for _, c := range list {
		t.Run(cmp.Or(c.name, "-"), func(t *testing.T) { // for its environment alone
			served, err := refused(t, c)
			if err != nil {
				faults = append(faults, c.name+": "+err.Error())
			}
			for _, name := range served {
				delete(unserved, name)
				if name != c.name {
					faults = append(faults, c.name+" serves "+name+": a container is named after what it runs")
				}
			}
		})
	}
	for _, name := range slices.Sorted(maps.Keys(unserved)) {
		faults = append(faults, name+": the topology has it and no container serves it")
	}
	return faults
}

func TestConvergeUnderstandsEveryCommandOfTheComposeFile(t *testing.T) {
	for _, fault := range composeFaults(t, composeText(t)) {
		t.Error(fault)
	}
}

// The check is worth what it catches.
func TestPlantedFaultsInTheComposeFilesCommandsAreReported(t *testing.T) {
	text := composeText(t)
	for wanted, change := range map[string][2]string{
		"unknown flag --slots":         {"--on-missing-slot, backfill", "--slots, create"},
		"must be one of":               {"--on-missing-slot, backfill", "--on-missing-slot, made"},
		"unexpected argument server":   {"[serve, billing", "[server, billing"},
		"no service \"biling\"":        {"[serve, billing", "[serve, biling"},
		"no container serves it":       {"[serve, billing", "[serve, orders"},
		"named after what it runs":     {"[serve, billing", "[serve, orders"},
		"unexpected argument now":      {"[migrate]", "[migrate, now]"},
		"not for config":               {"[migrate]", "[config]"},
		"say --allow-remote":           {`"0.0.0.0:8080", --allow-remote, --on`, `"0.0.0.0:8080", --on`},
		"variable CONVERGE_BROKER":     {"CONVERGE_BROKERS:", "CONVERGE_BROKER:"},
		"no Kafka: give --brokers":     {"CONVERGE_BROKERS:", "BROKERS:"},
		"nobody creates the topics":    {"CONVERGE_BROKERS:", "BROKERS:"},
		"no database":                  {"CONVERGE_DATABASE:", "DATABASE:"},
		"no schema registry":           {"CONVERGE_REGISTRY:", "REGISTRY:"},
		"depends on undefined":         {"postgres: {condition", "pg: {condition"},
		"it has no command":            {"command: [migrate]", "command: []"},
		"--http 8080 is not HOST:PORT": {`[serve, billing, --http, "0.0.0.0:8080"`, `[serve, billing, --http, "8080"`},
	} {
		t.Run(wanted, func(t *testing.T) {
			if !strings.Contains(text, change[0]) {
				t.Fatalf("there is nothing to change: %q", change[0])
			}
			faults := composeFaults(t, strings.ReplaceAll(text, change[0], change[1]))
			if !slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, wanted) }) {
				t.Errorf("not reported; got %q", faults)
			}
		})
	}
}
