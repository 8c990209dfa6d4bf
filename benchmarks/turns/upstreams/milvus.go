package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/milvus-io/milvus-proto/go-api/v2/commonpb"
	"github.com/milvus-io/milvus-proto/go-api/v2/milvuspb"
	"github.com/milvus-io/milvus-proto/go-api/v2/schemapb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"benchmarks/turns/wire"
)

// milvus has one loaded collection under any name, whose first passages every search finds. It speaks the part of
// Milvus's own protocol that connecting and searching need.
type milvus struct {
	milvuspb.UnimplementedMilvusServiceServer
	found *schemapb.SearchResultData
}

func newMilvus() *grpc.Server {
	server := grpc.NewServer()
	milvuspb.RegisterMilvusServiceServer(server, &milvus{found: found()})
	return server
}

func (*milvus) Connect(context.Context, *milvuspb.ConnectRequest) (*milvuspb.ConnectResponse, error) {
	info := &commonpb.ServerInfo{BuildTags: "2.6.0"}
	return &milvuspb.ConnectResponse{Status: &commonpb.Status{}, ServerInfo: info, Identifier: 1}, nil
}

func (*milvus) GetVersion(context.Context, *milvuspb.GetVersionRequest) (*milvuspb.GetVersionResponse, error) {
	return &milvuspb.GetVersionResponse{Status: &commonpb.Status{}, Version: "2.6.0"}, nil
}

func (*milvus) DescribeCollection(
	_ context.Context, request *milvuspb.DescribeCollectionRequest,
) (*milvuspb.DescribeCollectionResponse, error) {
	kinds := []struct {
		name string
		kind schemapb.DataType
	}{
		{"id", schemapb.DataType_VarChar}, {"text", schemapb.DataType_VarChar}, {"source", schemapb.DataType_VarChar},
		{"content_hash", schemapb.DataType_VarChar}, {"metadata", schemapb.DataType_JSON},
		{"vector", schemapb.DataType_FloatVector},
	}
	schema := &schemapb.CollectionSchema{Name: request.GetCollectionName()}
	for number, field := range kinds {
		described := &schemapb.FieldSchema{FieldID: int64(100 + number), Name: field.name, DataType: field.kind}
		described.IsPrimaryKey = field.name == "id"
		switch field.kind {
		case schemapb.DataType_VarChar:
			described.TypeParams = []*commonpb.KeyValuePair{{Key: "max_length", Value: "65535"}}
		case schemapb.DataType_FloatVector:
			described.TypeParams = []*commonpb.KeyValuePair{{Key: "dim", Value: strconv.Itoa(wire.Dimension)}}
		}
		schema.Fields = append(schema.Fields, described)
	}
	return &milvuspb.DescribeCollectionResponse{
		Status: &commonpb.Status{}, Schema: schema, CollectionID: 1, CollectionName: request.GetCollectionName(),
		ShardsNum: 1, ConsistencyLevel: commonpb.ConsistencyLevel_Bounded,
	}, nil
}

func (m *milvus) Search(_ context.Context, request *milvuspb.SearchRequest) (*milvuspb.SearchResults, error) {
	limit := 0
	for _, parameter := range request.GetSearchParams() {
		if parameter.GetKey() == "topk" {
			limit, _ = strconv.Atoi(parameter.GetValue())
		}
	}
	if limit != wire.Candidates || len(request.GetPlaceholderGroup()) < 4*wire.Dimension {
		return nil, status.Errorf(codes.InvalidArgument, "a search for %d with no whole vector", limit)
	}
	return &milvuspb.SearchResults{
		Status: &commonpb.Status{}, Results: m.found, CollectionName: request.GetCollectionName(),
	}, nil
}

// found is the result of every search: candidates, the nearest first, without their vectors.
func found() *schemapb.SearchResultData {
	var ids, texts, sources []string
	var metadata [][]byte
	var scores []float32
	for n := range wire.Candidates {
		ids = append(ids, wire.PassageID(n))
		texts = append(texts, wire.Passage(n))
		sources = append(sources, fmt.Sprintf("docs/page-%d.md", n))
		metadata = append(metadata, fmt.Appendf(nil, `{"title": "Page %d", "lang": "en"}`, n))
		scores = append(scores, 0.9-float32(n)/100)
	}
	return &schemapb.SearchResultData{
		NumQueries: 1, TopK: wire.Candidates, Topks: []int64{wire.Candidates}, Scores: scores,
		Ids:              &schemapb.IDs{IdField: &schemapb.IDs_StrId{StrId: &schemapb.StringArray{Data: ids}}},
		PrimaryFieldName: "id", OutputFields: []string{"id", "text", "source", "metadata"},
		FieldsData: []*schemapb.FieldData{
			varchars("id", ids), varchars("text", texts), varchars("source", sources),
			scalars("metadata", schemapb.DataType_JSON, &schemapb.ScalarField{
				Data: &schemapb.ScalarField_JsonData{JsonData: &schemapb.JSONArray{Data: metadata}},
			}),
		},
	}
}

func varchars(name string, values []string) *schemapb.FieldData {
	return scalars(name, schemapb.DataType_VarChar, &schemapb.ScalarField{
		Data: &schemapb.ScalarField_StringData{StringData: &schemapb.StringArray{Data: values}},
	})
}

func scalars(name string, kind schemapb.DataType, values *schemapb.ScalarField) *schemapb.FieldData {
	return &schemapb.FieldData{FieldName: name, Type: kind, Field: &schemapb.FieldData_Scalars{Scalars: values}}
}
