"""`handlers pipeline ls`, against a real NATS server and a bridge that tells a catalogue."""

import json
from typing import Any

import pytest

from handler_core.connection import Connection
from handler_core.contract.errors import ErrorInfo, ErrorType
from handler_core.contract.pipeline import PipelineInfo, PipelinesResponse
from handler_core.errors import HandlerError, InvalidRequest, NotFound, Transient
from handlers_cli.pipeline_catalogue import ls
from handlers_cli.plain import duration
from handlers_cli.settings import CliSettings


async def listed(config: CliSettings, name: str | None = None, **options: Any) -> None:
    await ls(config, name, options.pop("user", None), 5, **{"long": False, "json": False, **options})


async def test_the_table_tells_what_each_needs(
    config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    await listed(config)
    assert capsys.readouterr().out.splitlines() == [
        "PIPELINE            ENGINE    TIMEOUT  NEEDS   DESCRIPTION",
        "document-ingestion  argo      2h       source  Read documents and store them in a collection.",
        "rag-query           kubeflow  1m30s    -",
    ]


async def test_one_pipeline_is_shown_with_its_parameters(
    config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    await listed(config, "document-ingestion")
    assert capsys.readouterr().out.splitlines() == [
        "document-ingestion",
        "  Read documents and store them in a collection.",
        "  argo in pipelines, 2h at most",
        "  PARAMETER   TYPE     DEFAULT     DESCRIPTION",
        "  source      string   (required)  Where they are. at most 1024 characters; matches ^s3://",
        "  chunk_size  integer  512         64 to 4096",
        "  overlap     number   -           at least 0",
        "  dry_run     boolean  false       -",
        "  tags        array    -           1 to 8 items",
        "  options     object   -           -",
        "  language    string   en          one of en, de",
    ]


async def test_all_are_shown_with_their_parameters(
    config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    await listed(config, long=True)
    shown = capsys.readouterr().out.splitlines()
    assert shown[-3:] == ["", "rag-query", "  kubeflow, 1m30s at most"]
    assert "  chunk_size  integer  512         64 to 4096" in shown


async def test_json_is_the_reply_or_the_pipeline(
    config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    await listed(config, json=True)
    assert [p["name"] for p in json.loads(capsys.readouterr().out)["pipelines"]] == ["document-ingestion", "rag-query"]
    await listed(config, "rag-query", json=True)
    assert json.loads(capsys.readouterr().out) == {
        "name": "rag-query", "engine": "kubeflow", "timeout": 90.0, "parameters": [], "description": "", "namespace": ""
    }  # fmt: skip


async def test_a_catalogue_whose_edit_failed_is_said_to_be_the_old_one(
    config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bridge.catalogue = bridge.catalogue.model_copy(update={"problem": "line 3: [timeout] is no duration"})
    await listed(config)
    said = capsys.readouterr()
    assert "rag-query" in said.out
    assert said.err == "the catalogue's newest edit is not in force: line 3: [timeout] is no duration\n"


async def test_an_unknown_pipeline_is_answered_with_those_that_there_are(config: CliSettings, bridge: Any) -> None:
    with pytest.raises(NotFound, match=r"^no pipeline nope; there are: document-ingestion, rag-query$"):
        await listed(config, "nope")


async def test_a_user_is_asked_for_by_name_and_may_have_none(
    config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bridge.catalogue = PipelinesResponse()
    await listed(config, user="alice")
    assert [request.user_id for request in bridge.asked] == ["alice"]
    assert capsys.readouterr().err == "alice may trigger no pipelines\n"


async def test_what_can_be_no_user_is_refused(config: CliSettings, bridge: Any) -> None:
    with pytest.raises(InvalidRequest, match="user_id"):
        await listed(config, user="a.b")


async def test_without_a_bridge_it_is_said_that_none_is_running(nc: Connection, config: CliSettings) -> None:
    with pytest.raises(Transient, match="no pipeline_bridge is running"):
        await listed(config)


async def test_what_a_bridge_answers_went_wrong_is_told(config: CliSettings, bridge: Any) -> None:
    bridge.catalogue = PipelinesResponse(error=ErrorInfo(type=ErrorType.INTERNAL, message="broken", retryable=False))
    with pytest.raises(HandlerError, match="broken"):
        await listed(config)


async def test_nothing_of_a_catalogue_can_play_tricks_on_the_terminal(
    config: CliSettings, bridge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = PipelineInfo(name="evil", description="\x1b[2J[bold]x[/]", engine="argo", timeout=60)
    bridge.catalogue = PipelinesResponse(pipelines=[evil])
    await listed(config)
    assert "\\x1b[2J[bold]x[/]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"), (0, "0s"), (0.0019, "2ms"), (0.1, "0.1s"), (3.44, "3.4s"), (42, "42s"), (60, "1m"), (125, "2m5s"),
        (3600, "1h"), (3725, "1h2m"), (3601, "1h"), (90_000, "1d1h"), (604_800, "7d"),
    ],
)  # fmt: skip
def test_a_duration_is_told_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
