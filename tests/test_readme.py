"""What the documents tell people to type exists."""

import re
import shlex
from pathlib import Path

import pytest

from dreamlab.commands import Bench, Evaluate, Export, Inspect, Report, Sample, Tokens
from dreamlab.config import conf_dir, setting_names
from dreamlab.report import with_names
from dreamlab.schema import Train

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "experiments").glob("*/README.md"))]
SCHEMAS = {
    "train": Train, "sample": Sample, "export": Export, "evaluate": Evaluate, "report": Report, "bench": Bench,
    "inspect": Inspect,
    "tokens": Tokens,
}  # fmt: skip


def blocks(page: Path) -> list[str]:
    """Fenced and indented code blocks, line continuations joined."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [*fenced, *re.findall(r"(?:^    \S.*\n)+", text, re.MULTILINE)]


def test_a_fresh_machine_needs_exactly_two_commands() -> None:
    block = blocks(ROOT / "README.md")[0]
    commands = [line.split("#")[0].strip() for line in block.splitlines()]
    assert commands == ["make demo", "make test"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)


def test_ci_runs_the_test_command() -> None:
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("make test")


COMMANDS = [
    (page, line.strip())
    for page in PAGES
    for block in blocks(page)
    for line in block.splitlines()
    if "python -m dreamlab." in line
]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: getattr(value, "name", value))
def test_every_command_names_settings_that_exist(page: Path, line: str) -> None:
    words = shlex.split(line, comments=True)
    command = words[2].removeprefix("dreamlab.")
    assert words[:2] == ["python", "-m"] and command in SCHEMAS
    known = set(setting_names(SCHEMAS[command]))
    for word in with_names(words[3:]) if command == "report" else words[3:]:
        if word.startswith("-"):
            continue
        key, _, value = word.partition("=")
        if key.startswith("hydra."):
            continue  # the launcher's own, which its plugin checks
        key = key.removeprefix("+")
        is_choice = (Path(conf_dir()) / key / f"{value}.yaml").is_file()
        is_group = (Path(conf_dir()) / key).is_dir()  # Hydra would look for a file there
        names_variant = command == "bench" and key.split(".")[0] in ("plain", "training", "sampling")
        assert is_choice or names_variant or (key in known and not is_group), f"{page.name}: {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_picture_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"
            if (page.parent / target).suffix in (".jpg", ".png"):
                assert (page.parent / target).stat().st_size < 300_000
