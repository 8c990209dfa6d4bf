"""Turns modules into bytecode that is loaded as it is: no source beside it, no time stamp to check.

What nobody reads in a container and every process would hold is left out: docstrings, what is for type checkers, the
annotations of functions (those of classes make dataclasses and models, and stay; so do assertions), the columns that
code came from, the search for a package's own version, and what a function is called beyond its name (`Class.method`).
Tracebacks still name files, lines and functions. With `--keep-sources` they show the text of the lines, and functions
keep their long names. `--keep-annotations` is for services, whose handlers tell by them what they take.
"""

import argparse
import ast
import importlib.metadata
import importlib.util
import marshal
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from types import CodeType
from typing import Any

UNCHECKED = (0b01).to_bytes(4, "little")
"""Bytecode that belongs to a source by its hash, which is not compared when it is loaded. Source: PEP 552."""


INDIFFERENT = {
    "abstractmethod", "asynccontextmanager", "cache", "cached_property", "classmethod", "contextmanager", "deleter",
    "deprecated", "final", "getter", "lru_cache", "property", "reify", "setter", "staticmethod", "wraps",
}  # fmt: skip
"""Decorators that make the same of a function with and without annotations; `functools.singledispatch` does not."""
DOCUMENTED = "/numpy/"
"""What makes docstrings of others' when it is imported."""
KNOWN = {"python_implementation": platform.python_implementation(), "system": platform.system()}
"""What packages ask the module `platform`, and nothing else of it; here it is what it will be in the image."""
UNTYPED = ("pydantic_core/core_schema.py",)
"""Modules that declare kinds of dictionaries, here a hundred, of which nothing is read while they run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the folder that will be / in the image")
    parser.add_argument("--keep-sources", action="store_true")
    parser.add_argument("--keep-annotations", action="store_true")
    parser.add_argument("folder", type=Path, help="where the modules are, in the image")
    arguments = parser.parse_args()
    compile_all(
        arguments.root,
        arguments.folder,
        keep_sources=arguments.keep_sources,
        keep_annotations=arguments.keep_annotations,
    )


def compile_all(root: Path, folder: Path, *, keep_sources: bool = False, keep_annotations: bool = False) -> None:
    """Compile every module in `folder`, a path in the image whose files are in `root`.

    Raises:
        RuntimeError: this process keeps columns; `PYTHONNODEBUGRANGES` was not set when it was started.
    """
    if any(column is not None for *_, column, _ in compile("", "", "exec").co_positions()):
        raise RuntimeError("code would keep its columns: start this with PYTHONNODEBUGRANGES=1")
    place = root / folder.relative_to("/")
    versions = {found.name: found.version for found in importlib.metadata.distributions(path=[str(place)])}
    for source in sorted(place.rglob("*.py")):
        try:
            compile_module(
                source,
                "/" + str(source.relative_to(root)),
                versions,
                keep_source=keep_sources,
                keep_annotations=keep_annotations,
            )
        except SyntaxError as error:  # a module for another version of Python
            if keep_sources:  # our own code: there is none that may be left out
                raise
            print(f"left out: {source.relative_to(root)}: {error}", file=sys.stderr)
            source.unlink()


def compile_module(
    source: Path, name: str, versions: Mapping[str, str], *, keep_source: bool, keep_annotations: bool
) -> None:
    text = source.read_bytes()
    bare = Bare(
        versions,
        keep_annotations=keep_annotations,
        keep_docstrings=DOCUMENTED in name,
        untyped=name.endswith(UNTYPED),
    )
    code = compile(on_lines(bare.visit(ast.parse(text, name))), name, "exec", dont_inherit=True, optimize=0)
    if not keep_source:
        code = by_short_names(code)
    bytecode = Path(importlib.util.cache_from_source(source)) if keep_source else source.with_suffix(".pyc")
    bytecode.parent.mkdir(exist_ok=True)
    bytecode.write_bytes(
        importlib.util.MAGIC_NUMBER + UNCHECKED + importlib.util.source_hash(text) + marshal.dumps(code)
    )
    if not keep_source:
        source.unlink()


def on_lines(tree: ast.Module) -> ast.Module:
    """The same, every part of which begins and ends in one line's first column: what follows on one line is one entry
    of the code's table of places, and equal tables of a module's functions are one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt | ast.expr | ast.excepthandler | ast.arg | ast.keyword | ast.alias | ast.pattern):
            node.end_lineno = node.lineno
            node.col_offset = node.end_col_offset = 0
    return tree


