"""`handlers dlq`: look at dead letters, replay them, delete them."""

import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from handlers_cli.plain import seconds
from handlers_cli.session import err, out, run, say_error, settings

if TYPE_CHECKING:
    from handlers_cli.letters import Wanted
    from handlers_cli.settings import CliSettings

app = typer.Typer(help="Look at dead letters, replay them, delete them.", no_args_is_help=True)

_TOKEN = re.compile(r"[^\s.*>]+").fullmatch


def _token(value: str | None) -> str | None:
    if value is not None and not _TOKEN(value):
        raise typer.BadParameter("is one name, without dots, wildcards and spaces")
    return value


def _duration(value: str | None) -> str | None:
    if value is not None:
        try:
            seconds(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return value


StreamName = Annotated[str | None, typer.Option(help="Only those of this stream.", callback=_token)]
ConsumerName = Annotated[str | None, typer.Option(help="Only those of this consumer.", callback=_token)]
Reason = Annotated[str | None, typer.Option(metavar="TEXT", help="Only those whose type or reason contains this.")]
Since = Annotated[
    str | None,
    typer.Option(metavar="DURATION", help="Only those stored since: 90s, 15m, 2h, 1h30m, 7d.", callback=_duration),
]
Sequences = Annotated[list[int] | None, typer.Argument(metavar="SEQ...", help="Sequences in DLQ, as in ls.", min=1)]
All = Annotated[bool, typer.Option("--all", help="All letters, or those that the filters leave.")]


def _wanted(stream: str | None, consumer: str | None, reason: str | None, since: str | None) -> "Wanted":
    from handlers_cli.letters import Wanted

    return Wanted(stream, consumer, reason, None if since is None else seconds(since))


@app.command(epilog="Example: [bold]handlers dlq ls --consumer chat_handler --since 2h[/]")
def ls(
    stream: StreamName = None,
    consumer: ConsumerName = None,
    reason: Reason = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(help="The newest so many.", min=1)] = 50,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """List dead letters, newest last."""
    from handlers_cli.letter_view import ls

    run(ls(settings(), _wanted(stream, consumer, reason, since), limit, json=json))


@app.command(epilog="Example: [bold]handlers dlq show 5[/]")
def show(
    sequence: Annotated[int, typer.Argument(metavar="SEQ", help="The letter's sequence in DLQ.", min=1)],
    raw: Annotated[bool, typer.Option("--raw", help="Write the body's bytes to stdout, and nothing else.")] = False,
) -> None:
    """Print a dead letter: its headers, and its body decoded from MessagePack."""
    from handlers_cli.letter_view import show

    run(show(settings(), sequence, raw=raw))


@app.command(epilog="Example: [bold]handlers dlq replay --all --reason 'no such collection' --new-id[/]")
def replay(
    sequences: Sequences = None,
    everything: All = False,
    stream: StreamName = None,
    consumer: ConsumerName = None,
    reason: Reason = None,
    since: Since = None,
    new_id: Annotated[
        bool, typer.Option("--new-id", help="Give the request a fresh request_id, so that it is answered anew.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the letters in DLQ.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Publish the original messages again, and delete each letter once its message is stored.

    Interrupt it at any point: no message is lost. One that was stored but whose letter was not deleted yet may come
    twice; within the stream's duplicate window (2 minutes) the second is dropped.
    """
    from handlers_cli.replay import Options, replay

    config = settings()
    chosen = _chosen(config, sequences, everything, _wanted(stream, consumer, reason, since))
    if chosen:
        run(replay(config, chosen, Options(new_id=new_id, keep=keep, dry_run=dry_run)))


@app.command(epilog="Example: [bold]handlers dlq purge --all --since 1h --yes[/]")
def purge(
    sequences: Sequences = None,
    everything: All = False,
    stream: StreamName = None,
    consumer: ConsumerName = None,
    reason: Reason = None,
    since: Since = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete dead letters for good."""
    from handlers_cli.purge import purge

    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("is needed where nobody can be asked", param_hint="--yes")
    config = settings()
    chosen = _chosen(config, sequences, everything, _wanted(stream, consumer, reason, since))
    if chosen and (yes or _confirmed(len(chosen))):
        run(purge(config, chosen))


def _chosen(config: "CliSettings", sequences: list[int] | None, everything: bool, wanted: "Wanted") -> list[int]:
    """The sequences of the letters meant: those given, or those there are; oldest first."""
    from handlers_cli.letters import Wanted

    if everything == bool(sequences):
        raise typer.BadParameter("give either sequences or --all", param_hint="SEQ")
    if sequences:
        if wanted != Wanted():
            raise typer.BadParameter("filters go with --all", param_hint="SEQ")
        return sorted(set(sequences))
    found: list[int] = []
    run(_collect(config, wanted, found))
    if not found:
        out.print("no dead letters" if wanted == Wanted() else "no such dead letters")
    return found


async def _collect(config: "CliSettings", wanted: "Wanted", found: list[int]) -> None:
    from contextlib import aclosing

    from handlers_cli.letter_view import WAIT
    from handlers_cli.letters import scan
    from handlers_cli.session import connected

    async with connected(config, WAIT) as nc, aclosing(scan(nc, wanted)) as letters:
        async for letter in letters:
            found.append(letter.sequence)  # noqa: PERF401 - kept when it is broken off


def _confirmed(count: int) -> bool:
    # Outside the event loop, which would keep Ctrl-C from ending the prompt.
    try:
        if typer.confirm(f"Delete {count} dead letter{'s' if count > 1 else ''} for good?", err=True):
            return True
    except typer.Abort:
        err.print("\ninterrupted")
        raise typer.Exit(130) from None
    say_error("nothing was deleted")
    raise typer.Exit(1)
