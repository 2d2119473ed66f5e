package harness

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

// slowEnv is how many times slower than a usual one this machine is, for limits of
// time in tests: an emulated machine is ten or twenty times slower.
const slowEnv = "CRI_ENGINE_E2E_SLOW"

var slowness = sync.OnceValue(func() float64 {
	text := os.Getenv(slowEnv)
	if text == "" {
		return 1
	}
	factor, err := strconv.ParseFloat(text, 64)
	if err != nil || factor < 1 || factor > 1000 {
		panic(fmt.Sprintf("%s is %q: it is a number from 1 to 1000", slowEnv, text))
	}
	return factor
})

// Slowly is the limit for what may take d on a usual machine.
func Slowly(d time.Duration) time.Duration {
	return time.Duration(float64(d) * slowness())
}

// IsSlow reports whether the environment says that this machine is a slow one:
// tests that do a thing often do it less often there.
func IsSlow() bool { return slowness() > 1 }
