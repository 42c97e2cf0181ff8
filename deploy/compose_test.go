// Package deploy holds no code: its tests keep docker-compose.yml and what it mounts in step with the
// product. They parse and check; they start no container. That converge understands the file's commands is
// tested where the command line is, in cmd/converge.
package deploy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
)

func load(text string) (*types.Project, error) {
	return loader.LoadWithContext(context.Background(), types.ConfigDetails{
		WorkingDir:  "..",
		ConfigFiles: []types.ConfigFile{{Filename: "docker-compose.yml", Content: []byte(text)}},
		Environment: types.Mapping{},
	}, func(o *loader.Options) { o.SetProjectName("converge", true) })
}

// faults returns what is wrong with the project, in words.
func faults(p *types.Project) []string {
	var found []string
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		s := p.Services[name]
		say := func(format string, args ...any) {
			found = append(found, name+": "+fmt.Sprintf(format, args...))
		}
		checkImage(s, say)
		checkPorts(s, say)
		checkMounts(s, say)
		for dependency, how := range s.DependsOn {
			checkDependency(p, dependency, how.Condition, say)
		}
		if s.Build == nil {
			continue
		}
		if s.User == "" || strings.HasPrefix(s.User, "0") || strings.HasPrefix(s.User, "root") {
			say("it runs as root")
		}
	}
	return found
}

var pinned = regexp.MustCompile(`:v?\d+\.\d+(\.\d+)?(-[\w.]+)?(@sha256:[0-9a-f]{64})?$`)

func checkImage(s types.ServiceConfig, say func(string, ...any)) {
	if s.Build == nil && !pinned.MatchString(s.Image) {
		say("image %s is not pinned to a version", s.Image)
	}
	if s.Build != nil {
		if _, err := os.Stat(filepath.Join("..", s.Build.Dockerfile)); err != nil {
			say("its Dockerfile: %v", err)
		}
	}
}

func checkPorts(s types.ServiceConfig, say func(string, ...any)) {
	for _, port := range s.Ports {
		if ip := net.ParseIP(port.HostIP); ip == nil || !ip.IsLoopback() {
			say("port %s is published beyond loopback", port.Published)
		}
	}
	if s.NetworkMode == "host" {
		say("it shares the host's network")
	}
}

func checkMounts(s types.ServiceConfig, say func(string, ...any)) {
	for _, v := range s.Volumes {
		if v.Type != types.VolumeTypeBind {
			continue
		}
		if _, err := os.Stat(v.Source); errors.Is(err, fs.ErrNotExist) {
			say("it mounts %s, which is not there", v.Source)
		}
		if !v.ReadOnly {
			say("it may write to %s", v.Source)
		}
	}
}

func checkDependency(p *types.Project, dependency, condition string, say func(string, ...any)) {
	on, ok := p.Services[dependency]
	if !ok {
		say("it depends on %s, which is not there", dependency)
		return
	}
	healthy := on.HealthCheck != nil && !on.HealthCheck.Disable && len(on.HealthCheck.Test) > 0 && on.HealthCheck.Test[0] != "NONE"
	leaves := on.Restart == "on-failure" || on.Restart == "no"
	switch {
	case condition == types.ServiceConditionHealthy && !healthy:
		say("it waits for %s to be healthy, which has no health check", dependency)
	case condition == types.ServiceConditionCompletedSuccessfully && !leaves:
		say("it waits for %s to end, which is restarted forever", dependency)
	}
}

