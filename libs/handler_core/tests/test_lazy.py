"""Which imports are put off where Python can."""

import sys
from types import ModuleType

import pytest

from handler_core import lazy
from handler_core.lazy import may_wait


class Later:
    """Stands for a name that is put off; Python makes its own only by an import."""


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that is loaded, as `there`, with a name `has`, and with `later`, which it has put off itself."""
    module = ModuleType("there")
    module.__dict__["has"] = 1
    module.__dict__["later"] = Later()
    monkeypatch.setattr(lazy, "Promise", Later)
    monkeypatch.setitem(sys.modules, "there", module)
    return module


@pytest.mark.parametrize(
    ("imported", "names", "waits"),
    [
        ("there", None, False),
        ("there", ("has",), False),
        ("there", ("has", "later"), True),
        ("there", ("has", "a_module_of_it"), True),
        ("not_there", None, True),
        ("not_there", ("has",), True),
        ("numpy", None, False),
    ],
)
@pytest.mark.usefixtures("there")
def test_what_is_loaded_is_not_put_off(imported: str, names: tuple[str, ...] | None, waits: bool) -> None:
    assert may_wait("somebody", imported, names) is waits


def test_what_is_barred_is_found_missing_when_it_is_used_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "there", None)  # type: ignore[arg-type]
    assert may_wait("somebody", "there", None)


def test_what_stands_for_a_module_without_being_one_stops_no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "there", object())  # type: ignore[arg-type]
    assert not may_wait("somebody", "there", None)
    assert may_wait("somebody", "there", ("has",))


def test_generated_modules_import_at_once() -> None:
    assert not may_wait("some_pb2", "not_there", None)
