package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is whom the server runs as: PostgreSQL refuses root.
type account struct {
	credential *syscall.Credential // nil: as this process
	passes     bool                // a directory above is closed to the account: it needs leave to pass
}

// serverAccount returns the account for a server in dir: this process's own, or for root the user
// postgres, else nobody, to whom dir then belongs.
func serverAccount(dir string) (account, error) {
	if os.Geteuid() != 0 {
		return account{}, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return account{}, fmt.Errorf("PostgreSQL refuses to run as root, and there is no user postgres or nobody: run as an ordinary user: %w", err)
		}
	}
	uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return account{}, fmt.Errorf("reading the ids of user %s: %w", u.Username, err)
	}
	if err := os.Chown(dir, int(uid), int(gid)); err != nil {
		return account{}, fmt.Errorf("giving %s to user %s: %w", dir, u.Username, err)
	}
	a := account{credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	a.passes = closedAbove(dir)
	if a.passes && !canPass {
		return account{}, fmt.Errorf("user %s, as whom PostgreSQL runs because it refuses root, cannot enter %s: choose a --dir that everybody can enter, like /var/tmp/converge, or run as an ordinary user",
			u.Username, filepath.Dir(dir))
	}
	return a, nil
}

// closedAbove reports whether a directory above dir is closed to others.
func closedAbove(dir string) bool {
	for parent := filepath.Dir(dir); ; parent = filepath.Dir(parent) {
		if info, err := os.Stat(parent); err != nil || info.Mode().Perm()&0o001 == 0 {
			return true
		}
		if parent == filepath.Dir(parent) {
			return false
		}
	}
}
