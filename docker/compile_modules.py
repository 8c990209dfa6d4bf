"""Turns modules into bytecode that is loaded as it is: no source beside it, no time stamp to check.

What nobody reads in a container and every process would hold is left out: docstrings, and annotations of functions that
have no decorator (those of classes make dataclasses and models, and stay; so do assertions). Tracebacks still name
files, lines and functions. With `--keep-sources` they show the text of the lines as well, and annotations stay: what
our own handlers take is told by theirs.
"""

import argparse
import ast
import importlib.util
import marshal
import sys
from pathlib import Path

UNCHECKED = (0b01).to_bytes(4, "little")
"""Bytecode that belongs to a source by its hash, which is not compared when it is loaded. Source: PEP 552."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the folder that will be / in the image")
    parser.add_argument("--keep-sources", action="store_true")
    parser.add_argument("folder", type=Path, help="where the modules are, in the image")
    arguments = parser.parse_args()
    compile_all(arguments.root, arguments.folder, keep_sources=arguments.keep_sources)


def compile_all(root: Path, folder: Path, *, keep_sources: bool) -> None:
    """Compile every module in `folder`, a path in the image whose files are in `root`."""
    for source in sorted((root / folder.relative_to("/")).rglob("*.py")):
        try:
            compile_module(source, "/" + str(source.relative_to(root)), keep_sources)
        except SyntaxError as error:  # a module for another version of Python
            if keep_sources:  # our own code: there is none that may be left out
                raise
            print(f"left out: {source.relative_to(root)}: {error}", file=sys.stderr)
            source.unlink()


def compile_module(source: Path, name: str, keep_source: bool) -> None:
    text = source.read_bytes()
    tree = Bare(keep_annotations=keep_source).visit(ast.parse(text, name))
    code = compile(tree, name, "exec", dont_inherit=True, optimize=0)
    bytecode = Path(importlib.util.cache_from_source(source)) if keep_source else source.with_suffix(".pyc")
    bytecode.parent.mkdir(exist_ok=True)
    bytecode.write_bytes(
        importlib.util.MAGIC_NUMBER + UNCHECKED + importlib.util.source_hash(text) + marshal.dumps(code)
    )
    if not keep_source:
        source.unlink()


class Bare(ast.NodeTransformer):
    """Removes docstrings and, unless told to keep them, annotations of functions."""

    def __init__(self, *, keep_annotations: bool) -> None:
        self.keep_annotations = keep_annotations

    def undocumented(self, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self.generic_visit(node)
        while node.body and _is_text(node.body[0]):  # a second one would become the docstring
            empty = ast.copy_location(ast.Pass(), node.body.pop(0))
            if not node.body and not isinstance(node, ast.Module):
                node.body.append(empty)
        return node

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        # What a decorator makes of a function may depend on them, as `functools.singledispatch` does.
        if not self.keep_annotations and not node.decorator_list:
            node.returns = None
            parameters = node.args
            every = [*parameters.posonlyargs, *parameters.args, *parameters.kwonlyargs]
            for parameter in [*every, parameters.vararg, parameters.kwarg]:
                if parameter is not None:
                    parameter.annotation = None
        return self.undocumented(node)

    visit_Module = visit_ClassDef = undocumented  # noqa: N815 - ast's names
    visit_FunctionDef = visit_AsyncFunctionDef = function  # noqa: N815


def _is_text(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
        return False
    return isinstance(statement.value.value, str)


if __name__ == "__main__":
    main()
