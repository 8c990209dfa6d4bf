// Command load keeps a number of chat turns in flight, checks every answer and measures. The handler under test is
// whoever takes the questions. It prints its figures as one JSON object.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"github.com/vmihailenco/msgpack/v5"

	"benchmarks/turns/wire"
)

const (
	patience = 30 * time.Second
	// least is how many turns are measured, however long they take.
	least = 10
)

var (
	url         = flag.String("url", nats.DefaultURL, "NATS server")
	concurrency = flag.Int("concurrency", 1, "turns in flight")
	warmUp      = flag.Int("warm-up", 0, "turns to finish before measuring")
	seconds     = flag.Float64("seconds", 1, "how long to measure, at least")
	rag         = flag.Bool("rag", false, "the whole pipeline, not the LLM alone")
)

// sample is one turn, in milliseconds from just before its question was published.
type sample struct {
	ended        time.Time
	whole, first float64
	events       int
}

// load hands what arrives to the turn that waits for it.
type load struct {
	js    jetstream.JetStream
	mu    sync.Mutex
	turns map[string]*turn
}

func (l *load) receive(message *nats.Msg) {
	stream, id := split(message.Subject)
	l.mu.Lock()
	t := l.turns[id]
	l.mu.Unlock()
	if t != nil {
		t.take(stream, message.Data)
	}
}

// ask runs one turn and checks its answer.
func (l *load) ask(ctx context.Context) (sample, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("no whole answer in time"))
	defer cancel()
	id := nuid.Next()
	t := &turn{id: id, question: "What does " + id + " say?", done: make(chan struct{})}
	body, err := msgpack.Marshal(&wire.ChatRequest{
		Query: t.question, RequestID: id, TopK: wire.TopK, EnableRAG: *rag, EnableReranker: true, EnableStreaming: true,
	})
	if err != nil {
		return sample{}, err
	}
	message := nats.NewMsg(wire.RequestSubject)
	message.Data = body
	message.Header.Set("traceparent", trace(id))
	l.mu.Lock()
	l.turns[id] = t
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.turns, id)
		l.mu.Unlock()
	}()
	started := time.Now()
	if _, err := l.js.PublishMsg(ctx, message, jetstream.WithMsgID(id)); err != nil {
		return sample{}, err
	}
	select {
	case <-t.done:
	case <-ctx.Done():
		return sample{}, fmt.Errorf("turn %s: %w after %d events", id, context.Cause(ctx), t.seen())
	}
	if err := t.check(); err != nil {
		return sample{}, fmt.Errorf("turn %s: %w", id, err)
	}
	return sample{
		ended: t.ended, whole: milliseconds(t.ended.Sub(started)), first: milliseconds(t.first.Sub(started)), events: t.seq,
	}, nil
}

// run keeps turns in flight until `seconds` have passed since the warm-up, and lets those that run finish.
func (l *load) run(ctx context.Context) (result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	samples := make(chan sample, *concurrency)
	enough := make(chan struct{})
	var running sync.WaitGroup
	for range *concurrency {
		running.Go(func() {
			for {
				s, err := l.ask(ctx)
				if err != nil {
					cancel(err)
					return
				}
				samples <- s
				select {
				case <-enough:
					return
				default:
				}
			}
		})
	}
	go func() {
		running.Wait()
		close(samples)
	}()
	var all []sample
	var began, until time.Time
	for s := range samples {
		all = append(all, s)
		switch after := len(all) - max(1, *warmUp); {
		case after == 0:
			began = s.ended
		case after >= least && until.IsZero() && s.ended.Sub(began).Seconds() >= *seconds:
			until = s.ended
			close(enough)
		}
	}
	if err := context.Cause(ctx); err != nil {
		return result{}, err
	}
	return summary(all, began, until), nil
}

// result is what is printed.
type result struct {
	Turns      int        `json:"turns"`
	AllTurns   int        `json:"all_turns"`
	Rate       float64    `json:"turns_per_second"`
	Latency    [3]float64 `json:"latency_ms"`
	First      [3]float64 `json:"first_chunk_ms"`
	Events     float64    `json:"events_per_turn"`
	CPUSeconds float64    `json:"cpu_seconds"`
}

// summary counts the turns that ended in the measured time; warm-up and the tail, when fewer run, do not count.
func summary(all []sample, began, until time.Time) result {
	var whole, first []float64
	events := 0
	for _, s := range all {
		if s.ended.After(began) && !s.ended.After(until) {
			whole, first = append(whole, s.whole), append(first, s.first)
			events += s.events
		}
	}
	return result{
		Turns: len(whole), AllTurns: len(all), Rate: float64(len(whole)) / until.Sub(began).Seconds(),
		Latency: percentiles(whole), First: percentiles(first), Events: float64(events) / float64(len(whole)),
		CPUSeconds: cpuSeconds(),
	}
}

// percentiles gives the 50th, 90th and 99th.
func percentiles(values []float64) [3]float64 {
	slices.Sort(values)
	at := func(share float64) float64 { return values[min(int(share*float64(len(values))), len(values)-1)] }
	return [3]float64{at(0.5), at(0.9), at(0.99)}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		log.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}

func run(ctx context.Context) error {
	nc, err := nats.Connect(*url, nats.Name("load"))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	l := &load{js: js, turns: map[string]*turn{}}
	subscription, err := nc.Subscribe(responses+">", l.receive)
	if err != nil {
		return err
	}
	// What is dropped here would count against the handler.
	if err := subscription.SetPendingLimits(-1, -1); err != nil {
		return err
	}
	if err := nc.Flush(); err != nil {
		return err
	}
	r, err := l.run(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}
