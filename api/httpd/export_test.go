package httpd

import "time"

// ForgetGuesses lets every address show tickets again.
func ForgetGuesses(s *Server) {
	s.tickets.mu.Lock()
	defer s.tickets.mu.Unlock()
	clear(s.tickets.guesses)
}

// AgeTickets makes tickets and bad guesses older.
func AgeTickets(s *Server, by time.Duration) {
	s.tickets.mu.Lock()
	defer s.tickets.mu.Unlock()
	for hash, k := range s.tickets.live {
		k.expires = k.expires.Add(-by)
		s.tickets.live[hash] = k
	}
	for from, g := range s.tickets.guesses {
		g.since = g.since.Add(-by)
		s.tickets.guesses[from] = g
	}
}
