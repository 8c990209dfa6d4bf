"""The prompt: numbered passages within a budget of tokens, then the question."""

from collections.abc import Sequence

from handler_core.clients.llm import PromptMessage
from handler_core.contract.chat import Source

SYSTEM = """\
You answer questions from the numbered passages below. Put the number of the passage that a statement rests on in \
square brackets behind it, like [1] or [2]. Where the passages do not hold the answer, say so. Be brief and exact, and \
answer in the language of the question."""

SYSTEM_ALONE = "You answer questions. Be brief and exact, and say so when you do not know."

_BYTES_PER_TOKEN = 3.5
_SMALLEST_PASSAGE = 32


def tokens(text: str) -> int:
    """About how many tokens a text has, by its UTF-8 length: some 3.5 bytes each for the tokenizers in use.

    English has four bytes to a token or a little more, so this overestimates there; Chinese and Japanese have about
    three. A budget needs no more than that.
    """
    return int(len(text.encode()) / _BYTES_PER_TOKEN) + 1 if text else 0


def fit(sources: Sequence[Source], budget: int) -> list[Source]:
    """The first sources whose passages fit into `budget` tokens; the one at the border is cut if enough of it fits."""
    kept: list[Source] = []
    for source in sources:
        overhead = tokens(_heading(len(kept) + 1, source))
        left = budget - overhead
        if left < _SMALLEST_PASSAGE:
            break
        size = tokens(source.text)
        if size > left:
            text = source.text.encode()[: int((left - 1) * _BYTES_PER_TOKEN)].decode(errors="ignore")
            kept.append(source.model_copy(update={"text": text}))
            break
        kept.append(source)
        budget = left - size
    return kept


def messages(question: str, sources: Sequence[Source], system: str | None = None) -> list[PromptMessage]:
    """The messages for the LLM: instructions and passages as `[n] title`, then the question.

    Args:
        system: replaces the instructions; the passages follow it all the same.
    """
    instructions = system or (SYSTEM if sources else SYSTEM_ALONE)
    passages = "\n\n".join(f"{_heading(n, source)}\n{source.text}" for n, source in enumerate(sources, 1))
    content = f"{instructions}\n\nPassages:\n\n{passages}" if passages else instructions
    return [PromptMessage("system", content), PromptMessage("user", question)]


def _heading(number: int, source: Source) -> str:
    title = source.metadata.get("title") or source.metadata.get("source") or source.id
    return f"[{number}] {str(title)[:200]}".replace("\n", " ")
