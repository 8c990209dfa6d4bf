"""Metrics as a scraper reads them, and trace context as W3C has it."""

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler_core.telemetry import SECONDS, Metrics, carried, made, trace_id

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*").match
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\n"])*)"(,|(?=\}))').match
ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}

Sample = tuple[str, dict[str, str], float]


def samples(text: str) -> Iterator[Sample]:
    """The samples of the text format 0.0.4, strictly read; each belongs to the family announced before it."""
    assert text.endswith("\n")
    family, kind, seen = "", "", set()
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            family = line.split(" ", 3)[2]
            assert family not in seen, "a family stands in one place"
            seen.add(family)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == family
            assert kind in {"counter", "gauge", "histogram"}
        else:
            sample = parsed(line)
            suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
            assert sample[0] in {family + suffix for suffix in suffixes}
            yield sample


def parsed(line: str) -> Sample:
    match = NAME(line)
    assert match is not None
    name, rest, labels = match[0], line[match.end() :], {}
    if rest.startswith("{"):
        rest = rest[1:]
        while not rest.startswith("}"):
            label = LABEL(rest)
            assert label is not None
            assert label[1] not in labels
            labels[label[1]] = re.sub(r"\\.", lambda escape: ESCAPES[escape[0]], label[2])
            rest = rest[label.end() :]
        rest = rest[1:]
    assert rest.startswith(" ")
    return name, labels, float(rest[1:])


def values(metrics: Metrics) -> dict[str, float]:
    return {name: value for name, labels, value in samples(metrics.render()) if "le" not in labels}


def test_counting_is_adding_to_a_number() -> None:
    metrics = Metrics()
    counter = metrics.counter("cups_total", "Cups.", kind="tea")
    counter.value += 2
    assert metrics.counter("cups_total", "Cups.", kind="tea") is counter
    metrics.counter("cups_total", "Cups.", kind="coffee").value += 1
    assert list(samples(metrics.render())) == [
        ("cups_total", {"kind": "tea"}, 2),
        ("cups_total", {"kind": "coffee"}, 1),
    ]


def test_a_gauge_is_read_when_scraped() -> None:
    metrics, level = Metrics(), [0.0]
    metrics.gauge("level", "Level.", lambda: level[0])
    for level[0] in (0, 0.1, -3, 123456789, 1e300, float("inf")):
        assert values(metrics) == {"level": level[0]}


def test_a_histogram_counts_by_upper_bound() -> None:
    metrics = Metrics()
    histogram = metrics.histogram("seconds", "Time.", (0.1, 1.0), stage="llm")
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    assert histogram.count == 4
    assert list(samples(metrics.render())) == [
        ("seconds_bucket", {"stage": "llm", "le": "0.1"}, 2),
        ("seconds_bucket", {"stage": "llm", "le": "1"}, 3),
        ("seconds_bucket", {"stage": "llm", "le": "+Inf"}, 4),
        ("seconds_sum", {"stage": "llm"}, pytest.approx(7.65)),
        ("seconds_count", {"stage": "llm"}, 4),
    ]


def test_large_sums_still_grow() -> None:
    metrics = Metrics()
    histogram = metrics.histogram("seconds", "Time.")
    histogram.observe(12_345_678.0)
    before = values(metrics)["seconds_sum"]
    histogram.observe(0.25)
    assert values(metrics)["seconds_sum"] == before + 0.25


def test_the_default_bounds_rise() -> None:
    assert list(SECONDS) == sorted(set(SECONDS))


@given(st.text(), st.text())
def test_any_text_can_be_a_label_or_a_help(label: str, help: str) -> None:
    metrics = Metrics()
    metrics.counter("a_total", help, label=label).value = 1
    metrics.histogram("b", help, (1.0,), label=label).observe(0.5)
    found = list(samples(metrics.render()))
    assert {labels["label"] for _, labels, _ in found} == {label}


def test_upstream_calls_are_counted_by_outcome() -> None:
    metrics = Metrics()
    metrics.upstream("llm", 0.5, "ok")
    metrics.upstream("llm", 1.5, "ok")
    metrics.upstream("llm", 2.0, "timeout")
    counts = {
        labels["outcome"]: value for name, labels, value in samples(metrics.render()) if name.endswith("_seconds_count")
    }
    assert counts == {"ok": 2, "timeout": 1}


GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_trace_is_carried_on() -> None:
    assert carried(GIVEN) == GIVEN
    assert trace_id(GIVEN) == "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "nonsense",
        GIVEN + "\r\nX-Evil: 1",
        GIVEN + "-extra",
        GIVEN.upper(),
        "ff" + GIVEN[2:],
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        GIVEN[:-1],
    ],
)
def test_a_malformed_trace_is_replaced_by_one_that_every_delivery_of_the_message_has(header: str | None) -> None:
    assert carried(header) == ""
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", made("1"))
    assert made("1") == made("1") != made("2")


@given(st.text())
def test_whatever_arrives_a_trace_is_fit_for_a_header(header: str) -> None:
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", carried(header) or made("1"))
