"""`handlers pipeline`: the commands with their options; what they do is in modules of their own."""

from typing import Annotated

import typer

from handlers_cli.plain import seconds
from handlers_cli.session import run as run_command
from handlers_cli.session import settings

app = typer.Typer(help="Trigger runs of pipelines, watch them, stop them.", no_args_is_help=True)

LONGEST = 24 * 3600.0
"""Seconds; the longest time limit that a trigger can carry."""


def _duration(value: str | None) -> str | None:
    if value is not None:
        try:
            given = seconds(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        if not 0.001 <= given <= LONGEST:
            raise typer.BadParameter("is at most 24h, and more than nothing")
    return value


RequestId = Annotated[str, typer.Argument(help="The run, as `handlers pipeline run` prints it.", metavar="REQUEST_ID")]
User = Annotated[str | None, typer.Option(help="As this user, on the user's own subject.")]


@app.command(epilog="Example: [bold]handlers pipeline ls document-ingestion[/]")
def ls(
    name: Annotated[str | None, typer.Argument(help="Only this one, with its parameters.", metavar="NAME")] = None,
    long: Annotated[bool, typer.Option("--long", "-l", help="With the parameters of each.")] = False,
    user: Annotated[str | None, typer.Option(help="Those that this user may trigger.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait for NATS, and for the reply.", min=0.1)] = 5.0,
) -> None:
    """List the pipelines that can be triggered, and what each needs."""
    from handlers_cli.pipeline_catalogue import ls

    run_command(ls(settings(), name, user, wait, long=long, json=json))


@app.command(epilog="Example: [bold]handlers pipeline run document-ingestion -p source=s3://x -p chunk_tokens=256[/]")
def run(
    name: Annotated[str, typer.Argument(help="A pipeline of `handlers pipeline ls`.", metavar="NAME")],
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", metavar="KEY=VALUE", help="May be repeated.")
    ] = None,
    parameters: Annotated[
        str | None, typer.Option(metavar="FILE", help="A JSON object of parameters; `-` reads stdin. -p counts more.")
    ] = None,
    watch: Annotated[bool, typer.Option(help="Watch it to its end.")] = True,
    timeout: Annotated[
        str | None,
        typer.Option(
            "--timeout",
            "--deadline",
            metavar="DURATION",
            help="How long it may take from now, besides the pipeline's own timeout: 90s, 15m, 2h.",
            callback=_duration,
        ),
    ] = None,
    request_id: Annotated[
        str | None, typer.Option(help="Name the run; with a name used before, nothing is run once more.")
    ] = None,
    user: User = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, of every status.")] = False,
) -> None:
    """Trigger a run of a pipeline and watch it to its end; exits 0 when it succeeds, 1 when it does not.

    Ctrl-C stops watching, and leaves the run going on. With --no-watch the request id is all that is printed.
    """
    from handlers_cli.pipeline_run import Options, run_pipeline

    limit = None if timeout is None else seconds(timeout)
    options = Options(parameter or [], parameters, watch, limit, request_id, user, json)
    run_command(run_pipeline(settings(), name, options))


@app.command(epilog="Example: [bold]handlers pipeline watch 0c1f5e[/]")
def watch(
    request_id: RequestId,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, of every status.")] = False,
) -> None:
    """Watch a run from its first status to its end; exits 0 when it succeeds, 1 when it does not."""
    from handlers_cli.pipeline_run import watch

    run_command(watch(settings(), request_id, json=json))


@app.command(epilog="Example: [bold]handlers pipeline cancel 0c1f5e --reason 'wrong documents' --wait[/]")
def cancel(
    request_id: RequestId,
    reason: Annotated[str, typer.Option(help="Kept with the cancel.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Watch it until it has ended.")] = False,
) -> None:
    """Stop a run, or one that is yet to begin. Exits 1 when it had ended already, or with --wait ends otherwise."""
    from handlers_cli.pipeline_run import cancel_run

    run_command(cancel_run(settings(), request_id, reason, wait=wait))
