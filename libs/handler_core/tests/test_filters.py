"""A filter as a Milvus expression: what it selects on a real server is what it says, whatever it is made of."""

import itertools
import operator
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from handler_core.deadline import Deadline
from handler_core.errors import InvalidRequest
from handler_core.filters import MAX_EXPRESSION_LENGTH, expression, quote
from handler_core.vectors import Row, VectorStore

ROWS = 4
UNSAFE = re.compile(r"""["'\\\[\]\x00-\x1f\x7f]""")
_OPERATORS = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le, "ne": operator.ne}
_collections = (f"filters_{n}" for n in itertools.count())

nasty = st.sampled_from(
    [
        '" or 1==1 or "',
        "' or 1==1 or '",
        '"] == 1 or metadata["',
        'x" or exists metadata["k',
        "\\",
        "\\\\",
        '\\"',
        '"\\',
        "\\u0041",
        "\\x41",
        "{x}",
        "%",
        "a%b_",
        "\x00",
        "a\x00b",
        "\n",
        "\r\n",
        "\t",
        "\x0b\x1f\x7f\x85\u2028",
        "$meta",
        "数据𠀀",
        "e\u0301é\U0001f600\u202e",
        "true",
        "1",
        "",
        " ",
        "x" * 5000,
        '"' * 2000,
    ]
)
texts = nasty | st.text(max_size=8) | st.text(alphabet="\"'\\[]{}n", max_size=6)
# Milvus Lite takes `true` for 1, so booleans and small numbers stay apart here.
numbers = st.integers(2, 2**63 - 1) | st.integers(-(2**63) + 1, -1) | st.floats(2.5, 1e300) | st.floats(-1e300, -1e-300)
values = texts | numbers | st.booleans()
ordered = texts | numbers
stored = values | st.none() | st.lists(texts, max_size=2) | st.dictionaries(texts, numbers, max_size=2)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows' metadata and a filter, over the same few keys and values so that some rows do match."""
    keys = ["k", "l", draw(texts)]
    pool = draw(st.lists(values, min_size=1, max_size=3))
    key, value = st.sampled_from(keys), st.sampled_from(pool) | values
    kept = st.dictionaries(key, st.sampled_from(pool) | stored, min_size=1, max_size=3)
    rows = draw(st.lists(kept, min_size=ROWS, max_size=ROWS))
    bounds = st.fixed_dictionaries({}, optional={"ne": value} | dict.fromkeys(("gt", "gte", "lt", "lte"), ordered))
    term = value | st.lists(value, max_size=4) | bounds.filter(bool)
    return rows, draw(st.dictionaries(key, term, min_size=1, max_size=2))


def holds(value: Any, term: Any) -> bool:
    """What a term means, in Python."""
    if value is None:
        return False
    if isinstance(term, list):
        return any(value == one for one in term)
    if not isinstance(term, dict):
        return bool(value == term)
    try:
        return all(_OPERATORS[name](value, bound) for name, bound in term.items())
    except TypeError:
        return False


def selected(rows: list[dict[str, Any]], terms: Mapping[str, Any]) -> set[str]:
    return {
        str(n) for n, metadata in enumerate(rows) if all(holds(metadata.get(key), term) for key, term in terms.items())
    }


async def found(store: VectorStore, collection: str, rows: list[dict[str, Any]], terms: Mapping[str, Any]) -> set[str]:
    await store.upsert(
        collection, [Row(str(n), "text", "source", "hash", metadata, [1.0, 0.0]) for n, metadata in enumerate(rows)]
    )
    hits = await store.search(collection, [1.0, 0.0], top_k=100, filter=terms, deadline=Deadline.after(30))
    return {hit.id for hit in hits}


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
@example(case=([{"k": '" or 1==1 or "'}, {"k": "b"}, {}, {"k": None}], {"k": '" or 1==1 or "'}))
@example(case=([{"k": "a"}, {"k": "b"}, {}, {"k": ["a"]}], {"k": '" or 1==1 or "'}))
@example(case=([{"k": "a"}, {"k": "b"}, {}, {"k": ["a"]}], {"k": ["a", 7, True, '"]']}))
@example(case=([{"k": "a"}, {"k": 5}, {}, {"k": None}], {"k": {"ne": "a"}}))
@example(case=([{"k": "a"}, {"k": 5}, {"k": 5.0}, {"k": -5}], {"k": {"gte": -5, "lt": 5.5}}))
@example(case=([{"k": "a"}, {"k": 5}, {}, {}], {"k": []}))
@example(case=([{"k": "a"}, {}, {}, {}], {'k"] == 1 or metadata["k': "a"}))
@example(case=([{"数据": "数"}, {"数据": "据"}, {}, {}], {"数据": "数"}))
async def test_a_filter_selects_exactly_the_rows_that_it_says(
    store: VectorStore, prepared: str, case: tuple[list[dict[str, Any]], dict[str, Any]]
) -> None:
    rows, terms = case
    if any(UNSAFE.search(key) or not 0 < len(key) <= 256 for key in terms):
        event("refused")
        with pytest.raises(InvalidRequest, match=r"^filter\."):
            await found(store, prepared, rows, terms)
        return
    matching = await found(store, prepared, rows, terms)
    event(f"{min(len(matching), 2)} rows match")
    assert matching == selected(rows, terms)


@pytest.fixture
async def prepared(store: VectorStore) -> str:
    collection = next(_collections)
    await store.ensure_collection(collection, 2)
    return collection


def test_dynamic_fields_are_filtered_in_the_same_way() -> None:
    condition = expression({"k": 'a"b', "n": {"ne": 3}}, field="$meta")
    assert condition == '($meta["k"] == "a\\"b" and (exists $meta["n"] and $meta["n"] != 3))'


def test_an_empty_filter_is_an_empty_expression() -> None:
    assert expression({}) == ""


def test_a_long_list_nests_no_deeper_than_its_logarithm() -> None:
    text = expression({"k": list(range(1000))})
    depth = max(itertools.accumulate({"(": 1, ")": -1}.get(char, 0) for char in text))
    assert depth == 10


@pytest.mark.parametrize(
    ("terms", "told"),
    [
        ({'a"b': 1}, "filter.'a\"b': a key has no quotes"),
        ({"": 1}, "filter.'': a key has 1 to 256"),
        ({"k" * 257: 1}, "a key has 1 to 256"),
        ({"a\ud800": 1}, "filter.'a\\ud800': the key is no valid Unicode"),
        ({"k": "\udfff"}, "filter.'k': the value is no valid Unicode"),
        ({"k": 2**63}, "filter.'k': an integer has at most 64 bits"),
        ({"k": float("nan")}, "filter.'k': a value is a string, a finite number"),
        ({"k": [1, float("inf")]}, "filter.'k': a value is a string, a finite number"),
        ({"k": {"gt": True}}, "filter.'k': gt needs a number or a string"),
        ({"k": {}}, "filter.'k': has no bound"),
        ({"k": {"regex": "x"}}, "filter.'k': unknown bound 'regex'"),
        ({"k": None}, "filter.'k': a value is a string"),
        ({"k": [["a"]]}, "filter.'k': a value is a string"),
        ({"k": "x" * MAX_EXPRESSION_LENGTH}, "filter: is too long"),
    ],
)
def test_what_milvus_cannot_represent_is_refused_by_the_name_of_its_field(terms: Any, told: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(told)):
        expression(terms)


def test_a_string_is_quoted_with_the_escapes_that_every_version_knows() -> None:
    assert quote("a\"b\\c\nd\re\tf'{x}%\x00") == '"a\\"b\\\\c\\nd\\re\\tf\'{x}%\x00"'
