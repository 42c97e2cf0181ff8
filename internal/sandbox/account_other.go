//go:build unix && !linux

package sandbox

import "syscall"

// canPass says that a server can be given leave to pass directories that are closed to its account.
const canPass = false

// attributes returns how to start a server's process: as the account, in a group of its own so that the
// terminal's Ctrl-C reaches only us.
func (a account) attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: a.credential, Setpgid: true}
}
