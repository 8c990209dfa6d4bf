"""What bytecode in images leaves out, and what it keeps; compiled here, by the Python that runs the tests."""

import marshal
import os
import subprocess
import sys
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

COMPILE = Path(__file__).parents[2] / "docker/compile_modules.py"
MODULE = '''"""A docstring."""
import platform
import sys

LINUX = platform.system() == "Linux"


def __getattr__(name):
    import decimal
    from fractions import Fraction

    known = {"half": 2}
    if name not in known:
        raise AttributeError(name)
    return Fraction(1, known[name])


def fail(times: int) -> int:
    """Another one."""
    return [
        times,
        1 // 0,
    ]


def one(times: int) -> int:
    return times


def another(times: int) -> int:
    return times


class Counter:
    def count(self) -> int:
        return 1
'''


def compiled(root: Path, *options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    (root / "there").mkdir()
    (root / "there/module.py").write_text(MODULE)
    command = [sys.executable, str(COMPILE), "--root", str(root), *options, "/there"]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def module(bytecode: Path) -> dict[str, Any]:
    """The names of a compiled module that was run."""
    code = marshal.loads(bytecode.read_bytes()[16:])
    assert isinstance(code, CodeType)
    names: dict[str, Any] = {"__name__": "module"}
    exec(code, names)
    return names


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, Any]:
    """The names of the module, compiled as a package of others is."""
    made = compiled(tmp_path, PYTHONNODEBUGRANGES="1")
    assert made.returncode == 0, made.stderr
    assert not (tmp_path / "there/module.py").exists()
    return module(tmp_path / "there/module.pyc")


def test_docstrings_and_annotations_of_functions_are_left_out(bare: dict[str, Any]) -> None:
    assert (bare.get("__doc__"), bare["fail"].__doc__, bare["fail"].__annotations__) == (None, None, {})


def test_places_are_lines_without_columns(bare: dict[str, Any]) -> None:
    with pytest.raises(ZeroDivisionError) as failed:
        bare["fail"](1)
    assert failed.tb.tb_next is not None
    assert failed.tb.tb_next.tb_lineno == 1 + MODULE[: MODULE.index("1 // 0")].count("\n")
    assert {place[2:] for place in bare["fail"].__code__.co_positions()} == {(None, None)}


def test_what_is_the_same_in_several_functions_is_there_once(bare: dict[str, Any]) -> None:
    one, another = bare["one"].__code__, bare["another"].__code__
    assert one.co_consts is another.co_consts


def test_which_system_it_is_is_known_and_not_asked_for(bare: dict[str, Any], tmp_path: Path) -> None:
    assert bare["LINUX"] is (sys.platform == "linux")
    assert b"system" not in (tmp_path / "there/module.pyc").read_bytes()


def test_functions_of_others_go_by_their_names_and_classes_keep_theirs(bare: dict[str, Any]) -> None:
    assert (bare["Counter"].count.__qualname__, bare["Counter"].__qualname__) == ("count", "Counter")


def test_a_name_that_a_module_refuses_has_nothing_imported_for_it(bare: dict[str, Any]) -> None:
    def forbidden(name: str, *_: object) -> None:
        raise AssertionError(f"imports {name}")

    bare["__builtins__"] = {**vars(__import__("builtins")), "__import__": forbidden}
    ask = type(bare["__getattr__"])(bare["__getattr__"].__code__, bare)
    with pytest.raises(AttributeError):
        ask("none")
    with pytest.raises(AssertionError, match="imports decimal"):
        ask("half")


def test_sources_and_annotations_stay_where_they_are_asked_for(tmp_path: Path) -> None:
    made = compiled(tmp_path, "--keep-sources", "--keep-annotations", PYTHONNODEBUGRANGES="1")
    assert made.returncode == 0, made.stderr
    [bytecode] = tmp_path.glob("there/__pycache__/*.pyc")
    names = module(bytecode)
    assert names["fail"].__annotations__ == {"times": int, "return": int}
    assert names["Counter"].count.__qualname__ == "Counter.count"
    assert (tmp_path / "there/module.py").read_text() == MODULE


def test_it_refuses_to_keep_columns_without_being_told(tmp_path: Path) -> None:
    made = compiled(tmp_path, PYTHONNODEBUGRANGES="")
    assert made.returncode == 1
    assert "PYTHONNODEBUGRANGES=1" in made.stderr
