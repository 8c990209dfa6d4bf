"""Control: stop a turn or a run, wherever it is."""

from handler_core.contract.base import Message, Token

CANCEL_SUBJECT = "ai.turn.cancel.{request_id}"


class CancelRequest(Message):
    """Published on `ai.turn.cancel.{request_id}`; the turn ends with the error `canceled`."""

    request_id: Token
    reason: str = ""
