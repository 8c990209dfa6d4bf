"""`handlers sessions`: what a conversation's session remembers, shown and deleted."""

import time
from typing import Annotated

import nats.errors
import typer
from rich.markup import escape

from handler_core.codec import decode, encode, validate
from handler_core.contract import session as contract
from handler_core.contract.session import SessionRequest, SessionResponse
from handler_core.errors import Transient, from_info
from handlers_cli.plain import printable
from handlers_cli.session import connected, out, run, settings
from handlers_cli.settings import CliSettings

app = typer.Typer(help="Show and delete what was said in a session.", no_args_is_help=True)

Session = Annotated[str, typer.Argument(help="The session, as given to `handlers ask --session`.", metavar="SESSION")]
User = Annotated[str | None, typer.Option(help="The user whose session it is, on the user's own subject.")]
Json = Annotated[bool, typer.Option("--json", help="Print the reply as one JSON object.")]
Wait = Annotated[float, typer.Option(help="Seconds to wait for NATS, and for the reply.", min=0.1)]


@app.command("show", epilog="Example: [bold]handlers sessions show trip --user alice[/]")
def show(session: Session, user: User = None, json: Json = False, wait: Wait = 5.0) -> None:
    """Print the questions and answers that a session remembers, the oldest first."""
    run(_show(settings(), session, user, json, wait))


@app.command("rm", epilog="Example: [bold]handlers sessions rm trip --user alice[/]")
def remove(session: Session, user: User = None, json: Json = False, wait: Wait = 5.0) -> None:
    """Forget a session: the next question in it begins a new conversation."""
    run(_remove(settings(), session, user, json, wait))


async def _show(config: CliSettings, session: str, user: str | None, json: bool, wait: float) -> None:
    response = await _request(config, contract.SHOW_SUBJECT, contract.USER_SHOW_SUBJECT, session, user, wait)
    if json:
        print(response.model_dump_json(exclude_none=True))
        return
    for turn in response.turns:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(turn.timestamp))
        out.print(f"[dim]{when}  {escape(turn.request_id)}[/]")
        out.print(f"[bold]> {escape(_lines(turn.query))}[/]")
        out.print(f"{_lines(turn.response)}\n", markup=False)


def _lines(text: str) -> str:
    """The text as it is, but for what a terminal would act on."""
    return "\n".join(printable(line.expandtabs()) for line in text.splitlines())


async def _remove(config: CliSettings, session: str, user: str | None, json: bool, wait: float) -> None:
    response = await _request(config, contract.DELETE_SUBJECT, contract.USER_DELETE_SUBJECT, session, user, wait)
    if json:
        print(response.model_dump_json(exclude_none=True))
    else:
        out.print(f"session {session} is forgotten", markup=False)


async def _request(
    config: CliSettings, subject: str, user_subject: str, session: str, user: str | None, wait: float
) -> SessionResponse:
    """Ask a chat_handler; raises what went wrong, an error that it answered too."""
    request = validate({"session_id": session, "user_id": user}, SessionRequest)
    if user is not None:
        subject = user_subject.format(user=user)
    async with connected(config, wait) as nc:
        try:
            reply = await nc.request(subject, encode(request), timeout=wait)
        except nats.errors.NoRespondersError:
            raise Transient(f"nobody answers on {subject}: no chat_handler is running") from None
        except (nats.errors.TimeoutError, TimeoutError):
            raise Transient(f"no answer on {subject} within {wait:g} s") from None
    response = decode(reply.data, SessionResponse)
    if response.error is not None:
        raise from_info(response.error)
    return response
