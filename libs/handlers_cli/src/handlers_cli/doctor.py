"""`handlers doctor`: every setting, endpoint, stream and consumer checked, and what to do about it."""

import json as json_module
from collections import Counter
from typing import TypeVar

import typer
from rich.markup import escape

from handler_core.clients.http import new_session
from handler_core.config import (
    EmbeddingsSettings,
    LLMSettings,
    MilvusSettings,
    NatsSettings,
    OtelSettings,
    RerankerSettings,
    Settings,
    STTSettings,
    TTSSettings,
)
from handlers_cli.doctor_findings import Finding, Named, run_checks
from handlers_cli.doctor_nats import check_nats
from handlers_cli.doctor_otel import SETTING, check_otel
from handlers_cli.doctor_settings import described, read
from handlers_cli.doctor_speech import check_stt, check_tts
from handlers_cli.doctor_upstreams import check_llm, check_reranker, check_retrieval
from handlers_cli.session import out

GROUPS: list[type[Settings]] = [
    NatsSettings,
    LLMSettings,
    EmbeddingsSettings,
    RerankerSettings,
    MilvusSettings,
    STTSettings,
    TTSSettings,
    OtelSettings,
]
S = TypeVar("S", bound=Settings)

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_SPARE = 2.0
"""Seconds that a group of checks has beyond its members, which say better what is wrong."""


async def doctor(timeout: float, *, json: bool) -> None:
    """Check, print, and exit 1 when a check failed. A group with a wrong setting is not checked any further."""
    loaded: dict[type[Settings], Settings] = {}
    findings: list[Finding] = []
    for group in GROUPS:
        settings, wrong = read(group)
        findings += wrong
        if settings is not None:
            loaded[group] = settings
    findings += described(GROUPS, loaded)
    findings += await _checks(loaded, timeout)
    failed = sum(finding.level == "fail" for finding in findings)
    if json:
        print(json_module.dumps({"ok": not failed, "checks": [finding.as_dict() for finding in findings]}))
    else:
        _print(findings)
    if failed:
        raise typer.Exit(1)


async def _checks(loaded: dict[type[Settings], Settings], timeout: float) -> list[Finding]:
    def get(group: type[S]) -> S | None:
        settings = loaded.get(group)
        return settings if isinstance(settings, group) else None

    nats, llm, reranker, otel = get(NatsSettings), get(LLMSettings), get(RerankerSettings), get(OtelSettings)
    embeddings, milvus = get(EmbeddingsSettings), get(MilvusSettings)
    stt, tts = get(STTSettings), get(TTSSettings)
    async with new_session(connect_timeout=timeout) as session:
        checks = []
        if nats is not None:
            checks.append(Named("NATS", lambda: check_nats(nats, timeout), "start NATS (make run), or set NATS_URL"))
        if llm is not None:
            checks.append(Named("LLM_URL", lambda: check_llm(session, llm, timeout), "set LLM_URL"))
        if embeddings is not None or milvus is not None:
            fix = "set EMBEDDINGS_URL and MILVUS_URI"
            retrieval = Named("retrieval", lambda: check_retrieval(session, embeddings, milvus, timeout), fix)
            checks.append(retrieval)
        if reranker is not None:
            checks.append(Named("RERANKER_URL", lambda: check_reranker(session, reranker, timeout), "set RERANKER_URL"))
        if stt is not None:
            checks.append(Named("STT_URL", lambda: check_stt(session, stt, timeout), "set STT_URL"))
        if tts is not None:
            checks.append(Named("TTS_URL", lambda: check_tts(session, tts, timeout), "set TTS_URL"))
        if otel is not None:
            checks.append(Named(SETTING, lambda: check_otel(session, otel, timeout), f"set {SETTING}"))
        return await run_checks(checks, 2 * timeout + _SPARE)


def _print(findings: list[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        level = f"[{_COLOURS[finding.level]}]{finding.level:<4}[/]"
        out.print(f"{level}  {escape(finding.check):<{width}}  {escape(finding.found)}")
        if finding.fix:
            out.print(f"{'':<{width + 6}}  [bold]fix:[/] {escape(finding.fix)}")
    counts = Counter(finding.level for finding in findings)
    out.print(f"\n{counts['ok']} ok, {counts['warn']} warnings, {counts['fail']} failed")
