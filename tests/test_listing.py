"""`python -m dreamlab` lists the commands, quickly, and knows what a mistyped one was meant to be."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_readme import SCHEMAS

from dreamlab.__main__ import COMMANDS, listing

ROOT = Path(__file__).parent.parent


def dreamlab(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "dreamlab", *words], capture_output=True, text=True, cwd=ROOT)


def test_every_command_is_listed_and_installed() -> None:
    assert set(COMMANDS) == set(SCHEMAS)
    scripts = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"python -m dreamlab.{name} " in listing()
        assert f'dreamlab-{name} = "dreamlab.{name}:main"' in scripts
        assert (ROOT / "conf" / f"{name}.yaml").is_file()


@pytest.mark.parametrize("words", [(), ("--help",)])
def test_alone_it_lists_them(words: tuple[str, ...]) -> None:
    done = dreamlab(*words)
    assert (done.returncode, done.stdout) == (0, listing() + "\n")


def test_the_listing_imports_nothing_of_weight() -> None:
    code = "import sys; sys.argv = ['dreamlab']; from dreamlab.__main__ import main; main(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"torch", "hydra", "omegaconf", "rich"} & set(done.stdout.split())


@pytest.mark.parametrize(("word", "told"), [("trian", "Did you mean 'train'?"), ("train", "train, with a dot")])
def test_another_word_is_answered(word: str, told: str) -> None:
    done = dreamlab(word)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr
