"""The prompt: numbered passages within a budget of tokens, then the question."""

import re
from collections.abc import Sequence

from handler_core.clients.llm import PromptMessage
from handler_core.contract.chat import Source
from handler_core.contract.session import SessionTurn

SYSTEM = """\
You answer questions from the numbered passages below. Put the number of the passage that a statement rests on in \
square brackets behind it, like [1] or [2]. Where the passages do not hold the answer, say so. Be brief and exact, and \
answer in the language of the question."""

SYSTEM_ALONE = "You answer questions. Be brief and exact, and say so when you do not know."

_PASSAGES = "\n\nPassages:"
_BYTES_PER_TOKEN = 3.5
_SMALLEST_PASSAGE = 32
# A line of a passage that reads like the heading of another one.
_FALSE_HEADING = re.compile(r"^([ \t]*)\[(\d+)\]", re.MULTILINE)


def tokens(text: str) -> int:
    """About how many tokens a text has, by its UTF-8 length: some 3.5 bytes each for the tokenizers in use.

    English has four bytes to a token or a little more, so this overestimates there; Chinese and Japanese have about
    three. A budget needs no more than that.
    """
    return int(len(text.encode()) / _BYTES_PER_TOKEN) + 1 if text else 0


def recent(turns: Sequence[SessionTurn], budget: int) -> list[SessionTurn]:
    """The last turns that have `budget` tokens together at most, in their order. The oldest of them is cut if enough
    of it fits; the newest is there in any case, its question cut to half the budget if need be."""
    kept: list[SessionTurn] = []
    if budget < _SMALLEST_PASSAGE:
        return kept
    for turn in reversed(turns):
        query = turn.query if kept else _cut(turn.query, budget // 2)  # the newest has its place, however long it is
        left = budget - tokens(query)
        size = tokens(turn.response)
        if kept and left < min(size, _SMALLEST_PASSAGE):
            break
        response = turn.response if size <= left else _cut(turn.response, left)
        kept.append(turn.model_copy(update={"query": query, "response": response}))
        if size > left:
            break
        budget = left - size
    return kept[::-1]


def fit(question: str, sources: Sequence[Source], budget: int, system: str | None = None) -> list[Source]:
    """The first sources with which the prompt has `budget` tokens at most; the one at the border is cut if enough of
    it fits.

    Arguments as for `messages`. Empty where the question and the instructions alone leave no room.
    """
    left = budget - tokens(question) - tokens((system or SYSTEM) + _PASSAGES)
    kept: list[Source] = []
    for source in sources:
        left -= tokens(_passage(len(kept) + 1, source, ""))
        if left < _SMALLEST_PASSAGE:
            break
        size = tokens(source.text)
        if size > left:
            kept.append(source.model_copy(update={"text": _cut(source.text, left)}))
            break
        kept.append(source)
        left -= size
    return kept


def _cut(text: str, budget: int) -> str:
    """As much of the text as has `budget` tokens."""
    if tokens(text) <= budget:
        return text
    return text.encode()[: max(0, int((budget - 1) * _BYTES_PER_TOKEN))].decode(errors="ignore")


def messages(
    question: str, sources: Sequence[Source], system: str | None = None, history: Sequence[SessionTurn] = ()
) -> list[PromptMessage]:
    """The messages for the LLM: instructions and passages as `[n] title`, what was said before, then the question.

    Args:
        system: replaces the instructions; the passages follow it all the same.
        history: earlier turns of the session, the oldest first.
    """
    content = system or (SYSTEM if sources else SYSTEM_ALONE)
    if sources:
        content += _PASSAGES + "".join(_passage(n, source, source.text) for n, source in enumerate(sources, 1))
    said = [
        message
        for turn in history
        for message in (PromptMessage("user", turn.query), PromptMessage("assistant", turn.response))
    ]
    return [PromptMessage("system", content), *said, PromptMessage("user", question)]


def _passage(number: int, source: Source, text: str) -> str:
    """A passage under its heading. A line within it that looks like a heading gets round brackets: whether a list of
    references or a forgery, it would have statements cited as another source's."""
    title = source.metadata.get("title") or source.metadata.get("source") or source.id
    heading = " ".join(str(title)[:200].split())
    return f"\n\n[{number}] {heading}\n" + _FALSE_HEADING.sub(r"\1(\2)", text)
