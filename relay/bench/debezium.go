package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"converge/internal/usage"
)

//go:embed pom.xml
var pom []byte

// fetchTime bounds Maven: 39 MB, 68 files.
const fetchTime = 5 * time.Minute

// debeziumJars returns the directory of Debezium's jars in the cache, fetching them when they are not there.
func debeziumJars(ctx context.Context, cache string) (string, error) {
	dir := filepath.Join(cache, "debezium")
	libs, half, file := filepath.Join(dir, "libs"), filepath.Join(dir, "libs.half"), filepath.Join(dir, "pom.xml")
	if had, err := os.ReadFile(file); err == nil && bytes.Equal(had, pom) {
		if _, err := os.Stat(libs); err == nil {
			return filepath.Abs(libs)
		}
	}
	progress("fetching Debezium (39 MB, once)")
	for _, old := range []string{libs, half} {
		if err := os.RemoveAll(old); err != nil {
			return "", fmt.Errorf("clearing the cache of Debezium's jars: %w", err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making the cache of Debezium's jars: %w", err)
	}
	if err := os.WriteFile(file, pom, 0o644); err != nil {
		return "", fmt.Errorf("making the cache of Debezium's jars: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	absolute, err := filepath.Abs(half)
	if err != nil {
		return "", fmt.Errorf("making the cache of Debezium's jars: %w", err)
	}
	// Maven keeps each file that it has got, so an attempt that was cut off is resumed.
	maven := exec.CommandContext(ctx, "mvn", "-q", "-B", "-f", file,
		"dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+absolute)
	if out, err := maven.CombinedOutput(); err != nil {
		return "", fmt.Errorf("fetching Debezium with mvn: %w\n%s", err, bytes.TrimSpace(out))
	}
	if err := os.Rename(half, libs); err != nil {
		return "", fmt.Errorf("putting Debezium's jars in place: %w", err)
	}
	return filepath.Abs(libs)
}

// debezium is a standalone worker of Kafka Connect that lives through the whole run, so that its JVM is warm; each
// pass is a connector of its own.
type debezium struct {
	*child
	version  string
	rest     string
	database *pgconn.Config
}

// startDebezium starts the worker with the heap of its start script.
func startDebezium(ctx context.Context, libs, dir, databaseURL string, brokers []string) (*debezium, error) {
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	d := &debezium{version: jarVersion(libs, "debezium-connector-postgres"), rest: "http://127.0.0.1:" + ports[0]}
	if d.database, err = pgconn.ParseConfig(databaseURL); err != nil {
		return nil, fmt.Errorf("reading the database URL: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making Debezium's directory: %w", err)
	}
	file := filepath.Join(dir, "worker.properties")
	err = writeProperties(file, map[string]string{
		"bootstrap.servers": strings.Join(brokers, ","), "listeners": d.rest,
		"offset.storage.file.filename": filepath.Join(dir, "offsets"), "offset.flush.interval.ms": "1000",
		"key.converter":   "org.apache.kafka.connect.storage.StringConverter",
		"value.converter": "io.debezium.converters.BinaryDataConverter",
	})
	if err != nil {
		return nil, err
	}
	cmd := java(libs, []string{"-Xms256m", "-Xmx2g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"},
		"org.apache.kafka.connect.cli.ConnectStandalone", file)
	if d.child, err = startProcess(cmd, filepath.Join(dir, "worker.log")); err != nil {
		return nil, fmt.Errorf("starting Kafka Connect: %w", err)
	}
	err = until(ctx, "Kafka Connect answers", func() (bool, error) {
		return d.call(ctx, http.MethodGet, "/connectors", nil) == nil, d.ended()
	})
	if err != nil {
		d.kill()
		return nil, err
	}
	return d, nil
}

const debeziumName = "Debezium"

func (d *debezium) name() string { return debeziumName }

// call asks the worker's REST interface.
func (d *debezium) call(ctx context.Context, method, path string, body any) error {
	_, err := d.ask(ctx, method, path, body)
	return err
}

// ask is call with the answer.
func (d *debezium) ask(ctx context.Context, method, path string, body any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	encoded, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encoding a connector's configuration: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, method, d.rest+path, bytes.NewReader(encoded))
	if err != nil {
		return nil, fmt.Errorf("asking Kafka Connect: %w", err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("asking Kafka Connect: %w", err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("asking Kafka Connect: %w", err)
	}
	if response.StatusCode >= 300 {
		return nil, fmt.Errorf("asking Kafka Connect: %s %s: %s: %s", method, path, response.Status, answer)
	}
	return answer, nil
}

// connector is Debezium's outbox event router on our table: the columns are mapped by its own options, so that it
// reads the very rows that the relay does. It adds one header of its choice, the event's type; the relay adds eight.
func (d *debezium) connector(t task) map[string]string {
	c := map[string]string{
		"connector.class": "io.debezium.connector.postgresql.PostgresConnector", "tasks.max": "1",
		"database.hostname": d.database.Host, "database.port": fmt.Sprint(d.database.Port),
		"database.user": d.database.User, "database.password": d.database.Password, "database.dbname": d.database.Database,
		"plugin.name": "pgoutput", "slot.name": t.slot, "slot.drop.on.stop": "false",
		"publication.name": publication, "publication.autocreate.mode": "disabled",
		"table.include.list": tableName, "topic.prefix": t.slot, "snapshot.mode": "no_data", "tombstones.on.delete": "false",

		"transforms":                                          "outbox",
		"transforms.outbox.type":                              "io.debezium.transforms.outbox.EventRouter",
		"transforms.outbox.table.field.event.id":              "event_id",
		"transforms.outbox.table.field.event.key":             "aggregate_id",
		"transforms.outbox.table.field.event.payload":         "payload",
		"transforms.outbox.table.fields.additional.placement": "event_type:header",
		"transforms.outbox.route.by.field":                    "topic",
		"transforms.outbox.route.topic.replacement":           "${routedByValue}",

		"max.batch.size": "16384", "max.queue.size": "65536", "poll.interval.ms": "10",
		// Connect's own defaults hold one request in flight; with the idempotent producer five keep the order.
		"producer.override.acks": "all", "producer.override.enable.idempotence": "true",
		"producer.override.max.in.flight.requests.per.connection": "5",
		"producer.override.compression.type":                      "lz4", "producer.override.linger.ms": "5",
		"producer.override.batch.size": "262144",
	}
	if t.swift {
		c["poll.interval.ms"], c["producer.override.linger.ms"] = "1", "2"
	}
	return c
}

func (d *debezium) start(ctx context.Context, t task) (pass, error) {
	if err := usage.ForgetPeak(d.pid()); err != nil {
		return nil, err
	}
	before, err := usage.CPU(d.pid())
	if err != nil {
		return nil, err
	}
	if err := d.call(ctx, http.MethodPut, "/connectors/"+t.slot+"/config", d.connector(t)); err != nil {
		return nil, err
	}
	return &routing{worker: d, slot: t.slot, before: before, looked: time.Now()}, nil
}

// routing is a connector at work.
type routing struct {
	worker *debezium
	slot   string
	before float64
	looked time.Time // when the connector was last asked how it is
}

func (r *routing) cpu() (float64, error) {
	now, err := usage.CPU(r.worker.pid())
	return now - r.before, err
}

func (r *routing) peak() (int64, error) { return usage.Peak(r.worker.pid()) }

// failed asks the worker once a second at most.
func (r *routing) failed() error {
	if err := r.worker.ended(); err != nil || time.Since(r.looked) < time.Second {
		return err
	}
	r.looked = time.Now()
	answer, err := r.worker.ask(context.Background(), http.MethodGet, "/connectors/"+r.slot+"/status", nil)
	if err != nil {
		return nil //nolint:nilerr // it is busy, or has not heard of the connector yet
	}
	var status struct {
		Tasks []struct{ State, Trace string }
	}
	if err := json.Unmarshal(answer, &status); err != nil {
		return fmt.Errorf("reading the connector's status: %w", err)
	}
	for _, t := range status.Tasks {
		if t.State == "FAILED" {
			return fmt.Errorf("the connector failed: %s", t.Trace)
		}
	}
	return nil
}

func (r *routing) stop(ctx context.Context) error {
	return r.worker.call(ctx, http.MethodDelete, "/connectors/"+r.slot, nil)
}
