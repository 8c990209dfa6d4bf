"""Finds the question and the numbered passages in a chat prompt."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_HEADER = re.compile(r"^\[(\d{1,3})\][ \t]*(.*)$")
# What prompts put between the passages and what follows them.
_END = re.compile(r"^(?:</(?:context|documents|passages|sources)>|#{1,6}\s*question\b.*|question:.*)$", re.IGNORECASE)
_RULE = re.compile(r"^\s*(?:-{3,}|={3,}|</\w+>)\s*$", re.MULTILINE)
_QUESTION_LABEL = re.compile(r"^(?:#{1,6}\s*)?question\b\s*:?\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of the conversation, its content as plain text."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A numbered passage of the prompt."""

    number: int
    title: str
    """What stands beside the number; empty where the text begins there."""
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a responder is asked, and what it may answer from."""

    question: str
    passages: list[Passage]


def read_prompt(turns: Sequence[Turn]) -> Prompt:
    """The last user message as the question, and the passages of the last message that has any.

    Passages begin at a line `[n] title` and are numbered from 1. Where they stand in the last user message itself,
    the question is what follows a closing tag or `Question:`, or else the message's last paragraph.
    """
    last_user = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=-1)
    question = turns[last_user].content if last_user >= 0 else ""
    for index in range(len(turns) - 1, -1, -1):
        if turns[index].role in ("assistant", "tool"):
            continue
        passages, rest = split_passages(turns[index].content)
        if passages:
            if index == last_user:
                question, passages = _question_after(passages, rest)
            return Prompt(_QUESTION_LABEL.sub("", question.strip()), passages)
    return Prompt(question.strip(), [])


def split_passages(text: str) -> tuple[list[Passage], str]:
    """The numbered passages of a message, and what stands after them.

    Only the next number in turn begins a passage, so that a reference list within one is left in it.
    """
    blocks: list[tuple[str, list[str]]] = []
    rest: list[str] = []
    lines = text.splitlines()
    for position, line in enumerate(lines):
        header = _HEADER.match(line)
        if header and int(header[1]) == len(blocks) + 1:
            blocks.append((header[2].strip(), []))
        elif blocks and _END.match(line.strip()) and not _passage_follows(lines[position + 1 :], len(blocks) + 1):
            rest = lines[position:]
            break
        elif blocks:
            blocks[-1][1].append(line)
    passages = [_passage(number, head, body) for number, (head, body) in enumerate(blocks, 1)]
    return passages, "\n".join(rest)


def _passage_follows(lines: Sequence[str], number: int) -> bool:
    return any(line.startswith(f"[{number}]") for line in lines)


def _passage(number: int, head: str, body: Sequence[str]) -> Passage:
    text = "\n".join(body).strip("\n")
    if not text.strip() or head.endswith((".", "!", "?")):
        return Passage(number, "", f"{head}\n{text}".strip("\n"))
    return Passage(number, head, text)


def _question_after(passages: list[Passage], rest: str) -> tuple[str, list[Passage]]:
    if question := _RULE.sub("", rest).strip():
        return question, passages
    last = passages[-1]
    text, separator, question = last.text.rstrip().rpartition("\n\n")
    if not separator:
        return "", passages
    return _RULE.sub("", question).strip(), [*passages[:-1], Passage(last.number, last.title, text)]
