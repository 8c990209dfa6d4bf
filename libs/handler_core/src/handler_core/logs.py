"""Logging: one JSON object a line in containers, readable colours on a terminal.

The library's own lines and those of the packages beneath (nats-py, aiohttp, pymilvus) come out in the same form.
"""

import logging
import sys
from typing import Any, TextIO, cast

import structlog

from handler_core.config import LogSettings
from handler_core.telemetry import current, trace_id


def configure(settings: LogSettings, service: str) -> None:
    """Set up structlog and the standard library's logging for the whole process."""
    level = logging.getLevelName(settings.log_level.upper())
    console = sys.stderr.isatty() if settings.log_format == "auto" else settings.log_format == "console"

    def name_service(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
        event["service"] = service
        return event

    shared: list[Any] = [
        _name_message,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
    ]
    last: list[Any]
    if console:
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    else:
        shared.append(name_service)
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Stderr())),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
    )
    handler = logging.StreamHandler(_Stderr())
    handler.setFormatter(formatter)
    handler.addFilter(_says_something)
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


def _says_something(record: logging.LogRecord) -> bool:
    # asyncio (and uvloop, in its name) warns of this whenever the other end closes a TLS stream: its own StreamReader
    # keeps the connection half open then, which TLS cannot, and there is nothing that anyone could do about it.
    return (record.name, record.msg) != ("asyncio", "returning true from eof_received() has no effect when using ssl")


class _Stderr:
    """Standard error as it is when something is written: loggers outlive what a test puts in its place."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _name_message(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """Add the ids of the message that is being handled."""
    handled = current.get()
    if handled is not None:
        if handled.request_id:
            event.setdefault("request_id", handled.request_id)
        event.setdefault("trace_id", trace_id(handled.traceparent))
    return event