def by_short_names(code: CodeType) -> CodeType:
    """The same, whose functions are called by their names alone. A process holds thousands of the long ones, in a table
    of names that doubles, to a megabyte, at some 22,000; they are read in the text of a wrong call's TypeError."""
    changed: dict[str, Any] = {}
    if any(isinstance(each, CodeType) for each in code.co_consts):  # else it goes on sharing what it has
        changed["co_consts"] = tuple(
            by_short_names(each) if isinstance(each, CodeType) else each for each in code.co_consts
        )
    if code.co_qualname != code.co_name:
        changed["co_qualname"] = code.co_name
    return code.replace(**changed) if changed else code


class Bare(ast.NodeTransformer):
    """Removes docstrings and, unless told to keep them, annotations of functions and what is for type checkers; answers
    what version a package is.

    Args:
        versions: by the packages' names.
        untyped: whether `dict` stands for each kind of it that the module declares.
    """

    def __init__(
        self, versions: Mapping[str, str], *, keep_annotations: bool, keep_docstrings: bool, untyped: bool
    ) -> None:
        self.versions = versions
        self.keep_annotations = keep_annotations
        self.keep_docstrings = keep_docstrings
        self.unchecked = {"TypedDict"} if untyped else None

    def visit_Try(self, node: ast.Try) -> ast.AST:
        """Where a module asks for a version when it is imported, in `try` as it may not be installed, a tenth of a
        process would be loaded to find it: parsers of mail and archives."""
        match node.body:
            case [
                ast.ImportFrom(module="importlib.metadata", names=[ast.alias(name="version", asname=None)]),
                ast.Assign(
                    value=ast.Call(func=ast.Name("version"), args=[ast.Constant(str(name))], keywords=[])
                ) as asked,
            ] if name in self.versions:
                asked.value = ast.copy_location(ast.Constant(self.versions[name]), asked.value)
                return asked
        return self.generic_visit(node)

    def undocumented(self, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self.generic_visit(node)
        while (
            not self.keep_docstrings and node.body and _is_text(node.body[0])
        ):  # a second one would become the docstring
            empty = ast.copy_location(ast.Pass(), node.body.pop(0))
            if not node.body and not isinstance(node, ast.Module):
                node.body.append(empty)
        return node

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        if node.name == "__getattr__":
            node.body = _refusal_first(node.body)
        decorators = {_last_name(decorator) for decorator in node.decorator_list}
        if not self.keep_annotations and "overload" in decorators:
            return ast.copy_location(ast.Pass(), node)
        if not self.keep_annotations and decorators <= INDIFFERENT:
            node.returns = None
            parameters = node.args
            every = [*parameters.posonlyargs, *parameters.args, *parameters.kwonlyargs]
            for parameter in [*every, parameters.vararg, parameters.kwarg]:
                if parameter is not None:
                    parameter.annotation = None
        return self.undocumented(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name("platform"), attr=asked), args=[], keywords=[]):
                if asked in KNOWN and not self.keep_annotations:
                    return ast.copy_location(ast.Constant(KNOWN[asked]), node)
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        if not self.keep_annotations and _last_name(node.test) == "TYPE_CHECKING":
            return node.orelse or ast.copy_location(ast.Pass(), node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        if self.unchecked is not None and bases and self.unchecked.issuperset(bases):
            self.unchecked.add(node.name)
            return ast.copy_location(ast.parse(f"{node.name} = dict").body[0], node)
        return self.undocumented(node)

    visit_Module = undocumented  # noqa: N815 - ast's names
    visit_FunctionDef = visit_AsyncFunctionDef = function  # noqa: N815


def _refusal_first(body: list[ast.stmt]) -> list[ast.stmt]:
    """A module's `__getattr__` that imports something and then refuses names, refuses them first: Python 3.15 asks it
    for each name, too, that is to be loaded when it is used."""
    imports = [each for each in body if isinstance(each, ast.Import | ast.ImportFrom)]
    bound = {alias.asname or alias.name.partition(".")[0] for each in imports for alias in each.names}
    for place, each in enumerate(body):
        if bound & {node.id for node in ast.walk(each) if isinstance(node, ast.Name)}:
            break
        if isinstance(each, ast.If) and isinstance(each.body[-1], ast.Raise):
            before = [other for other in body[: place + 1] if other not in imports]
            return [*before, *(other for other in body if other not in before)]
    return body


def _last_name(expression: ast.expr) -> str:
    """`overload` of `typing.overload`, `wraps` of `wraps(function)`."""
    if isinstance(expression, ast.Call):
        expression = expression.func
    if isinstance(expression, ast.Attribute):
        return expression.attr
    return expression.id if isinstance(expression, ast.Name) else ""


def _is_text(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
        return False
    return isinstance(statement.value.value, str)


if __name__ == "__main__":
    main()
