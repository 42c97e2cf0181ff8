//go:build crashpoints

package relay

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// crashVariable arms a point: received:20 kills the process when it passes the point received for the 20th
// time.
const crashVariable = "CONVERGE_TEST_CRASH"

var armed struct {
	point string
	left  atomic.Int64
}

func init() {
	text := os.Getenv(crashVariable)
	if text == "" {
		return
	}
	point, count, _ := strings.Cut(text, ":")
	left, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		panic(fmt.Sprintf("%s=%s is not POINT:COUNT", crashVariable, text))
	}
	armed.point = point
	armed.left.Store(left)
}

// crash kills the process if it is the point's turn.
func crash(point string) {
	if passed(point) {
		die()
	}
}

// crashTorn does so when half of the connection's status is written.
func crashTorn(w *wire) {
	if passed(crashStatusTorn) {
		_, _ = w.conn.Write(w.status[:len(w.status)/2]) // it dies either way
		die()
	}
}

func passed(point string) bool { return point == armed.point && armed.left.Add(-1) == 0 }

func die() {
	_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
	select {} // the signal is on its way
}
