"""What the documents name in the code and in the settings is there, so that they can't go stale unnoticed."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from test_readme import COMMANDS, PAGES, ROOT, SCHEMAS

from dreamlab.config import conf_dir, setting_names
from dreamlab.report import with_names

PACKAGE, CONF = ROOT / "dreamlab", Path(conf_dir())
ELSEWHERE = {"diffusers", "peft", "torch"}  # whose names the documents also mention


def code_words(page: Path) -> list[str]:
    """What stands as code inside the text, not in blocks of its own."""
    text = re.sub(r"^```.*?^```|^    \S.*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


@cache
def names_in(module: Path) -> set[str]:
    """Every function, class, method and constant of a file in dotted form."""
    found = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def is_code(name: str) -> bool:
    """Whether `loss.dreambooth_loss`, `module.DreamBooth.loss` or `rounding` is there."""
    module, _, rest = name.partition(".")
    if module == "models":
        return (PACKAGE / "models" / f"{rest}.py").is_file()
    file = PACKAGE / f"{module}.py"
    return file.is_file() and (not rest or rest in names_in(file))


def equations() -> list[str]:
    """The code named in the last column of the tables of docs/math.md."""
    rows = [line for line in (ROOT / "docs/math.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [row.strip("| ").split(" | ")[-1] for row in rows if not row.startswith(("| name |", "| what |"))]
    assert [cell for cell in cells if "`" not in cell] == [], "every row says where in the code it is"
    return [name for cell in cells for name in re.findall(r"`([a-z_]+(?:\.[A-Za-z_]+)+)`", cell)]


def test_each_equation_has_its_place_in_the_code() -> None:
    assert len(equations()) >= 30
    assert [name for name in equations() if not is_code(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_files_and_functions_that_a_page_names_are_there(page: Path) -> None:
    words = code_words(page)
    files = {word for word in words if re.fullmatch(r"[\w/]+\.py|[\w/]+/", word)}
    rooms = (PACKAGE, ROOT, page.parent, ROOT / "experiments/pocket")
    missing = {name for name in files if name.endswith(".py") and not any((room / name).is_file() for room in rooms)}
    dotted = {word for word in words if re.fullmatch(r"[a-z_]+\.[A-Za-z_]+(\.\w+)?", word)}
    ours = {word for word in dotted if (PACKAGE / f"{word.split('.')[0]}.py").is_file() and word[-3:] != ".py"}
    ours -= {"encoders.json"}  # a file of results
    assert missing | {name for name in ours if not is_code(name) and name not in SETTINGS} == set()


def test_the_tour_names_the_functions_that_it_walks_through() -> None:
    text = (ROOT / "docs/tour.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \d\. .*?`dreamlab/(\w+)\.py`.*?\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    walked = {module: re.findall(r"`([A-Za-z_.]+)\(?\)?`", body) for module, body in sections}
    assert list(walked) == ["train", "photos", "module", "diffusion", "loss"], "the four files, and the photo's"
    for module, names in walked.items():
        known = set().union(*(names_in(PACKAGE / f"{room}.py") for room in (module, "data")))
        assert known & set(names), f"{module}.py: {names}"


SETTINGS = {key for schema in SCHEMAS.values() for key in setting_names(schema)}
OPTIMIZERS = {f"optimizer.{key}" for file in (CONF / "optimizer").glob("*.yaml") for key in OmegaConf.load(file)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_settings_that_a_page_names_exist(page: Path) -> None:
    given = [re.match(r"^['\"]?\+?([a-z_][\w./]*)=(.*)", word) for told in code_words(page) for word in told.split()]
    wrong = []
    for key, value in (match.groups() for match in given if match):
        choices = [(CONF / key / f"{choice}.yaml").is_file() for choice in re.split(r"[|,]", value) if choice]
        is_group = (CONF / key).is_dir() and key not in ("hydra/launcher",)
        exists = all(choices) if is_group and choices else key in SETTINGS | OPTIMIZERS or key.startswith("hydra")
        wrong += [] if exists else [f"{key}={value}"]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_headings_lead_to_one(page: Path) -> None:
    for file, anchor in re.findall(r"\]\(([^)#\s]*\.md)?#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        text = (page.parent / file if file else page).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in headings}, anchor


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: getattr(value, "name", value))
def test_a_shell_hands_hydra_what_it_can_read(page: Path, line: str) -> None:
    import shlex

    words = shlex.split(line, comments=True)
    given = with_names(words[3:]) if words[2] == "dreamlab.report" else words[3:]
    OverridesParser.create().parse_overrides([word for word in given if not word.startswith("-")])
