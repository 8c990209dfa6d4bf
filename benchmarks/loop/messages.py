"""What all candidates take in and give out: the same models for every one written in Python."""

from handler_core.contract.base import Message

STREAM = "BENCH"
WORK_SUBJECT = "bench.work"
RESULT_SUBJECT = "bench.result"
"""Results go to `bench.result.{user_id}`, by plain core publish."""


class Work(Message):
    """A message of the stream, as a MessagePack map of some 370 bytes; its trace context is in the headers."""

    request_id: str
    user_id: str
    text: str
    """200 characters."""
    values: list[float]
    """Eight of them."""
    attempt: int = 1


class Result(Message):
    """What a candidate computes from a `Work`."""

    request_id: str
    length: int
    """Characters in the text."""
    total: float
    """The sum of the values."""


def compute(work: Work) -> Result:
    """The work itself: next to nothing, so that the loop around it is what is measured."""
    return Result(request_id=work.request_id, length=len(work.text), total=sum(work.values))
