from typing import Any

import pytest

from handler_core.clients.reranker import Ranked, Reranker
from handler_core.deadline import Deadline
from handler_core.errors import DownstreamUnavailable

TEXTS = ["a", "b", "c"]
COHERE = {"results": [{"index": 2, "relevance_score": 7.5}, {"index": 0, "relevance_score": -3}]}


async def rerank(reranker: Reranker, texts: list[str] = TEXTS) -> list[Ranked]:
    return await reranker.rerank("q", texts, deadline=Deadline.after(30))


async def test_texts_come_best_first_and_equal_ones_as_given(server, upstream):
    scores = [{"index": 0, "score": -0.5}, {"index": 2, "score": 3}, {"index": 1, "score": -0.5}]
    server.on("/rerank", server.json(scores))
    assert await rerank(Reranker(upstream, "m")) == [Ranked(2, 3.0), Ranked(0, -0.5), Ranked(1, -0.5)]
    assert server.seen[0].body == {"query": "q", "texts": TEXTS, "raw_scores": False}


async def test_no_texts_make_no_request(server, upstream):
    assert await rerank(Reranker(upstream, "m"), []) == []
    assert server.seen == []


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize("status", [404, 405])
async def test_cohere_like_endpoints_are_found_and_remembered(server, upstream, path, status):
    server.on("/rerank", server.json({}, status))
    server.on(path, server.json(COHERE))
    reranker = Reranker(upstream, "m")
    for _ in range(2):
        assert await rerank(reranker) == [Ranked(2, 7.5), Ranked(0, -3.0)]
    assert server.paths() == [*["/rerank", "/v1/rerank", "/v2/rerank"][: 2 + (path == "/v2/rerank")], path]
    assert server.seen[-1].body == {"query": "q", "documents": TEXTS, "top_n": 3, "model": "m"}


@pytest.mark.parametrize("status", [400, 422])
async def test_a_server_whose_rerank_path_refuses_the_tei_form_is_asked_in_the_other(server, upstream, status):
    server.on("/rerank", server.json({"detail": "documents: Field required"}, status))
    server.on("/v1/rerank", server.json(COHERE))
    assert (await rerank(Reranker(upstream, None)))[0] == Ranked(2, 7.5)
    assert "model" not in server.seen[-1].body


async def test_where_no_form_works_the_most_telling_error_is_raised(server, upstream):
    with pytest.raises(DownstreamUnavailable, match="HTTP 404"):
        await rerank(Reranker(upstream, "m"))
    server.on("/v1/rerank", server.json({"error": {"message": "no such model"}}, 400))
    with pytest.raises(DownstreamUnavailable, match="no such model"):
        await rerank(Reranker(upstream, "m"))


async def test_a_server_down_is_not_asked_in_other_forms(server, upstream):
    server.on("/rerank", server.json({}, 503))
    with pytest.raises(DownstreamUnavailable) as caught:
        await rerank(Reranker(upstream, "m"))
    assert (caught.value.retryable, set(server.paths())) == (True, {"/rerank"})


@pytest.mark.parametrize("told", [True, False])
async def test_long_lists_are_split_to_the_servers_limit_and_merged(server, upstream, told):
    async def answer(request: Any) -> Any:
        texts = server.seen[-1].body["texts"]
        if len(texts) > 4:
            return await server.json({"error": "batch size 10 > maximum allowed batch size 4"}, 422)(request)
        return await server.json([{"index": i, "score": len(text)} for i, text in enumerate(texts)])(request)

    server.on("/rerank", answer)
    if told:
        server.on("/info", server.json({"max_client_batch_size": 4}))
    reranker = Reranker(upstream, None)
    texts = ["x" * (n * 7 % 10) for n in range(10)]
    expected = sorted((Ranked(n, len(text)) for n, text in enumerate(texts)), key=lambda item: -item.score)
    for _ in range(2):
        assert await rerank(reranker, texts) == expected


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        [],
        {"results": []},
        {"results": {"a": 1}},
        [1],
        ["index"],
        [{}],
        [{"index": 0}],
        [{"score": 1}],
        [{"index": 3, "score": 1}],
        [{"index": -1, "score": 1}],
        [{"index": "0", "score": 1}],
        [{"index": True, "score": 1}],
        [{"index": 0.0, "score": 1}],
        [{"index": 0, "score": None}],
        [{"index": 0, "score": "high"}],
        [{"index": 0, "score": float("nan")}],
        [{"index": 0, "score": float("-inf")}],
        [{"index": 0, "score": 10**400}],
        [{"index": 0, "score": 1}, {"index": 0, "score": 1}],
    ],
)
async def test_an_answer_that_is_no_ranking_is_an_error(server, upstream, answer):
    server.on("/rerank", server.json(answer))
    with pytest.raises(DownstreamUnavailable, match="model: answered with"):
        await rerank(Reranker(upstream, "m"))
