// Command models stands in for the models of a voice turn: it hears, writes and speaks at once, or after the delays that
// its flags name. It prints its address as a line of JSON, then serves until it is ended.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const (
	question = "What is a dead letter?"
	answer   = "A dead letter is a message that will not be tried again [1]. It is kept on a stream of its own, " +
		"with the reason in its headers. The worker stores it before it settles the message, so that nothing is " +
		"lost in between. You can look at the letters with the command line. Those that were mended meanwhile can " +
		"be sent again from there."
	rate          = 24_000
	perCharacter  = rate * 6 / 100 // samples: a voice says some 16 characters a second
	speechInPiece = 16 * 1024
)

var (
	transcription = flag.Duration("transcription", 0, "what a transcription takes")
	first         = flag.Duration("first-token", 0, "what the LLM takes to its first token")
	token         = flag.Duration("token", 0, "what each further token takes")
	speech        = flag.Duration("speech", 0, "what a piece of speech takes")
)

func transcribe(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseMultipartForm(16 << 20); err != nil || len(r.MultipartForm.File["file"]) != 1 {
		http.Error(w, `{"detail": "no file"}`, http.StatusUnprocessableEntity)
		return
	}
	time.Sleep(*transcription)
	w.Header().Set("Content-Type", "application/json")
	segment := fmt.Sprintf(`{"id":0,"start":0,"end":1.3,"text":%q,"avg_logprob":-0.2,"compression_ratio":1.1,"no_speech_prob":0.01}`, question)
	fmt.Fprintf(w, `{"task":"transcribe","language":"english","duration":1.3,"text":%q,"segments":[%s]}`, question, segment)
}

// complete streams the answer word by word, as LLM servers do.
func complete(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w).Flush
	time.Sleep(*first)
	for number, word := range strings.SplitAfter(answer, " ") {
		if number > 0 {
			time.Sleep(*token)
		}
		content, _ := json.Marshal(word)
		fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":%s},\"finish_reason\":null}]}\n\n", content)
		if flush() != nil {
			return
		}
	}
	fmt.Fprint(w, "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n")
}

// speak hums for as long as a voice would take.
func speak(w http.ResponseWriter, r *http.Request) {
	var request struct {
		Input string `json:"input"`
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil || request.Input == "" {
		http.Error(w, `{"error": {"message": "no input"}}`, http.StatusBadRequest)
		return
	}
	time.Sleep(*speech)
	w.Header().Set("Content-Type", "audio/pcm")
	rest := len(request.Input) * perCharacter * 2
	for rest > 0 {
		piece := hum[:min(rest, speechInPiece)]
		if _, err := w.Write(piece); err != nil {
			return
		}
		rest -= len(piece)
	}
}

var hum = func() []byte {
	samples := make([]byte, speechInPiece)
	for i := range len(samples) / 2 {
		value := int16(8000 * math.Sin(2*math.Pi*220*float64(i)/rate))
		binary.LittleEndian.PutUint16(samples[2*i:], uint16(value))
	}
	return samples
}()

func run(ctx context.Context) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/audio/transcriptions", transcribe)
	mux.HandleFunc("POST /v1/chat/completions", complete)
	mux.HandleFunc("POST /v1/audio/speech", speak)
	failed := make(chan error, 1)
	go func() { failed <- http.Serve(listener, mux) }()
	fmt.Printf("{\"models\": \"http://%s\"}\n", listener.Addr())
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}
