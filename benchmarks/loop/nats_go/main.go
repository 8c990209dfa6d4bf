// Command nats_go handles the benchmark's messages with nats.go: the peer that a rewrite in Go would be.
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/vmihailenco/msgpack/v5"
)

// pullMaxMessages is how many messages a pull asks for: more than the default of 500 makes it a third quicker here.
const pullMaxMessages = 10_000

// Work is a message of the stream.
type Work struct {
	RequestID string    `msgpack:"request_id"`
	UserID    string    `msgpack:"user_id"`
	Text      string    `msgpack:"text"`
	Values    []float64 `msgpack:"values"`
	Attempt   int       `msgpack:"attempt"`
}

// Result is what is computed from a Work.
type Result struct {
	RequestID string  `msgpack:"request_id"`
	Length    int     `msgpack:"length"`
	Total     float64 `msgpack:"total"`
}

// handle decodes a message, publishes its result with the message's trace context, and acks.
func handle(nc *nats.Conn, message jetstream.Msg) error {
	var work Work
	if err := msgpack.Unmarshal(message.Data(), &work); err != nil {
		return err
	}
	result := Result{RequestID: work.RequestID, Length: len(work.Text)}
	for _, value := range work.Values {
		result.Total += value
	}
	body, err := msgpack.Marshal(&result)
	if err != nil {
		return err
	}
	err = nc.PublishMsg(&nats.Msg{
		Subject: "bench.result." + work.UserID,
		Header:  nats.Header{"traceparent": message.Headers()["traceparent"]},
		Data:    body,
	})
	if err != nil {
		return err
	}
	return message.Ack()
}

func run(ctx context.Context) error {
	nc, err := nats.Connect(os.Getenv("NATS_URL"))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	consumer, err := js.Consumer(ctx, "BENCH", os.Getenv("BENCH_CONSUMER"))
	if err != nil {
		return err
	}
	consuming, err := consumer.Consume(func(message jetstream.Msg) {
		if err := handle(nc, message); err != nil {
			log.Fatal(err)
		}
	}, jetstream.PullMaxMessages(pullMaxMessages))
	if err != nil {
		return err
	}
	defer consuming.Stop()
	<-ctx.Done()
	return nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}
