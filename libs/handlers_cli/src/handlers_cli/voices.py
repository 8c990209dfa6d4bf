"""`handlers voices`: who can speak a text."""

import nats.errors

from handler_core.codec import decode, encode
from handler_core.contract.tts import REFRESH_SUBJECT, VOICES_SUBJECT, VoicesRequest, VoicesResponse
from handler_core.errors import Transient, from_info
from handlers_cli.plain import columns, printable
from handlers_cli.session import connected, err, out
from handlers_cli.settings import CliSettings


async def voices(config: CliSettings, *, refresh: bool, json: bool, wait: float) -> None:
    """Print the voices of the speech endpoint.

    Raises:
        Transient: nobody answers.
        HandlerError: what the module answered went wrong.
    """
    subject = REFRESH_SUBJECT if refresh else VOICES_SUBJECT
    async with connected(config, min(wait, 5.0)) as nc:
        try:
            reply = await nc.request(subject, encode(VoicesRequest()), timeout=wait)
        except nats.errors.NoRespondersError:
            raise Transient(f"nobody answers on {subject}: no tts_module is running") from None
        except (nats.errors.TimeoutError, TimeoutError):
            raise Transient(f"no answer on {subject} within {wait:g} s") from None
    response = decode(reply.data, VoicesResponse)
    if response.error is not None:
        raise from_info(response.error)
    if json:
        print(response.model_dump_json(exclude_none=True))
        return
    rows = [("VOICE", "KIND", "LANGUAGE")]
    for voice in response.voices:
        name = printable(voice.name) + (" (default)" if voice.name == response.default else "")
        rows.append((name, voice.kind, voice.language or "-"))
    for line in columns(rows) if response.voices else ():
        out.print(line, markup=False)
    if not response.voices:
        err.print(f"{response.engine or 'the engine'} names no voices: it speaks with its own", markup=False)
