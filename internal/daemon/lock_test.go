package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLock(t *testing.T) {
	state := filepath.Join(t.TempDir(), "a", "state")
	unlock, err := lock(state)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("a second engine is refused, and told who has it", func(t *testing.T) {
		_, err := lock(state)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("pid %d,", os.Getpid())) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("it can be taken when the first is gone", func(t *testing.T) {
		unlock()
		again, err := lock(state)
		if err != nil {
			t.Fatal(err)
		}
		again()
	})
}
