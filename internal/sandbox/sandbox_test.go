package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sr"
)

// TestMain lets the test binary be the process that dies: with childDir set it runs the engines there,
// says that they hold what they should, and waits for its end.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := beChild(dir); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		select {}
	}
	os.Exit(m.Run())
}

const (
	childDir = "CONVERGE_TEST_SANDBOX_DIR"
	records  = 2000
)

func beChild(dir string) error {
	ctx := context.Background()
	k, err := StartKafka(KafkaConfig{Dir: filepath.Join(dir, "kafka"), Addr: "127.0.0.1:0"})
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(k.Brokers()...), kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t"), kgo.DisableAutoCommit(), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return err
	}
	if _, err := kadm.NewClient(client).CreateTopic(ctx, 2, 1, nil, "t"); err != nil {
		return err
	}
	for i := range records {
		if err := client.ProduceSync(ctx, &kgo.Record{Topic: "t", Partition: int32(i % 2), Value: []byte(strconv.Itoa(i))}).FirstErr(); err != nil {
			return err
		}
	}
	if err := client.CommitRecords(ctx, &kgo.Record{Topic: "t", Partition: 1, Offset: 41}); err != nil {
		return err
	}
	r, err := OpenRegistry(RegistryConfig{Dir: filepath.Join(dir, "registry"), Addr: "127.0.0.1:0"})
	if err != nil {
		return err
	}
	go func() { _ = r.Serve(ctx) }()
	id, err := register(ctx, r, "orders-a", `{"type":"record","name":"A","fields":[]}`)
	if err != nil {
		return err
	}
	p, err := StartPostgres(ctx, PostgresConfig{Dir: filepath.Join(dir, "postgres"), Volatile: true})
	if err != nil {
		return err
	}
	fmt.Println("ready", id, p.pid)
	return nil
}

func register(ctx context.Context, r *Registry, subject, schema string) (int, error) {
	client, err := sr.NewClient(sr.URLs(r.URL()))
	if err != nil {
		return 0, err
	}
	created, err := client.CreateSchema(ctx, subject, sr.Schema{Schema: schema})
	return created.ID, err
}

func TestWhatWasAcknowledgedSurvivesKillNineAndNoServerDoes(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childDir+"="+dir)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var id, pid int
	if _, err := fmt.Sscanf(line, "ready %d %d", &id, &pid); err != nil {
		t.Fatalf("the child said %q", line)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()

	eventually(t, "the PostgreSQL of a killed process is gone", func() error {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("process %d: %v", pid, err)
		}
		return nil
	})

	k, err := StartKafka(KafkaConfig{Dir: filepath.Join(dir, "kafka"), Addr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	client, err := kgo.NewClient(kgo.SeedBrokers(k.Brokers()...), kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	reading, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	seen := map[string]bool{}
	for len(seen) < records {
		fetches := client.PollFetches(reading)
		if err := fetches.Err0(); err != nil {
			t.Fatalf("after %d of %d records: %v", len(seen), records, err)
		}
		fetches.EachRecord(func(r *kgo.Record) { seen[string(r.Value)] = true })
	}
	offsets, err := kadm.NewClient(client).FetchOffsets(ctx, "g")
	if committed, ok := offsets.Lookup("t", 1); err != nil || !ok || committed.At != 42 {
		t.Errorf("the committed offset is %v (%v), want 42", committed.At, err)
	}

	r, err := OpenRegistry(RegistryConfig{Dir: filepath.Join(dir, "registry"), Addr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	serving, stop := context.WithCancel(ctx)
	served := make(chan error)
	go func() { served <- r.Serve(serving) }()
	again, err := register(ctx, r, "orders-a", `{"type":"record","name":"A","fields":[]}`)
	if err != nil || again != id {
		t.Errorf("the schema's id is %d after the restart (%v), was %d", again, err, id)
	}
	other, err := register(ctx, r, "orders-b", `{"type":"record","name":"B","fields":[]}`)
	if err != nil || other == id {
		t.Errorf("another schema got id %d (%v), the first has %d", other, err, id)
	}
	stop()
	if err := <-served; err != nil {
		t.Errorf("the registry ended with %v", err)
	}

	p, err := StartPostgres(ctx, PostgresConfig{Dir: filepath.Join(dir, "postgres"), Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(ctx); err != nil {
		t.Error(err)
	}
}

func TestPostgresResumesInADirectoryThatOthersCannotEnter(t *testing.T) {
	ctx := t.Context()
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(closed, "postgres")
	for round := range 2 {
		p, err := StartPostgres(ctx, PostgresConfig{Dir: dir, Volatile: true})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := pgx.Connect(ctx, p.URL())
		if err != nil {
			t.Fatal(err)
		}
		var level string
		if err := conn.QueryRow(ctx, "SHOW wal_level").Scan(&level); err != nil || level != "logical" {
			t.Errorf("wal_level is %q (%v), want logical", level, err)
		}
		if round == 0 {
			_, err = conn.Exec(ctx, "CREATE TABLE kept AS SELECT 42 AS answer")
		} else {
			var answer int
			err = conn.QueryRow(ctx, "SELECT answer FROM kept").Scan(&answer)
		}
		if err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		conn.Close(ctx)
		if err := p.Stop(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTroubleNamesItsFix(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, err = StartKafka(KafkaConfig{Dir: t.TempDir(), Addr: taken.Addr().String()})
	if !errors.Is(err, syscall.EADDRINUSE) && (err == nil || !strings.Contains(err.Error(), "--kafka")) {
		t.Errorf("a taken port: %v", err)
	}
	dir := t.TempDir()
	release, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(dir); !errors.Is(err, ErrInUse) {
		t.Errorf("a second lock: %v, want ErrInUse", err)
	}
	release()
	release, err = Lock(dir)
	if err != nil {
		t.Errorf("a lock that was released: %v", err)
	} else {
		release()
	}
	if _, err := StartPostgres(t.Context(), PostgresConfig{Dir: t.TempDir(), Binaries: t.TempDir()}); !errors.Is(err, ErrNoPostgres) {
		t.Errorf("binaries that are not there: %v, want ErrNoPostgres", err)
	}
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not within 20 s: %s: %v", what, err)
		}
	}
}
