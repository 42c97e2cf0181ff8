package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// oldest is the first PostgreSQL whose logical decoding the relay reads.
const oldest = 14

// ErrNoPostgres means that no PostgreSQL server could be found or fetched.
var ErrNoPostgres = errors.New("no PostgreSQL server")

// findBinaries returns a directory with postgres, initdb and pg_ctl of a version that serves, and that
// version. It looks at explicit alone when that is given, then where package managers put servers, and
// last fetches one.
func findBinaries(ctx context.Context, explicit string, progress func(string)) (dir string, version int, err error) {
	if explicit != "" {
		version, err := binariesVersion(ctx, explicit)
		if err != nil {
			return "", 0, fmt.Errorf("%w in %s: %w", ErrNoPostgres, explicit, err)
		}
		return explicit, version, nil
	}
	for _, dir := range candidates() {
		if version, err := binariesVersion(ctx, dir); err == nil {
			return dir, version, nil
		}
	}
	dir, err = fetchBinaries(progress)
	if err != nil {
		return "", 0, fmt.Errorf("%w on this machine, and fetching one did not work (%w): install PostgreSQL %d or later, or give --database URL",
			ErrNoPostgres, err, oldest)
	}
	if version, err = binariesVersion(ctx, dir); err != nil {
		return "", 0, fmt.Errorf("the PostgreSQL that was fetched does not run here: %w: install PostgreSQL %d or later, or give --database URL", err, oldest)
	}
	return dir, version, nil
}

// candidates returns the directories that may hold server binaries, the preferred first.
func candidates() []string {
	var dirs []string
	if path, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
		dirs = append(dirs, filepath.Dir(path))
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin",                                           // Debian, Ubuntu
		"/usr/pgsql-*/bin",                                                    // Red Hat, from the PostgreSQL project
		"/opt/homebrew/opt/postgresql*/bin", "/usr/local/opt/postgresql*/bin", // Homebrew
		"/Applications/Postgres.app/Contents/Versions/*/bin",
		"/opt/local/lib/postgresql*/bin", // MacPorts
	} {
		found, _ := filepath.Glob(pattern) // the pattern is well formed
		slices.Sort(found)
		slices.Reverse(found)
		dirs = append(dirs, found...)
	}
	return dirs
}

// binariesVersion returns the major version of the server in dir, or why it does not serve.
func binariesVersion(ctx context.Context, dir string) (int, error) {
	for _, name := range []string{"initdb", "pg_ctl"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return 0, err
		}
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return 0, err
	}
	for field := range strings.FieldsSeq(string(out)) { // "postgres (PostgreSQL) 15.18 (Debian …)"
		major, _, _ := strings.Cut(field, ".")
		if version, err := strconv.Atoi(major); err == nil {
			if version < oldest {
				return 0, fmt.Errorf("it is version %d, older than %d", version, oldest)
			}
			return version, nil
		}
	}
	return 0, fmt.Errorf("its version cannot be read from %q", strings.TrimSpace(string(out)))
}

// fetchBinaries returns the directory of binaries that were fetched, now or earlier. They are kept in the
// user's cache directory; their checksum is verified on the way.
func fetchBinaries(progress func(string)) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	version := embeddedpostgres.V18
	root := filepath.Join(cache, "converge", "postgresql-"+string(version))
	bin := filepath.Join(root, "bin")
	if _, err := os.Stat(filepath.Join(bin, "postgres")); err == nil {
		return bin, nil
	}
	progress(fmt.Sprintf("fetching PostgreSQL %s (15 MB, once)", version))
	scratch, err := os.MkdirTemp("", "converge-fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch)
	// The library fetches, verifies, unpacks and then starts a server. Only the binaries are wanted: its
	// start does not work for root, and ours resumes.
	server := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().Version(version).Port(1).
		CachePath(filepath.Join(cache, "converge")).BinariesPath(root).
		RuntimePath(filepath.Join(scratch, "run")).DataPath(filepath.Join(scratch, "data")).Logger(io.Discard))
	startErr := server.Start()
	if startErr == nil {
		_ = server.Stop()
	}
	if _, err := os.Stat(filepath.Join(bin, "postgres")); err != nil {
		return "", errors.Join(startErr, err)
	}
	return bin, nil
}
