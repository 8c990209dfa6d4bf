"""Sessions: what was said in a conversation, read and deleted by its user.

Request/reply. On the user's own subject the user is the one that the subject names, which the server's permissions
vouch for; on the plain one it is the request's `user_id`, so that subject is for trusted callers only.
"""

from pydantic import Field

from handler_core.contract.answer import Response
from handler_core.contract.base import Message, Request, Token

SHOW_SUBJECT = "ai.chat.session.show"
DELETE_SUBJECT = "ai.chat.session.delete"
USER_SHOW_SUBJECT = "ai.chat.user.{user}.session.show"
USER_DELETE_SUBJECT = "ai.chat.user.{user}.session.delete"


class SessionRequest(Request):
    """Which session; one of another user is as if it were not there."""

    session_id: Token


class SessionTurn(Message):
    """A question and its answer."""

    request_id: str
    attempt: int = 1
    """Which delivery of the request wrote it."""
    query: str
    response: str
    timestamp: float


class SessionResponse(Response):
    """The turns that are remembered, the oldest first; `error` is `not_found` where there are none."""

    session_id: str = ""
    turns: list[SessionTurn] = Field(default_factory=list)
