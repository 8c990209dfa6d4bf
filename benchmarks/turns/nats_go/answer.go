package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"github.com/vmihailenco/msgpack/v5"

	"benchmarks/turns/wire"
)

// answer writes the events and the final response of a turn, each on condition that the one before it is the newest.
type answer struct {
	js      jetstream.JetStream
	id      string
	attempt int
	trace   string
	writer  string
	stream  string
	last    uint64
	seq     int

	mu     sync.Mutex
	text   strings.Builder
	closed bool
	wake   chan struct{}
}

func newAnswer(js jetstream.JetStream, id string, attempt int, trace string) *answer {
	return &answer{
		js: js, id: id, attempt: attempt, trace: trace, writer: nuid.Next(),
		stream: "evt.chat.response.stream." + id, wake: make(chan struct{}, 1),
	}
}

// write adds text; it goes out once the event before it is stored.
func (a *answer) write(text string) {
	if text == "" {
		return
	}
	a.mu.Lock()
	a.text.WriteString(text)
	a.mu.Unlock()
	a.signal()
}

// close says that there is no more text.
func (a *answer) close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.signal()
}

func (a *answer) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// pump publishes what write brings, one event at a time, until close.
func (a *answer) pump(ctx context.Context) error {
	for {
		select {
		case <-a.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		a.mu.Lock()
		text, closed := a.text.String(), a.closed
		a.text.Reset()
		a.mu.Unlock()
		if text != "" {
			if err := a.event(ctx, "chunk", text); err != nil {
				return err
			}
		}
		if closed {
			return nil
		}
	}
}

// finish stores the final response, then ends the stream.
func (a *answer) finish(ctx context.Context, response *wire.ChatResponse) error {
	body, err := msgpack.Marshal(response)
	if err != nil {
		return err
	}
	message := a.message("evt.chat.response."+a.id, body)
	_, err = a.js.PublishMsg(ctx, message, jetstream.WithExpectLastSequenceForSubject(a.last, a.stream),
		jetstream.WithMsgID(fmt.Sprintf("%s:%s:final", a.id, a.writer)))
	if err != nil {
		return err
	}
	return a.event(ctx, "done", "")
}

func (a *answer) event(ctx context.Context, kind, content string) error {
	body, err := msgpack.Marshal(&wire.StreamEvent{
		RequestID: a.id, Seq: a.seq + 1, Attempt: a.attempt, Type: kind, Content: content, Done: kind == "done",
		Timestamp: float64(time.Now().UnixMicro()) / 1e6,
	})
	if err != nil {
		return err
	}
	stored, err := a.js.PublishMsg(ctx, a.message(a.stream, body), jetstream.WithExpectLastSequencePerSubject(a.last),
		jetstream.WithMsgID(fmt.Sprintf("%s:%s:%d", a.id, a.writer, a.seq+1)))
	if err != nil {
		return err
	}
	a.last, a.seq = stored.Sequence, a.seq+1
	return nil
}

func (a *answer) message(subject string, body []byte) *nats.Msg {
	message := nats.NewMsg(subject)
	message.Data = body
	if a.trace != "" {
		message.Header.Set("traceparent", a.trace)
	}
	return message
}
