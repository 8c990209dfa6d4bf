package main

import (
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"sync"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"benchmarks/turns/wire"
)

const (
	responses = "ai.chat.response."
	events    = responses + "stream."
)

// split tells whether a subject is that of a stream, and whose.
func split(subject string) (stream bool, id string) {
	if id, ok := strings.CutPrefix(subject, events); ok {
		return true, id
	}
	return false, strings.TrimPrefix(subject, responses)
}

// trace makes a W3C trace context for a turn.
func trace(id string) string {
	hash := fnv.New128a()
	hash.Write([]byte(id))
	return fmt.Sprintf("00-%x-%016x-01", hash.Sum(nil), 1)
}

// turn collects one answer.
type turn struct {
	id, question string

	mu           sync.Mutex
	seq          int
	text         strings.Builder
	first, ended time.Time
	final        *wire.ChatResponse
	problem      error
	done         chan struct{}
}

func (t *turn) seen() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seq
}

// take looks at an event or the final response; the turn is over with the first thing that is wrong, or with `done`.
func (t *turn) take(stream bool, body []byte) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ended.IsZero() {
		t.problem = errors.New("something came after its end")
		return
	}
	if t.problem = t.append(stream, body, now); t.problem != nil {
		t.ended = now
	}
	if !t.ended.IsZero() {
		close(t.done)
	}
}

func (t *turn) append(stream bool, body []byte, now time.Time) error {
	if !stream {
		if t.final != nil {
			return errors.New("two final responses")
		}
		t.final = &wire.ChatResponse{}
		return msgpack.Unmarshal(body, t.final)
	}
	var event wire.StreamEvent
	if err := msgpack.Unmarshal(body, &event); err != nil {
		return err
	}
	if event.Seq != t.seq+1 || event.RequestID != t.id || event.Attempt != 1 {
		return fmt.Errorf("event %d, attempt %d, of %s came after event %d", event.Seq, event.Attempt, event.RequestID, t.seq)
	}
	t.seq = event.Seq
	switch {
	case event.Type == "chunk" && !event.Done && event.Content != "":
		if t.first.IsZero() {
			t.first = now
		}
		t.text.WriteString(event.Content)
	case event.Type == "done" && event.Done:
		t.ended = now
	default:
		return fmt.Errorf("an event of the type %q with done %t", event.Type, event.Done)
	}
	return nil
}

// check tells what is wrong with a finished answer.
func (t *turn) check() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.problem != nil {
		return t.problem
	}
	passages := 0
	if *rag {
		passages = wire.TopK
	}
	switch expected := strings.Join(wire.Answer(t.question, passages), ""); {
	case t.final == nil:
		return errors.New("done came before the final response")
	case t.text.String() != expected:
		return fmt.Errorf("the text is wrong: %q", t.text.String())
	case !t.final.Success || t.final.RequestID != t.id || len(t.final.Degraded) > 0:
		return fmt.Errorf("the response is wrong: success %t, degraded %v", t.final.Success, t.final.Degraded)
	case t.final.Response != expected:
		return errors.New("the response has another text than the stream")
	case len(t.final.Sources) != passages || t.final.UsedRAG != *rag || t.final.Usage.CompletionTokens != wire.Tokens:
		return fmt.Errorf("%d sources, %d tokens", len(t.final.Sources), t.final.Usage.CompletionTokens)
	}
	return t.checkSources()
}

// checkSources expects the search's last passages first, as the reranker has them, and the two that are cited.
func (t *turn) checkSources() error {
	for i, source := range t.final.Sources {
		if n := wire.Candidates - 1 - i; source.ID != wire.PassageID(n) || source.Text != wire.Passage(n) {
			return fmt.Errorf("source %d is %s", i, source.ID)
		}
	}
	cited := 0
	if *rag {
		cited = 2
	}
	if len(t.final.Citations) != cited {
		return fmt.Errorf("%d citations", len(t.final.Citations))
	}
	for i, citation := range t.final.Citations {
		if citation.Index != i+1 || citation.SourceID != t.final.Sources[i].ID {
			return fmt.Errorf("citation %d is of %s", citation.Index, citation.SourceID)
		}
	}
	return nil
}
