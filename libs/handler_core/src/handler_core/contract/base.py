"""What every request and event has in common."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

_ID = "[A-Za-z0-9_-]{1,64}"
Token = Annotated[str, StringConstraints(pattern=f"^{_ID}$")]
"""An id that becomes a subject token: no dots, wildcards or spaces can reach a subject through it."""

is_token = re.compile(_ID).fullmatch
"""Whether a string is such an id, for one that is in no model."""


class Message(BaseModel):
    """A MessagePack map on the wire; unknown fields are ignored."""

    # Built at its first use: of the messages that there are, a process has to do with a few.
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, defer_build=True)


class Request(Message):
    """The fields that every request may carry; one that is nil counts as absent."""

    request_id: Token | None = None
    """Names the turn; made by the handler when absent. Reusing one returns the first turn's answer."""
    session_id: Token | None = None
    user_id: Token | None = None
    """The user; where the subject names one, that one counts."""
    deadline_ms: int | None = Field(default=None, gt=0, le=86_400_000)
    """How long the answer is of use, in milliseconds from the message's arrival in the stream."""
    response_subject: str | None = Field(default=None, max_length=512)
    """A further subject for the final response: `_INBOX.>` or below the family's own response prefix."""

    @model_validator(mode="before")
    @classmethod
    def _nil_is_absent(cls, data: Any) -> Any:
        if isinstance(data, dict) and None in data.values():
            return {name: value for name, value in data.items() if value is not None}
        return data
