import base64
import struct
from typing import Any

import pytest

from handler_core.clients.embeddings import Embeddings
from handler_core.deadline import Deadline
from handler_core.errors import DeadlineExceeded, DownstreamUnavailable

PATH = "/v1/embeddings"


def vector(text: str) -> list[float]:
    return [float(len(text)), 0.5]


def item(index: Any, embedding: Any) -> dict[str, Any]:
    return {"index": index, "embedding": embedding}


def openai(server: Any, limit: int = 1000, status: int = 413, message: str = "batch size too large") -> Any:
    """An OpenAI-shaped endpoint that answers in any order and refuses batches above its limit."""

    async def answer(request: Any) -> Any:
        texts = server.seen[-1].body["input"]
        if len(texts) > limit:
            return await server.json({"error": message}, status)(request)
        items = [item(index, vector(text)) for index, text in enumerate(texts)]
        return await server.json({"data": items[::-1]})(request)

    return answer


def tei(server: Any, limit: int = 32) -> Any:
    async def answer(request: Any) -> Any:
        texts = server.seen[-1].body["inputs"]
        if len(texts) > limit:
            message = f"batch size {len(texts)} > maximum allowed batch size {limit}"
            return await server.json({"error": message, "error_type": "Validation"}, 422)(request)
        return await server.json([vector(text) for text in texts])(request)

    return answer


async def embed(embeddings: Embeddings, *texts: str) -> list[list[float]]:
    return await embeddings.embed(texts, deadline=Deadline.after(30))


def texts(count: int) -> list[str]:
    return ["x" * n for n in range(count)]


async def test_vectors_come_in_the_order_of_the_texts(server, upstream):
    server.on(PATH, openai(server))
    assert await embed(Embeddings(upstream, "bge"), "a", "bbb", "cc") == [[1, 0.5], [3, 0.5], [2, 0.5]]
    assert server.seen[0].body == {"input": ["a", "bbb", "cc"], "model": "bge", "encoding_format": "float"}


async def test_a_model_is_named_only_where_there_is_one(server, upstream):
    server.on(PATH, openai(server))
    await embed(Embeddings(upstream, None), "a")
    assert "model" not in server.seen[0].body


async def test_no_texts_make_no_request(server, upstream):
    assert await embed(Embeddings(upstream, "bge")) == []
    assert server.seen == []


async def test_base64_vectors_are_little_endian_float32(server, upstream):
    packed = base64.b64encode(struct.pack("<3f", 1.0, -2.5, 0.25)).decode()
    server.on(PATH, server.json({"data": [item(0, packed)]}))
    assert await embed(Embeddings(upstream, "bge"), "a") == [[1.0, -2.5, 0.25]]


async def test_items_without_an_index_count_in_their_order(server, upstream):
    server.on(PATH, server.json({"data": [{"embedding": [1]}, {"embedding": [2]}]}))
    assert await embed(Embeddings(upstream, "bge"), "a", "b") == [[1.0], [2.0]]


# --- TEI's own form


@pytest.mark.parametrize("status", [404, 405])
async def test_tei_is_found_and_remembered(server, upstream, status):
    server.on(PATH, server.json({"detail": "no"}, status))
    server.on("/embed", tei(server))
    embeddings = Embeddings(upstream, "bge")
    for _ in range(2):
        assert await embed(embeddings, "aa") == [[2.0, 0.5]]
    assert server.paths() == [PATH, "/embed", "/embed"]
    assert server.seen[-1].body == {"inputs": ["aa"]}


async def test_an_unknown_model_is_told_where_neither_form_is_known(server, upstream):
    server.on(PATH, server.json({"error": {"message": "The model `bge` does not exist."}}, 404))
    with pytest.raises(DownstreamUnavailable, match="The model `bge` does not exist") as caught:
        await embed(Embeddings(upstream, "bge"), "a")
    assert not caught.value.retryable


async def test_once_known_the_openai_form_is_kept(server, upstream):
    server.on(PATH, openai(server), server.json({}, 404))
    embeddings = Embeddings(upstream, "bge")
    await embed(embeddings, "a")
    with pytest.raises(DownstreamUnavailable):
        await embed(embeddings, "a")
    assert server.paths() == [PATH, PATH]


# --- batches


def sizes(server: Any) -> list[int]:
    return [len(body.get("input") or body["inputs"]) for body in (request.body for request in server.seen) if body]


async def test_long_lists_are_split(server, upstream):
    server.on(PATH, openai(server))
    assert await embed(Embeddings(upstream, "bge", batch_size=4), *texts(10)) == [vector(text) for text in texts(10)]
    assert sizes(server) == [4, 4, 2]


