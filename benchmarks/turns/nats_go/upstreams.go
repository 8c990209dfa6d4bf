package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"

	"github.com/milvus-io/milvus-proto/go-api/v2/commonpb"
	"github.com/milvus-io/milvus-proto/go-api/v2/milvuspb"
	"github.com/milvus-io/milvus-proto/go-api/v2/schemapb"
	"google.golang.org/protobuf/proto"

	"benchmarks/turns/wire"
)

const longestLine = 1 << 20

type traceKey struct{}

func withTrace(ctx context.Context, traceparent string) context.Context {
	return context.WithValue(ctx, traceKey{}, traceparent)
}

type chatMessage struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type upstreams struct {
	http                      *http.Client
	milvus                    milvuspb.MilvusServiceClient
	llm, embeddings, reranker string
}

func (u *upstreams) post(ctx context.Context, url string, body any) (*http.Response, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	if trace, _ := ctx.Value(traceKey{}).(string); trace != "" {
		request.Header.Set("traceparent", trace)
	}
	response, err := u.http.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(response.Body, 300))
		return nil, fmt.Errorf("%s answered %d: %s", url, response.StatusCode, text)
	}
	return response, nil
}

func (u *upstreams) postJSON(ctx context.Context, url string, body, result any) error {
	response, err := u.post(ctx, url, body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(result); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, response.Body) // to the end, so that the connection is used again
	return err
}

func (u *upstreams) embed(ctx context.Context, text string) ([]float32, error) {
	var result struct {
		Data []struct {
			Embedding []float32 `json:"embedding"`
		} `json:"data"`
	}
	body := map[string]any{"input": []string{text}, "encoding_format": "float"}
	if err := u.postJSON(ctx, u.embeddings+"/v1/embeddings", body, &result); err != nil {
		return nil, err
	}
	if len(result.Data) != 1 {
		return nil, fmt.Errorf("%d embeddings for one text", len(result.Data))
	}
	return result.Data[0].Embedding, nil
}

// search finds the passages nearest to a vector, over Milvus's own protocol and with no more than it needs.
func (u *upstreams) search(ctx context.Context, name string, vector []float32, limit int) ([]wire.Source, error) {
	raw := make([]byte, 0, 4*len(vector))
	for _, value := range vector {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(value))
	}
	group, err := proto.Marshal(&commonpb.PlaceholderGroup{Placeholders: []*commonpb.PlaceholderValue{
		{Tag: "$0", Type: commonpb.PlaceholderType_FloatVector, Values: [][]byte{raw}},
	}})
	if err != nil {
		return nil, err
	}
	reply, err := u.milvus.Search(ctx, &milvuspb.SearchRequest{
		CollectionName: name, PlaceholderGroup: group, DslType: commonpb.DslType_BoolExprV1, Nq: 1,
		OutputFields: []string{"id", "text", "source", "metadata"},
		SearchParams: []*commonpb.KeyValuePair{
			{Key: "anns_field", Value: "vector"}, {Key: "topk", Value: strconv.Itoa(limit)}, {Key: "params", Value: "{}"},
		},
	})
	if err != nil {
		return nil, err
	}
	if reply.GetStatus().GetCode() != 0 {
		return nil, errors.New(reply.GetStatus().GetReason())
	}
	return hits(reply.GetResults())
}

func hits(found *schemapb.SearchResultData) ([]wire.Source, error) {
	var texts, origins []string
	var metadata [][]byte
	for _, field := range found.GetFieldsData() {
		switch field.GetFieldName() {
		case "text":
			texts = field.GetScalars().GetStringData().GetData()
		case "source":
			origins = field.GetScalars().GetStringData().GetData()
		case "metadata":
			metadata = field.GetScalars().GetJsonData().GetData()
		}
	}
	ids := found.GetIds().GetStrId().GetData()
	if len(texts) != len(ids) || len(origins) != len(ids) || len(metadata) != len(ids) {
		return nil, errors.New("a result with fields of different lengths")
	}
	sources := make([]wire.Source, len(ids))
	for i, id := range ids {
		sources[i] = wire.Source{ID: id, Text: texts[i], Score: float64(found.GetScores()[i])}
		if err := json.Unmarshal(metadata[i], &sources[i].Metadata); err != nil {
			return nil, err
		}
		sources[i].Metadata["source"] = origins[i]
	}
	return sources, nil
}

// rerank gives each source the reranker's score.
func (u *upstreams) rerank(ctx context.Context, query string, sources []wire.Source) error {
	texts := make([]string, len(sources))
	for i, source := range sources {
		texts[i] = source.Text
	}
	var results []struct {
		Index int     `json:"index"`
		Score float64 `json:"score"`
	}
	body := map[string]any{"query": query, "texts": texts, "raw_scores": false}
	if err := u.postJSON(ctx, u.reranker+"/rerank", body, &results); err != nil {
		return err
	}
	for _, result := range results {
		if result.Index < 0 || result.Index >= len(sources) {
			return fmt.Errorf("a score for text %d of %d", result.Index, len(sources))
		}
		sources[result.Index].Score = result.Score
	}
	return nil
}

// complete calls write with each piece of the answer, as it comes.
func (u *upstreams) complete(ctx context.Context, prompt []chatMessage, write func(string)) (wire.Usage, error) {
	var usage wire.Usage
	response, err := u.post(ctx, u.llm+"/v1/chat/completions", map[string]any{
		"model": "default", "messages": prompt, "stream": true,
		"stream_options": map[string]any{"include_usage": true},
	})
	if err != nil {
		return usage, err
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(make([]byte, 0, 4096), longestLine)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !ok {
			continue
		}
		if string(data) == "[DONE]" {
			_, err := io.Copy(io.Discard, response.Body)
			return usage, err
		}
		var chunk struct {
			Choices []struct {
				Delta struct {
					Content string `json:"content"`
				} `json:"delta"`
			} `json:"choices"`
			Usage *wire.Usage `json:"usage"`
		}
		if err := json.Unmarshal(data, &chunk); err != nil {
			return usage, err
		}
		if chunk.Usage != nil {
			usage = *chunk.Usage
		}
		if len(chunk.Choices) > 0 && chunk.Choices[0].Delta.Content != "" {
			write(chunk.Choices[0].Delta.Content)
		}
	}
	if err := lines.Err(); err != nil {
		return usage, err
	}
	return usage, errors.New("the stream ended without an end")
}
