"""The house's budgets: short files and functions, words on public names, YAML that shows its own command."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_FILE_LINES = 250
MAX_FUNCTION_LINES = 50
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "base", "misc", "core", "manager"}


def python_files() -> list[Path]:
    return sorted(path for room in ("dreamlab", "experiments") for path in (ROOT / room).rglob("*.py"))


def yaml_files() -> list[Path]:
    return sorted((ROOT / "conf").rglob("*.yaml"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def public_definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """What a reader may call. A subclass's methods are left out: most are hooks that its framework documents."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
            yield node
            if isinstance(node, ast.ClassDef) and not node.bases:
                yield from (method for method in functions(node) if method.name[0] != "_" and method in node.body)


def test_there_is_something_to_measure() -> None:
    assert len(python_files()) > 10
    assert len(yaml_files()) > 5


@pytest.mark.parametrize("path", python_files(), ids=name_of)
def test_python_file_is_short_named_well_and_documented(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions(tree)}

    assert source.count("\n") < MAX_FILE_LINES
    assert {name: lines for name, lines in lengths.items() if lines >= MAX_FUNCTION_LINES} == {}
    assert not VAGUE_NAMES & set(path.stem.split("_")), "a file is named after its idea"
    assert ast.get_docstring(tree), "the module says what idea it holds"
    assert [node.name for node in public_definitions(tree) if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", yaml_files(), ids=name_of)
def test_yaml_opens_with_a_command_that_uses_it(path: Path) -> None:
    opening = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))
    assert opening, "a YAML file opens with a comment"
    command = re.search(r"^#\s*(?:\$ )?python -m dreamlab\.(\w+)(.*)$", opening.group(), re.MULTILINE)
    assert command, "the comment shows a command: python -m dreamlab.<command> ..."

    group = path.parent.relative_to(ROOT / "conf").as_posix()
    if group == ".":
        assert command.group(1) == path.stem
    else:
        assert f"{group}={path.stem}" in command.group(2)
