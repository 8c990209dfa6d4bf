"""`handlers pipeline ls`: what there is to trigger, and what each needs."""

import json as json_module
from collections.abc import Sequence
from typing import Any

from rich.markup import escape

from handler_core.contract.pipeline import ParameterInfo, PipelineInfo, PipelinesResponse
from handler_core.errors import NotFound
from handler_core.pipelines import catalogue
from handlers_cli.plain import columns, duration, printable
from handlers_cli.session import connected, err, out
from handlers_cli.settings import CliSettings

HEADINGS = ("PIPELINE", "ENGINE", "TIMEOUT", "NEEDS", "DESCRIPTION")
PARAMETER_HEADINGS = ("PARAMETER", "TYPE", "DEFAULT", "DESCRIPTION")


async def ls(config: CliSettings, name: str | None, user: str | None, wait: float, *, long: bool, json: bool) -> None:
    """Print the catalogue, or one pipeline of it with its parameters.

    Raises:
        NotFound: there is no such pipeline for this user.
        Transient: nobody answers.
    """
    async with connected(config, min(wait, 5.0)) as nc:
        response = await catalogue(nc, user, timeout=wait)
    if name is not None:
        found = find(response, name)
        if json:
            print(found.model_dump_json(exclude_none=True))
        else:
            _print_long(found)
    elif json:
        print(response.model_dump_json(exclude_none=True))
    elif not response.pipelines:
        err.print("there are no pipelines" if user is None else f"{user} may trigger no pipelines", markup=False)
    elif long:
        for number, pipeline in enumerate(response.pipelines):
            if number:
                out.print()
            _print_long(pipeline)
    else:
        _print_table(response.pipelines)
    warn(response)


def find(response: PipelinesResponse, name: str) -> PipelineInfo:
    """The pipeline of that name.

    Raises:
        NotFound: there is none; names those that there are.
    """
    for pipeline in response.pipelines:
        if pipeline.name == name:
            return pipeline
    names = ", ".join(printable(pipeline.name) for pipeline in response.pipelines) or "none"
    problem = f" (the catalogue's newest edit is not in force: {printable(response.problem)})"
    raise NotFound(f"no pipeline {printable(name)}; there are: {names}{problem if response.problem else ''}")


def warn(response: PipelinesResponse) -> None:
    """Say why the catalogue is not what its file says, where that is so."""
    if response.problem:
        text = f"the catalogue's newest edit is not in force: {printable(response.problem)}"
        err.print(f"[yellow]{escape(text)}[/]")


def _print_table(pipelines: Sequence[PipelineInfo]) -> None:
    rows = []
    for pipeline in pipelines:
        needs = ", ".join(printable(parameter.name) for parameter in pipeline.parameters if parameter.required)
        rows.append((
            printable(pipeline.name),
            pipeline.engine,
            duration(pipeline.timeout),
            needs or "-",
            printable(pipeline.description),
        ))  # fmt: skip
    _print_columns([HEADINGS, *rows])


def _print_columns(rows: Sequence[Sequence[str]], indent: str = "") -> None:
    heading, *lines = columns(rows, width=out.width - len(indent) if out.is_terminal else None)
    out.print(f"{indent}[bold]{escape(heading)}[/]")
    for line in lines:
        out.print(indent + line, markup=False)


def _print_long(pipeline: PipelineInfo) -> None:
    place = f" in {printable(pipeline.namespace)}" if pipeline.namespace else ""
    out.print(f"[bold]{escape(printable(pipeline.name))}[/]")
    if pipeline.description:
        out.print(f"  {printable(pipeline.description)}", markup=False)
    out.print(f"  {pipeline.engine}{place}, {duration(pipeline.timeout)} at most", markup=False)
    rows = [_row(parameter) for parameter in pipeline.parameters]
    if rows:
        _print_columns([PARAMETER_HEADINGS, *rows], "  ")


def _row(parameter: ParameterInfo) -> tuple[str, str, str, str]:
    default = "(required)" if parameter.required else "-"
    if parameter.default is not None:
        default = _json(parameter.default)
    about = [printable(parameter.description), "; ".join(_limits(parameter))]
    return printable(parameter.name), parameter.type, default, " ".join(filter(None, about)) or "-"


def _limits(parameter: ParameterInfo) -> list[str]:
    """What else a value has to be."""
    found = []
    if parameter.enum is not None:
        found.append(f"one of {', '.join(map(_json, parameter.enum))}")
    if bounds := _bounds(parameter.minimum, parameter.maximum):
        found.append(bounds)
    if bounds := _bounds(parameter.min_length, parameter.max_length):
        found.append(f"{bounds} {'items' if parameter.type == 'array' else 'characters'}")
    if parameter.pattern is not None:
        found.append(f"matches {printable(parameter.pattern)}")
    return found


def _bounds(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f"{least:.15g} to {most:.15g}"
    if least is not None:
        return f"at least {least:.15g}"
    return "" if most is None else f"at most {most:.15g}"


def _json(value: Any) -> str:
    return printable(value if isinstance(value, str) and value else json_module.dumps(value, ensure_ascii=False))
