// Command nats_go is the chat handler as it would be written in Go, on nats.go: the same calls in the same order, the
// same acknowledged and sequenced events, the same coalescing of tokens. It does not take over a turn that another
// worker began.
package main

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/milvus-io/milvus-proto/go-api/v2/milvuspb"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	stream      = "AI_CHAT"
	durable     = "chat_handler"
	progress    = 3 * time.Second // under a third of the consumer's ack_wait
	turnTimeout = 300 * time.Second
	retryDelay  = time.Second
)

type handler struct {
	js        jetstream.JetStream
	upstreams *upstreams
	log       *slog.Logger
}

// handle answers a message and settles it, telling the server meanwhile that it is in progress.
func (h *handler) handle(ctx context.Context, message jetstream.Msg) {
	ctx, cancel := context.WithTimeout(ctx, turnTimeout)
	defer cancel()
	var beat *time.Timer
	var settled sync.Mutex // a timer that fires while a turn ends must not come after its ack
	ended := false
	beat = time.AfterFunc(progress, func() {
		settled.Lock()
		defer settled.Unlock()
		if !ended && message.InProgress() == nil {
			beat.Reset(progress)
		}
	})
	err := h.turn(ctx, message)
	settled.Lock()
	defer settled.Unlock()
	ended = true
	beat.Stop()
	if err == nil {
		err = message.Ack()
	} else {
		_ = message.NakWithDelay(retryDelay)
	}
	if err != nil {
		h.log.Error("turn_failed", "error", err)
	}
}

// consume keeps maxInFlight turns going until the context ends, then lets those that run finish.
func (h *handler) consume(ctx context.Context, consumer jetstream.Consumer, maxInFlight int) error {
	messages, err := consumer.Messages(jetstream.PullMaxMessages(maxInFlight))
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, messages.Stop)
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, maxInFlight)
	for {
		slots <- struct{}{}
		message, err := messages.Next()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		running.Go(func() {
			defer func() { <-slots }()
			h.handle(context.WithoutCancel(ctx), message)
		})
	}
}

func run(ctx context.Context) error {
	maxInFlight, err := strconv.Atoi(os.Getenv("MAX_IN_FLIGHT"))
	if err != nil {
		return fmt.Errorf("MAX_IN_FLIGHT: %w", err)
	}
	nc, err := nats.Connect(os.Getenv("NATS_URL"), nats.Name("nats_go"), nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	consumer, err := js.Consumer(ctx, stream, durable)
	if err != nil {
		return err
	}
	address := strings.TrimPrefix(os.Getenv("MILVUS_URI"), "http://")
	channel, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer channel.Close()
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 0, maxInFlight
	transport.DisableCompression = true
	h := &handler{
		js:  js,
		log: slog.New(slog.NewJSONHandler(os.Stdout, nil)),
		upstreams: &upstreams{
			http:       &http.Client{Transport: transport},
			milvus:     milvuspb.NewMilvusServiceClient(channel),
			llm:        os.Getenv("LLM_URL"),
			embeddings: os.Getenv("EMBEDDINGS_URL"),
			reranker:   os.Getenv("RERANKER_URL"),
		},
	}
	return h.consume(ctx, consumer, maxInFlight)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}
