package storage

import "sync"

// keyLocks is a lock for each key. A key that nobody holds takes no memory.
type keyLocks struct {
	mu    sync.Mutex // Protects locks and the counts in them.
	locks map[string]*keyLock
}

type keyLock struct {
	sync.Mutex
	users int // that hold it or wait
}

// lock takes the lock of key and returns what gives it back.
func (k *keyLocks) lock(key string) (unlock func()) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*keyLock{}
	}
	l := k.locks[key]
	if l == nil {
		l = &keyLock{}
		k.locks[key] = l
	}
	l.users++
	k.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.locks, key)
		}
	}
}
