package stats

import (
	"sync"
	"time"
)

// forgetAfter is how long a Sampler keeps what nobody asks for.
const forgetAfter = 10 * time.Minute

// Sampler makes rates out of readings. It reads only when asked: a rate is over
// the time since the last reading that is at least a period old, so that two
// clients who ask shortly after each other get the same rate and not the noise
// between them. The first reading of a key has none.
type Sampler struct {
	period time.Duration
	now    func() time.Time

	mu    sync.Mutex // Protects the fields below; never held while reading.
	known map[string]*sample
	swept time.Time
}

// sample is what is kept of one cgroup.
type sample struct {
	pid   int
	paths Paths
	// base is the reading that the next rate starts from, rate the one it gave.
	base  Cgroup
	rate  uint64
	asked time.Time
}

// NewSampler returns a Sampler whose rates are over a period at least.
func NewSampler(period time.Duration) *Sampler {
	return &Sampler{period: period, now: time.Now, known: map[string]*sample{}}
}

// Read reads the cgroup of the process, with NanoCores when it is known. The key
// names the cgroup, such as a container's id; its directories are looked up once
// per key and pid, so that a process which moves itself later isn't followed.
func (s *Sampler) Read(key string, pid int) (Cgroup, error) {
	paths := s.paths(key, pid)
	if paths == nil {
		var err error
		if paths, err = PathsOf(pid); err != nil {
			return Cgroup{}, err
		}
	}
	c, err := paths.Read()
	if err != nil {
		return Cgroup{}, err
	}
	c.CPU.NanoCores = s.observe(key, pid, paths, c)
	return c, nil
}

func (s *Sampler) paths(key string, pid int) Paths {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.known[key]; k != nil && k.pid == pid {
		return k.paths
	}
	return nil
}

// observe takes a reading and returns the rate.
func (s *Sampler) observe(key string, pid int, paths Paths, c Cgroup) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep()
	k := s.known[key]
	// A counter that went back is another cgroup's, though its name be the same.
	if k == nil || k.pid != pid || c.CPU.UsageNanos < k.base.CPU.UsageNanos {
		k = &sample{pid: pid, paths: paths, base: c}
		s.known[key] = k
	}
	k.asked = s.now()
	elapsed := c.At.Sub(k.base.At)
	if elapsed >= s.period && elapsed > 0 {
		used := c.CPU.UsageNanos - k.base.CPU.UsageNanos
		k.rate = uint64(float64(used) / elapsed.Seconds())
		k.base = c
	}
	return k.rate
}

// sweep forgets cgroups that nobody has asked for in a long time.
func (s *Sampler) sweep() {
	now := s.now()
	if now.Sub(s.swept) < forgetAfter {
		return
	}
	s.swept = now
	for key, k := range s.known {
		if now.Sub(k.asked) >= forgetAfter {
			delete(s.known, key)
		}
	}
}
