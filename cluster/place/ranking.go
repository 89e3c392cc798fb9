package place

import "github.com/debvisor/debvisor/api"

// ranking keeps the best entries that it was given, best first. Among equals
// the earlier stays ahead, so nodes given in the order of their names are
// ranked by name.
type ranking struct {
	top   [api.CandidatesMax]ranked
	kept  int
	total int
}

type ranked struct {
	host  *host
	score float64
}

func (r *ranking) add(e ranked) {
	r.total++
	if r.kept == len(r.top) && e.score <= r.top[r.kept-1].score {
		return
	}
	if r.kept < len(r.top) {
		r.kept++
	}
	i := r.kept - 1
	for ; i > 0 && r.top[i-1].score < e.score; i-- {
		r.top[i] = r.top[i-1]
	}
	r.top[i] = e
}

func (r *ranking) list() []ranked { return r.top[:r.kept] }
