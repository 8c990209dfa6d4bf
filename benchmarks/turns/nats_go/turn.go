package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/vmihailenco/msgpack/v5"

	"benchmarks/turns/wire"
)

const (
	collection          = "documents"
	candidatesPerSource = 4
	promptBytes         = 21_000 // some 6,000 tokens
	instructions        = "You answer questions from the numbered passages below. Put the number of the passage that a " +
		"statement rests on in square brackets behind it, like [1] or [2]."
	instructionsAlone = "You answer questions. Be brief and exact, and say so when you do not know."
)

var (
	token      = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	marker     = regexp.MustCompile(`\[(\d{1,3}(?:\s?,\s?\d{1,3})*)\]`)
	unfinished = regexp.MustCompile(`\[[\d,\s]*$`)
)

// timings are the milliseconds of a turn's stages.
type timings map[string]float64

func (t timings) stage(name string, started time.Time) {
	t[name] = float64(time.Since(started).Microseconds()) / 1000
}

// turn answers one question: embed, search, rerank, then the LLM, streamed.
func (h *handler) turn(ctx context.Context, message jetstream.Msg) error {
	started := time.Now()
	var request wire.ChatRequest
	if err := msgpack.Unmarshal(message.Data(), &request); err != nil {
		return err
	}
	if !token.MatchString(request.RequestID) || strings.TrimSpace(request.Query) == "" {
		return errors.New("a request needs an id and a question")
	}
	metadata, err := message.Metadata()
	if err != nil {
		return err
	}
	times := timings{"queue_ms": float64(started.Sub(metadata.Timestamp).Microseconds()) / 1000}
	ctx = withTrace(ctx, message.Headers().Get("traceparent"))
	var sources []wire.Source
	if request.EnableRAG {
		if sources, err = h.retrieve(ctx, &request, times); err != nil {
			return err
		}
	}
	answer := newAnswer(h.js, request.RequestID, int(metadata.NumDelivered), message.Headers().Get("traceparent"))
	response, err := h.respond(ctx, &request, fit(sources), answer, times)
	if err != nil {
		return err
	}
	times.stage("total_ms", metadata.Timestamp)
	if err := answer.finish(ctx, response); err != nil {
		return err
	}
	h.log.Info("turn_answered", "request_id", request.RequestID, "attempt", metadata.NumDelivered, "timings", times)
	return nil
}

func (h *handler) retrieve(ctx context.Context, request *wire.ChatRequest, times timings) ([]wire.Source, error) {
	started := time.Now()
	vector, err := h.upstreams.embed(ctx, request.Query)
	if err != nil {
		return nil, err
	}
	times.stage("embed_ms", started)
	started = time.Now()
	wanted := request.TopK
	if request.EnableReranker {
		wanted *= candidatesPerSource
	}
	sources, err := h.upstreams.search(ctx, collection, vector, wanted)
	if err != nil {
		return nil, err
	}
	times.stage("search_ms", started)
	if request.EnableReranker {
		started = time.Now()
		if err := h.upstreams.rerank(ctx, request.Query, sources); err != nil {
			return nil, err
		}
		times.stage("rerank_ms", started)
		slices.SortStableFunc(sources, func(a, b wire.Source) int {
			if a.Score > b.Score {
				return -1
			}
			return 1
		})
	}
	return sources[:min(request.TopK, len(sources))], nil
}

// respond lets the LLM answer while another goroutine publishes what it has said so far.
func (h *handler) respond(
	ctx context.Context, request *wire.ChatRequest, sources []wire.Source, answer *answer, times timings,
) (*wire.ChatResponse, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	published := make(chan error, 1)
	go func() {
		err := answer.pump(ctx)
		if err != nil {
			cancel(err)
		}
		published <- err
	}()
	started := time.Now()
	var text strings.Builder
	held := ""
	usage, err := h.upstreams.complete(ctx, messages(request, sources), func(piece string) {
		if _, ok := times["llm_first_token_ms"]; !ok {
			times.stage("llm_first_token_ms", started)
		}
		piece = held + piece
		held = unfinished.FindString(piece) // a citation must not be cut
		piece = piece[:len(piece)-len(held)]
		text.WriteString(piece)
		answer.write(piece)
	})
	if err != nil {
		cancel(err)
		<-published
		return nil, err
	}
	text.WriteString(held)
	answer.write(held)
	times.stage("llm_ms", started)
	answer.close()
	if err := <-published; err != nil {
		return nil, err
	}
	return &wire.ChatResponse{
		RequestID: request.RequestID, Timings: times, Degraded: []string{}, Success: true, Response: text.String(),
		Sources: sources, Citations: citations(text.String(), sources), UsedRAG: len(sources) > 0, Usage: usage,
	}, nil
}

// fit keeps the first sources that fit the prompt.
func fit(sources []wire.Source) []wire.Source {
	left := promptBytes
	for i, source := range sources {
		if left -= len(source.Text); left < 0 {
			return sources[:i]
		}
	}
	return sources
}

func messages(request *wire.ChatRequest, sources []wire.Source) []chatMessage {
	var system strings.Builder
	switch {
	case request.SystemPrompt != "":
		system.WriteString(request.SystemPrompt)
	case len(sources) > 0:
		system.WriteString(instructions)
	default:
		system.WriteString(instructionsAlone)
	}
	if len(sources) > 0 {
		system.WriteString("\n\nPassages:")
	}
	for i, source := range sources {
		title, ok := source.Metadata["title"].(string)
		if !ok {
			title = source.ID
		}
		fmt.Fprintf(&system, "\n\n[%d] %s\n%s", i+1, title, source.Text)
	}
	return []chatMessage{{"system", system.String()}, {"user", request.Query}}
}

// citations are the markers that name a source, each source once, placed in characters.
func citations(text string, sources []wire.Source) []wire.Citation {
	found := []wire.Citation{}
	seen := map[int]bool{}
	for _, match := range marker.FindAllStringSubmatchIndex(text, -1) {
		for number := range strings.SplitSeq(text[match[2]:match[3]], ",") {
			index, err := strconv.Atoi(strings.TrimSpace(number))
			if err != nil || index < 1 || index > len(sources) || seen[index] {
				continue
			}
			seen[index] = true
			start := utf8.RuneCountInString(text[:match[0]])
			found = append(found, wire.Citation{Index: index, SourceID: sources[index-1].ID, Start: start})
		}
	}
	return found
}
