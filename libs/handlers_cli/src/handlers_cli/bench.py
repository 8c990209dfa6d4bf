"""`handlers bench`: load on a running stack, and how it bears it."""

import asyncio
import json as json_module
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from handler_core.tasks import background
from handlers_cli.bench_report import print_summary, summary
from handlers_cli.bench_turns import Load, Plan
from handlers_cli.session import connected, err, interactive, run, settings
from handlers_cli.settings import CliSettings

app = typer.Typer(help="Put a running stack under load.", no_args_is_help=True)

QUESTION = "What happens to a message whose handler fails?"
REFRESH = 0.2
EVERY = 3.0
"""Seconds between two lines of progress where there is no terminal."""


@app.callback()
def bench() -> None:
    """Put a running stack under load."""


@app.command("turns", epilog="Example: [bold]handlers bench turns --concurrency 20 --turns 500 --no-rag[/]")
def turns(
    question: Annotated[list[str] | None, typer.Option(help="A question; may be given several times.")] = None,
    questions: Annotated[
        Path | None, typer.Option(help="A file of questions, one a line.", exists=True, dir_okay=False)
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="Turns in flight; 10 without --rate.", min=1)] = None,
    rate: Annotated[
        float | None, typer.Option(help="Turns begun a second, in place of --concurrency.", min=0.01)
    ] = None,
    turns: Annotated[int | None, typer.Option(help="Turns in all; 100 without --duration.", min=1)] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds in which turns are begun.", min=0.1)] = None,
    rag: Annotated[bool, typer.Option(help="Search for sources.")] = True,
    user: Annotated[str | None, typer.Option(help="Ask as this user, on the user's own subject.")] = None,
    collection: Annotated[str | None, typer.Option(help="Collection to search.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Length of an answer.", min=1)] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for one turn.", min=0.1)] = 60.0,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Ask many questions at once and print how long the answers took.

    Ctrl-C ends it at once, cancels the turns that run, and prints what there is. Exits 1 when a turn failed.
    """
    if rate is not None and concurrency is not None:
        raise typer.BadParameter("cannot be given together with --rate", param_hint="--concurrency")
    asked = [*(question or ()), *(_lines(questions) if questions else ())]
    plan = Plan(
        questions=asked or [QUESTION],
        concurrency=concurrency or 10,
        rate=rate,
        turns=turns if turns is not None or duration is not None else 100,
        duration=duration,
        timeout=timeout,
        fields={"enable_rag": rag, "user_id": user, "collection": collection, "max_tokens": max_tokens},
    )
    run(_turns(settings(), plan, json=json))


def _lines(path: Path) -> list[str]:
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        raise typer.BadParameter("is not UTF-8 text", param_hint="--questions") from None
    return [line for line in found if line]


async def _turns(config: CliSettings, plan: Plan, *, json: bool) -> None:
    interrupted = False
    async with connected(config, 5.0) as nc:
        load = Load(nc, plan)
        try:
            async with background(_bar(load) if interactive() else _log(load)):
                await load.run()
        except asyncio.CancelledError:
            interrupted = True
        if json:
            print(json_module.dumps(summary(load.tally)))
        else:
            print_summary(load.tally)
    if interrupted:
        err.print("interrupted")
        raise typer.Exit(130)
    if load.tally.errors:
        raise typer.Exit(1)


async def _bar(load: Load) -> None:
    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*shown, console=err, transient=True) as bar:
        task = bar.add_task("turns", total=load.plan.turns)
        while True:
            bar.update(task, completed=load.tally.ended, description=f"turns, {load.tally.errors.total()} failed")
            await asyncio.sleep(REFRESH)


async def _log(load: Load) -> None:
    before = 0
    while True:
        await asyncio.sleep(EVERY)
        tally = load.tally
        err.print(
            f"{tally.ended} of {load.plan.turns or '?'} turns, {tally.errors.total()} failed, "
            f"{(tally.ended - before) / EVERY:.1f}/s",
            markup=False,
        )
        before = tally.ended
