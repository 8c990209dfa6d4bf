// Command upstreams stands in for the models and the vector store: it answers at once, so that a turn's time is the
// handler's. It prints the two addresses as a line of JSON, then serves until it is ended.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"benchmarks/turns/wire"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// complete streams an answer as server-sent events, each token in a write of its own, as LLM servers do.
func complete(w http.ResponseWriter, r *http.Request) {
	var request struct {
		Messages []message `json:"messages"`
		Stream   bool      `json:"stream"`
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil || !request.Stream || len(request.Messages) == 0 {
		http.Error(w, `{"detail": "not a streamed chat completion"}`, http.StatusBadRequest)
		return
	}
	question := request.Messages[len(request.Messages)-1].Content
	passages := 0
	for _, message := range request.Messages {
		passages += wire.Passages(message.Content)
	}
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w).Flush
	const head = `data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"default","choices":[`
	fmt.Fprint(w, head, `{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}`, "\n\n")
	for _, token := range wire.Answer(question, passages) {
		content, _ := json.Marshal(token)
		fmt.Fprintf(w, "%s{\"index\":0,\"delta\":{\"content\":%s},\"finish_reason\":null}]}\n\n", head, content)
		if flush() != nil {
			return
		}
	}
	fmt.Fprint(w, head, `{"index":0,"delta":{},"finish_reason":"stop"}]}`, "\n\n")
	fmt.Fprintf(w, "%s],\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n",
		head, wire.Tokens, wire.Tokens+100)
	fmt.Fprint(w, "data: [DONE]\n\n")
}

// embedding gives every text the same vector.
func embedding() http.HandlerFunc {
	numbers := make([]string, wire.Dimension)
	for i := range numbers {
		numbers[i] = fmt.Sprintf("%.8f", float64(i%97-48)/1000)
	}
	vector := strings.Join(numbers, ",")
	return func(w http.ResponseWriter, r *http.Request) {
		var request struct {
			Input []string `json:"input"`
		}
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			http.Error(w, `{"detail": "no list of texts"}`, http.StatusUnprocessableEntity)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"object":"list","model":"default","data":[`)
		for i := range request.Input {
			if i > 0 {
				fmt.Fprint(w, ",")
			}
			fmt.Fprintf(w, `{"object":"embedding","index":%d,"embedding":[%s]}`, i, vector)
		}
		fmt.Fprint(w, `],"usage":{"prompt_tokens":8,"total_tokens":8}}`)
	}
}

// rerank finds the texts better the later they come, which turns the search's order around.
func rerank(w http.ResponseWriter, r *http.Request) {
	var request struct {
		Query string   `json:"query"`
		Texts []string `json:"texts"`
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil || request.Query == "" {
		http.Error(w, `{"detail": "no query and texts"}`, http.StatusUnprocessableEntity)
		return
	}
	type ranked struct {
		Index int     `json:"index"`
		Score float64 `json:"score"`
	}
	results := make([]ranked, 0, len(request.Texts))
	for i := len(request.Texts) - 1; i >= 0; i-- {
		results = append(results, ranked{i, float64(i+1) / float64(len(request.Texts)+1)})
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(results)
}

func run(ctx context.Context) error {
	models, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	vectors, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", complete)
	mux.HandleFunc("POST /v1/embeddings", embedding())
	mux.HandleFunc("POST /rerank", rerank)
	failed := make(chan error, 2)
	go func() { failed <- http.Serve(models, mux) }()
	go func() { failed <- newMilvus().Serve(vectors) }()
	fmt.Printf("{\"models\": \"http://%s\", \"milvus\": \"http://%s\"}\n", models.Addr(), vectors.Addr())
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}
