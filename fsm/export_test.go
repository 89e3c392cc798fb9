package fsm

// RememberAtMost sets how many request IDs f remembers at once.
func RememberAtMost(f *FSM, n int) { f.current.Load().requests.max = n }

// Remembered is how many request IDs f remembers.
func Remembered(f *FSM) int { return f.current.Load().requests.len() }

// KeepRecent sets how many bytes of records f keeps for event streams.
func KeepRecent(f *FSM, bytes int) { f.recent.most = bytes }
