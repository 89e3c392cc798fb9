package control_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/debvisor/debvisor/cluster/control"
)

// secrets count what is done to them.
type secrets struct {
	mu         sync.Mutex // guards what follows
	due        bool
	fails      int // rotations that fail
	rotations  int
	revision   uint64
	promotions int
}

func (s *secrets) RotationDue() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.due
}

func (s *secrets) RotateSecrets(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rotations++
	if s.rotations <= s.fails {
		return errors.New("no majority")
	}
	s.due, s.revision = false, s.revision+1
	return nil
}

func (s *secrets) Unpromoted() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revision
}

func (s *secrets) PromoteGossipKey(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.promotions++
	s.revision = 0
	return nil
}

func (s *secrets) counts() (rotations, promotions int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rotations, s.promotions
}

func TestSecretsChangeOnceSomebodyLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, s := newCluster(t), &secrets{fails: 2}
		l := lead(t, c, newControl(t, c, func(conf *control.Config) { conf.Secrets = s }), 2)
		defer l.stop()
		pass(10 * time.Minute)
		if r, p := s.counts(); r != 0 || p != 0 {
			t.Fatalf("%d rotations and %d promotions although nobody left", r, p)
		}
		s.mu.Lock()
		s.due = true
		s.mu.Unlock()
		pass(30 * time.Second)
		if r, p := s.counts(); r != 3 || p != 0 {
			t.Fatalf("%d rotations and %d promotions, want 3 (two fail) and none yet", r, p)
		}
		pass(2 * time.Minute)
		if r, p := s.counts(); r != 3 || p != 1 {
			t.Fatalf("%d rotations and %d promotions, want 3 and 1", r, p)
		}
	})
}
