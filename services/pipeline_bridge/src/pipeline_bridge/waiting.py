"""Whether a trigger is still in its queue."""

from datetime import UTC, datetime, timedelta

from handler_core.errors import Transient
from handler_core.jetstream import NO_MESSAGE_FOUND, Api, JetStreamError
from handler_core.streams import AI_PIPELINE


async def waits(api: Api, identity: str) -> bool:
    """Whether the message of this `Delivery.identity` is stored and not settled.

    Its number alone does not say so: in a stream that was made anew it is another message's.

    Raises:
        Transient: the stream does not answer.
    """
    _, _, place = identity.partition(":")
    sequence, _, stored_at = place.partition(":")
    if not (sequence.isdecimal() and stored_at.isdecimal()):
        return False
    try:
        found = (await api.request(f"STREAM.MSG.GET.{AI_PIPELINE.name}", {"seq": int(sequence)}))["message"]
        age = datetime.fromisoformat(found["time"]) - datetime(1970, 1, 1, tzinfo=UTC)
    except JetStreamError as error:
        if error.err_code == NO_MESSAGE_FOUND:
            return False
        raise Transient(str(error)) from None
    except (KeyError, TypeError, ValueError):
        raise Transient(f"what answers for the stream {AI_PIPELINE.name} is not JetStream") from None
    return age // timedelta(microseconds=1) == int(stored_at) // 1000
