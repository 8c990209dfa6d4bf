r"""From a request's `filter` to a Milvus expression, with nothing of the user's left unescaped.

Filter values come from users, so this is the only place where an expression is built of them. It keeps to the grammar
that Milvus and Milvus Lite share: strings in double quotes, with the backslash, the double quote, \n, \r and \t escaped
and all else as it is. Milvus takes a JSON field's key from between its quotes without unescaping it, and cuts it at
`][`, so a key with such characters cannot be written safely and is refused.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from handler_core.contract.chat import FilterTerm, FilterValue
from handler_core.errors import InvalidRequest

MAX_KEY_LENGTH = 256
MAX_EXPRESSION_LENGTH = 65_536
"""In characters."""

_OPERATORS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "ne": "!="}
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_UNSAFE_IN_KEY = re.compile(r"""["'\\\[\]\x00-\x1f\x7f]""")
_MAX_INTEGER = 2**63 - 1


def expression(filter: Mapping[str, FilterTerm], *, field: str = "metadata") -> str:
    """The Milvus boolean expression that holds for the rows whose JSON `field` satisfies every term of `filter`.

    A value means equal, a list one of its values (an empty list: no row), a mapping all of its bounds. A key that a row
    lacks, or holds as null, satisfies no term, `ne` included. Strings are compared by code point; values of different
    kinds are unequal and have no order. (Milvus Lite takes `true` for 1 and `false` for 0; Milvus does not.)

    Args:
        filter: as in a chat request; an empty one gives an empty expression, which holds for every row.
        field: the JSON field, or `$meta` for a collection's dynamic fields. Not escaped: never from a user.

    Raises:
        InvalidRequest: a key or value that Milvus cannot represent safely; the message names the field.
    """
    conditions = [condition for key, term in filter.items() for condition in _conditions(key, term, field)]
    text = _joined(conditions, "and") if conditions else ""
    if len(text) > MAX_EXPRESSION_LENGTH:
        raise InvalidRequest(f"filter: is too long ({len(text)} characters of at most {MAX_EXPRESSION_LENGTH})")
    return text


def quote(value: str) -> str:
    """`value` as a Milvus string literal, in double quotes.

    Raises:
        ValueError: it holds half a surrogate pair, which no message to Milvus can carry.
    """
    value.encode()  # raises UnicodeEncodeError, a ValueError
    return f'"{value.translate(_ESCAPES)}"'


def _conditions(key: str, term: FilterTerm, field: str) -> Iterator[str]:
    path = f"filter.{key[:MAX_KEY_LENGTH]!a}"
    column = f'{field}["{_checked_key(key, path)}"]'
    if isinstance(term, Mapping):
        if not term:
            raise InvalidRequest(f"{path}: has no bound; use gt, gte, lt, lte or ne")
        for name, bound in term.items():
            yield _bound(column, name, bound, path)
    elif isinstance(term, list):
        # Not `in`: Milvus wants its list of one type, and Milvus Lite fails on a row that holds a list or an object.
        equal = [f"{column} == {_literal(value, path)}" for value in term]
        yield _joined(equal, "or") if equal else f"({column} == 0 and {column} == 1)"
    else:
        yield f"{column} == {_literal(term, path)}"


def _bound(column: str, name: str, bound: FilterValue, path: str) -> str:
    operator = _OPERATORS.get(name)
    if operator is None:
        raise InvalidRequest(f"{path}: unknown bound {name[:32]!a}; use gt, gte, lt, lte or ne")
    comparison = f"{column} {operator} {_literal(bound, path)}"
    if name == "ne":
        return f"(exists {column} and {comparison})"  # versions disagree on what a missing key is unequal to
    if isinstance(bound, bool):
        raise InvalidRequest(f"{path}: {name} needs a number or a string")
    return comparison


def _checked_key(key: str, path: str) -> str:
    if not key or len(key) > MAX_KEY_LENGTH:
        raise InvalidRequest(f"{path}: a key has 1 to {MAX_KEY_LENGTH} characters")
    if _UNSAFE_IN_KEY.search(key):
        raise InvalidRequest(f"{path}: a key has no quotes, backslashes, brackets or control characters")
    try:
        key.encode()
    except ValueError as error:
        raise InvalidRequest(f"{path}: the key is no valid Unicode") from error
    return key


def _literal(value: FilterValue, path: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        try:
            return quote(value)
        except ValueError as error:
            raise InvalidRequest(f"{path}: the value is no valid Unicode") from error
    if isinstance(value, int):
        if abs(value) > _MAX_INTEGER:
            raise InvalidRequest(f"{path}: an integer has at most 64 bits")
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    raise InvalidRequest(f"{path}: a value is a string, a finite number or a boolean")


def _joined(conditions: Sequence[str], operator: str) -> str:
    """As a balanced tree, since a long chain nests one level deeper in Milvus with every condition."""
    if len(conditions) == 1:
        return conditions[0]
    middle = len(conditions) // 2
    return f"({_joined(conditions[:middle], operator)} {operator} {_joined(conditions[middle:], operator)})"