func composeText(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestTheComposeFileRunsTheTopology(t *testing.T) {
	project, err := load(composeText(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range faults(project) {
		t.Error(fault)
	}
}

// The check is worth what it catches.
func TestPlantedFaultsInTheComposeFileAreReported(t *testing.T) {
	text := composeText(t)
	for wanted, change := range map[string][2]string{
		"is not pinned":                       {"postgres:18.6-trixie", "postgres:latest"},
		"published beyond loopback":           {`"127.0.0.1:15432:5432"`, `"15432:5432"`},
		"has no health check":                 {"[CMD, pg_isready, -q, -h, 127.0.0.1, -U, converge, -d, converge]", "[NONE]"},
		"which is restarted forever":          {"restart: on-failure", "restart: always"},
		"it runs as root":                     {`user: "65532:65532"`, `user: "0:0"`},
		"which is not there":                  {"./deploy/prometheus:", "./deploy/prometeus:"},
		"it may write":                        {"/etc/prometheus:ro", "/etc/prometheus"},
		"its Dockerfile":                      {"deploy/Dockerfile", "Dockerfile"},
		"depends on undefined service \"pg\"": {"postgres: {condition", "pg: {condition"},
		"services.kafka.port":                 {"ports: [\"127.0.0.1:9092", "port: [\"127.0.0.1:9092"},
	} {
		t.Run(wanted, func(t *testing.T) {
			if !strings.Contains(text, change[0]) {
				t.Fatalf("there is nothing to change: %q", change[0])
			}
			project, err := load(strings.Replace(text, change[0], change[1], 1))
			var found []string
			if err != nil {
				found = []string{err.Error()}
			} else {
				found = faults(project)
			}
			if !slices.ContainsFunc(found, func(f string) bool { return strings.Contains(f, wanted) }) {
				t.Errorf("not reported; got %q", found)
			}
		})
	}
}

func TestEveryProcessIsScraped(t *testing.T) {
	project, err := load(composeText(t))
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile("prometheus/prometheus.yml")
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\s+- (\w+):8080$`).FindAllStringSubmatch(string(config), -1) {
		targets[m[1]] = true
	}
	for name, s := range project.Services {
		listens := s.Build != nil && slices.Contains(s.Command, "--http")
		if listens != targets[name] {
			t.Errorf("%s listens: %t; prometheus.yml scrapes it: %t", name, listens, targets[name])
		}
		delete(targets, name)
	}
	if len(targets) > 0 {
		t.Errorf("prometheus.yml scrapes %v, which are not there", targets)
	}
}

func TestTheImageIsPinnedStaticAndUnprivileged(t *testing.T) {
	dockerfile, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	if wrong := judgeDockerfile(string(dockerfile)); len(wrong) > 0 {
		t.Errorf("%q", wrong)
	}
	for wanted, change := range map[string][2]string{
		"not pinned":   {"alpine:3.22.1", "alpine"},
		"root":         {"USER 65532:65532", "USER root"},
		"not static":   {"CGO_ENABLED=0 ", ""},
		"Go of go.mod": {"golang:1.26", "golang:1.25"},
	} {
		planted := strings.Replace(string(dockerfile), change[0], change[1], 1)
		if wrong := judgeDockerfile(planted); !slices.ContainsFunc(wrong, func(w string) bool { return strings.Contains(w, wanted) }) {
			t.Errorf("planted %q is not reported as %q: %q", change[1], wanted, wrong)
		}
	}
}

func judgeDockerfile(text string) []string {
	var wrong []string
	user := ""
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "FROM":
			user = ""
			if !pinned.MatchString(words[1]) {
				wrong = append(wrong, words[1]+" is not pinned")
			}
		case "USER":
			user = words[1]
		}
	}
	if user == "" || strings.HasPrefix(user, "0") || strings.HasPrefix(user, "root") {
		wrong = append(wrong, "the image runs as root")
	}
	if !strings.Contains(text, "CGO_ENABLED=0") {
		wrong = append(wrong, "the binary is not static")
	}
	module, err := os.ReadFile("../go.mod")
	if err != nil {
		return append(wrong, err.Error())
	}
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(string(module))
	if version == nil || !strings.Contains(text, "FROM golang:"+version[1]) {
		wrong = append(wrong, "the image is not built with the Go of go.mod")
	}
	return wrong
}
