// Package wire holds what goes over NATS in a chat turn, and what the benchmark's upstreams answer: the load checks
// every turn against it.
package wire

import (
	"fmt"
	"strings"
)

// RequestSubject is where questions go.
const RequestSubject = "ai.chat.request"

// ChatRequest is a question, with the fields that the benchmark uses.
type ChatRequest struct {
	Query           string `msgpack:"query"`
	RequestID       string `msgpack:"request_id"`
	Collection      string `msgpack:"collection,omitempty"`
	TopK            int    `msgpack:"top_k"`
	EnableRAG       bool   `msgpack:"enable_rag"`
	EnableReranker  bool   `msgpack:"enable_reranker"`
	EnableStreaming bool   `msgpack:"enable_streaming"`
	SystemPrompt    string `msgpack:"system_prompt,omitempty"`
}

// StreamEvent is one event of a streamed answer.
type StreamEvent struct {
	RequestID string  `msgpack:"request_id"`
	Seq       int     `msgpack:"seq"`
	Attempt   int     `msgpack:"attempt"`
	Type      string  `msgpack:"type"`
	Content   string  `msgpack:"content"`
	Done      bool    `msgpack:"done"`
	Timestamp float64 `msgpack:"timestamp"`
}

// Source is a passage that was in the prompt.
type Source struct {
	ID       string         `msgpack:"id"`
	Text     string         `msgpack:"text"`
	Score    float64        `msgpack:"score"`
	Metadata map[string]any `msgpack:"metadata"`
}

// Citation is a marker [n] in the answer.
type Citation struct {
	Index    int    `msgpack:"index"`
	SourceID string `msgpack:"source_id"`
	Start    int    `msgpack:"start"`
}

// Usage counts tokens.
type Usage struct {
	PromptTokens     int `msgpack:"prompt_tokens" json:"prompt_tokens"`
	CompletionTokens int `msgpack:"completion_tokens" json:"completion_tokens"`
	TotalTokens      int `msgpack:"total_tokens" json:"total_tokens"`
}

// ChatResponse is the final answer.
type ChatResponse struct {
	RequestID string             `msgpack:"request_id"`
	Timings   map[string]float64 `msgpack:"timings"`
	Degraded  []string           `msgpack:"degraded"`
	Success   bool               `msgpack:"success"`
	Response  string             `msgpack:"response"`
	Sources   []Source           `msgpack:"sources"`
	Citations []Citation         `msgpack:"citations"`
	UsedRAG   bool               `msgpack:"used_rag"`
	Usage     Usage              `msgpack:"usage"`
}

const (
	// Tokens is how many chunks of text an answer comes in.
	Tokens = 64
	// Dimension is that of an embedding.
	Dimension = 768
	// TopK is how many passages a question asks for; four times as many are searched, for the reranker to choose from.
	TopK = 5
	// Candidates is how many passages a search finds.
	Candidates = 4 * TopK

	passageMark = "from the benchmark's collection."
)

// PassageID names a passage.
func PassageID(number int) string { return fmt.Sprintf("passage-%d", number) }

// Passage is a text of some 800 characters.
func Passage(number int) string {
	sentence := fmt.Sprintf(" A handler waits for passage %d as it would for any other.", number)
	return fmt.Sprintf("This is passage %d %s", number, passageMark) + strings.Repeat(sentence, 13)
}

// Passages counts the passages in a prompt.
func Passages(prompt string) int { return strings.Count(prompt, passageMark) }

// Answer is what the LLM says to a question with so many passages in its prompt, token by token. It names both, so that
// a text shows whose it is and what it was made from, and cites two of the passages with markers that tokens cut.
func Answer(question string, passages int) []string {
	tokens := make([]string, 0, Tokens)
	tokens = append(tokens, "To", " “", question, "”", fmt.Sprintf(" from %d passages:", passages))
	if passages > 1 {
		tokens = append(tokens, " [", "1", "]", " and [2", "]")
	}
	for len(tokens) < Tokens {
		tokens = append(tokens, fmt.Sprintf(" word%d", len(tokens)))
	}
	return tokens
}
