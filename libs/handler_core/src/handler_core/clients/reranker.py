"""Texts ordered by how well they answer a query, from TEI or a Cohere-like endpoint (Cohere, Jina, vLLM)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from handler_core.clients.batches import Batches
from handler_core.clients.failures import UpstreamError
from handler_core.clients.http import Upstream
from handler_core.deadline import Deadline
from handler_core.tracing import Value, span

_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")
_UNKNOWN = frozenset({404, 405})
_OTHER_FORM = _UNKNOWN | {400, 422}
"""How a server answers a form it does not speak: vLLM has `/rerank` too, but refuses TEI's body there."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A text's place in the list that was given, and its score: higher is better, and only the order counts."""

    index: int
    score: float


class Reranker:
    """A rerank endpoint. Which of TEI's `/rerank`, `/v1/rerank` and `/v2/rerank` it has is found at the first call.

    Args:
        upstream: where the endpoint is.
        model: the model to name; None where the endpoint has but one.
        batch_size: texts in one request, less where the upstream takes less. Each text is scored by itself, so
            splitting changes no order.
    """

    def __init__(self, upstream: Upstream, model: str | None, *, batch_size: int = 128) -> None:
        self.upstream = upstream
        self.model = model
        self._batches = Batches(upstream, batch_size)
        self._path: str | None = None

    async def rerank(self, query: str, texts: Sequence[str], *, deadline: Deadline) -> list[Ranked]:
        """The texts by falling score, equal ones in the order given; [] for no texts.

        A text that the upstream leaves out is left out here.

        Raises:
            DownstreamUnavailable: the upstream failed, or sent indexes or scores that cannot be.
            DeadlineExceeded: the deadline came first.
        """

        async def call(batch: Sequence[str]) -> list[float | None]:
            return await self._scores(query, batch, deadline)

        model = self.model or "default"
        attributes: dict[str, Value] = {"gen_ai.operation.name": "rerank", "gen_ai.request.model": model,
                                        "rerank.texts": len(texts), **self.upstream.place}  # fmt: skip
        with span(f"rerank {model}", "client", attributes):
            scores = await self._batches.run(texts, call, deadline)
        ranked = [Ranked(index, score) for index, score in enumerate(scores) if score is not None]
        return sorted(ranked, key=lambda item: -item.score)

    async def _scores(self, query: str, batch: Sequence[str], deadline: Deadline) -> list[float | None]:
        if self._path is not None:
            return await self._ask(self._path, query, batch, deadline)
        errors = []
        for path in _PATHS:
            try:
                scores = await self._ask(path, query, batch, deadline)
            except UpstreamError as error:
                if error.status not in _OTHER_FORM:
                    raise
                errors.append(error)
            else:
                self._path = path
                return scores
        # The one that knew the path tells more than those that did not.
        raise next((error for error in errors if error.status not in _UNKNOWN), errors[0]) from None

    async def _ask(self, path: str, query: str, batch: Sequence[str], deadline: Deadline) -> list[float | None]:
        body: dict[str, Any] = {"query": query}
        if path == "/rerank":
            body |= {"texts": list(batch), "raw_scores": False}
        else:
            body |= {"documents": list(batch), "top_n": len(batch)}
            if self.model is not None:
                body["model"] = self.model
        answer = await self.upstream.post_json(path, body, deadline=deadline)
        items = answer.get("results") if isinstance(answer, dict) else answer
        if not isinstance(items, list) or not items:
            self._surprised("no list of scores")
        scores: list[float | None] = [None] * len(batch)
        for item in items:
            index, score = self._item(item)
            if not 0 <= index < len(batch):
                self._surprised(f"a score for text {index} of {len(batch)}")
            if scores[index] is not None:
                self._surprised(f"two scores for text {index}")
            scores[index] = score
        return scores

    def _item(self, item: Any) -> tuple[int, float]:
        try:
            index, score = item["index"], float(item["relevance_score"] if "relevance_score" in item else item["score"])
        except (KeyError, TypeError, ValueError, OverflowError):
            self._surprised("a result without index and score")
        if not isinstance(index, int) or isinstance(index, bool) or not math.isfinite(score):
            self._surprised("an index that is no integer, or a score that is not finite")
        return index, score

    def _surprised(self, what: str) -> NoReturn:
        raise self.upstream.failures.problem(f"answered with {what}")
