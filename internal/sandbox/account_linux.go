package sandbox

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// canPass says that a server can be given leave to pass directories that are closed to its account.
const canPass = true

// attributes returns how to start a server's process: as the account, in a group of its own so that the
// terminal's Ctrl-C reaches only us, and with a fast shutdown when the thread that starts it ends. A
// closed directory above, like /root, is passed with CAP_DAC_READ_SEARCH.
func (a account) attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Credential: a.credential, Pdeathsig: syscall.SIGINT, Setpgid: true}
	if a.passes {
		attr.AmbientCaps = []uintptr{unix.CAP_DAC_READ_SEARCH}
	}
	return attr
}
