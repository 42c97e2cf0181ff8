package kafkatest

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

//go:embed pom.xml
var pom []byte

// version returns the Kafka version that pom.xml names.
func version() (string, error) {
	var project struct {
		Version string `xml:"properties>kafka.version"`
	}
	if err := xml.Unmarshal(pom, &project); err != nil {
		return "", fmt.Errorf("reading pom.xml: %w", err)
	}
	if project.Version == "" {
		return "", errors.New("reading pom.xml: it names no kafka.version")
	}
	return project.Version, nil
}

// fetchTime bounds Maven: 43 MB, 45 files.
const fetchTime = 5 * time.Minute

// Jars returns the directory of the broker's jars in the user's cache, fetching them when they are not
// there, which takes Maven. Processes that want them at the same time wait for the one that fetches.
func Jars(ctx context.Context) (string, error) {
	wanted, err := version()
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("looking for the cache directory: %w", err)
	}
	dir := filepath.Join(cache, "converge", "kafka-"+wanted)
	libs := filepath.Join(dir, "libs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making the cache of Kafka's jars: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return "", fmt.Errorf("locking the cache of Kafka's jars: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("locking the cache of Kafka's jars: %w", err)
	}
	if _, err := os.Stat(libs); err == nil {
		return libs, nil
	}
	if err := fetch(ctx, dir, libs); err != nil {
		return "", err
	}
	return libs, nil
}

// fetch has Maven put the jars into libs, all or none.
func fetch(ctx context.Context, dir, libs string) error {
	file, half := filepath.Join(dir, "pom.xml"), libs+".half"
	if err := errors.Join(os.WriteFile(file, pom, 0o644), os.RemoveAll(half)); err != nil {
		return fmt.Errorf("preparing the cache of Kafka's jars: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	maven := exec.CommandContext(ctx, "mvn", "-q", "-B", "-f", file,
		"dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+half)
	if out, err := maven.CombinedOutput(); err != nil {
		return fmt.Errorf("fetching Kafka with mvn: %w\n%s", err, bytes.TrimSpace(out))
	}
	if err := os.Rename(half, libs); err != nil {
		return fmt.Errorf("putting Kafka's jars in place: %w", err)
	}
	return nil
}
