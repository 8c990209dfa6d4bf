"""Control: stop a turn or a run, wherever it is."""

from pydantic import Field

from handler_core.contract.base import Message, Token

CANCEL_SUBJECT = "ai.turn.cancel.{request_id}"


class CancelRequest(Message):
    """Published on `ai.turn.cancel.{request_id}`; the turn ends with the error `canceled`."""

    request_id: Token | None = None
    """As in the subject, which counts."""
    reason: str = Field(default="", max_length=256)