async def test_the_limit_is_learned_from_info_once(server, upstream):
    server.on("/embed", tei(server, limit=3))
    server.on("/info", server.json({"model_id": "bge", "max_client_batch_size": 3}))
    embeddings = Embeddings(upstream, None, batch_size=8)
    for _ in range(2):
        assert await embed(embeddings, *texts(7)) == [vector(text) for text in texts(7)]
    assert sizes(server) == [7, 7, 3, 3, 1, 3, 3, 1]  # the first found the form
    assert server.paths().count("/info") == 1


@pytest.mark.parametrize("status", [413, 422])
@pytest.mark.parametrize("info", [None, [], {"max_client_batch_size": "x"}, {"max_client_batch_size": 0}])
async def test_batches_are_halved_where_info_tells_nothing(server, upstream, status, info):
    server.on(PATH, openai(server, limit=3, status=status))
    if info is not None:
        server.on("/info", server.json(info))
    embeddings = Embeddings(upstream, "bge", batch_size=8)
    for _ in range(2):
        assert await embed(embeddings, *texts(8)) == [vector(text) for text in texts(8)]
    assert sizes(server) == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]


async def test_a_text_refused_by_itself_is_the_error_and_leaves_the_batch_size(server, upstream):
    async def answer(request):
        bad = "bad" in server.seen[-1].body["input"]
        return await (server.json({"error": "cannot be empty"}, 422) if bad else openai(server))(request)

    server.on(PATH, answer)
    embeddings = Embeddings(upstream, "bge", batch_size=4)
    with pytest.raises(DownstreamUnavailable, match="HTTP 422: cannot be empty"):
        await embed(embeddings, "a", "b", "c", "bad")
    server.seen.clear()
    await embed(embeddings, *texts(4))
    assert sizes(server) == [4]


async def test_a_full_server_is_tried_again(server, upstream):
    server.on(PATH, server.json({"error": "Model is overloaded"}, 429), openai(server))
    assert await embed(Embeddings(upstream, "bge"), "a") == [[1.0, 0.5]]


# --- surprises


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"data": None},
        {"data": [1, 2]},
        {"data": []},
        {"data": [item(0, [1.0])]},
        {"data": [item(0, [1.0]), item(0, [1.0])]},
        {"data": [item(0, [1.0]), item(2, [1.0])]},
        {"data": [item(0, [1.0]), item(1, [1.0]), item(2, [1.0])]},
        {"data": [item(0, [1.0]), item(1, [1.0, 2.0])]},
        {"data": [item(0, [1.0]), item(1, [])]},
        {"data": [item(0, [1.0]), item(1, None)]},
        {"data": [item(0, [1.0]), item(1, ["1"])]},
        {"data": [item(0, [1.0]), item(1, {"a": 1})]},
        {"data": [item(0, [1.0]), item(1, [float("nan")])]},
        {"data": [item(0, [1.0]), item(1, [float("inf")])]},
        {"data": [item(0, [1.0]), item(1, [10**400])]},
        {"data": [item(0, [1.0]), item(1, "not base64!")]},
        {"data": [item(0, [1.0]), item(1, "AAA=")]},
        {"data": [item(0, [1.0]), item([], [1.0])]},
    ],
)
async def test_an_answer_that_is_no_list_of_vectors_is_an_error(server, upstream, answer):
    server.on(PATH, server.json(answer))
    if answer and answer.get("data") and answer["data"][-1] == item([], [1.0]):
        assert await embed(Embeddings(upstream, "bge"), "a", "b") == [[1.0], [1.0]]  # such an index is no index
        return
    with pytest.raises(DownstreamUnavailable, match="model: answered with"):
        await embed(Embeddings(upstream, "bge"), "a", "b")


@pytest.mark.parametrize("answer", [None, {}, [], [[1.0]], [[1.0], None], [[1.0], ["a"]], [[1.0], [1.0, 2.0]]])
async def test_surprises_from_tei_are_errors(server, upstream, answer):
    server.on("/embed", server.json(answer))
    with pytest.raises(DownstreamUnavailable, match="model: answered with"):
        await embed(Embeddings(upstream, None), "a", "b")


async def test_dimensions_must_agree_between_batches(server, upstream):
    server.on(PATH, server.json({"data": [item(0, [1.0])]}), server.json({"data": [item(0, [1.0, 2.0])]}))
    with pytest.raises(DownstreamUnavailable, match="different dimensions"):
        await embed(Embeddings(upstream, "bge", batch_size=1), "a", "b")


async def test_the_deadline_holds_over_all_batches(server, upstream):
    server.on(PATH, openai(server), server.hang())
    with pytest.raises(DeadlineExceeded):
        await Embeddings(upstream, "bge", batch_size=1).embed(["a", "b"], deadline=Deadline.after(0.2))
