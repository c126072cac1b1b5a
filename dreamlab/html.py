"""Pages that stand alone: a template filled in, everything escaped, in one file that asks for nothing else.

A page names what it may use in a content security policy: its own pictures and styles, its own script by that script's
hash where it has one, and nothing from elsewhere. So even what slipped through would not run. Called by page.py and
compare.py.
"""

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

from dreamlab.whole import written_whole

_SIZE = "@size-of-this-page@"


def render(template: str, script: str | None = None, **context: Any) -> str:
    """The filled-in template; `script` is a file beside it that runs in the page."""
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    environment = Environment(loader=PackageLoader("dreamlab"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"show": show, "page_size": _SIZE}
    code = (files("dreamlab") / "templates" / script).read_text(encoding="utf-8") if script else ""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    if code:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
    return environment.get_template(template).render(policy=policy, script=Markup(code), **context)


def write_html(path: Path, html: str) -> int:
    """Write a page, its own size filled in; returns its bytes."""
    size = len(html.encode())
    with written_whole(path) as temporary:
        temporary.write_text(html.replace(_SIZE, show_bytes(size)), encoding="utf-8")
    return size


def show_bytes(size: float) -> str:
    """A number of bytes in the unit that suits it."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000 or unit == "MB":
            return f"{size:.0f} {unit}" if unit != "MB" else f"{size:.1f} MB"
        size /= 1000
    raise AssertionError("unreachable")


def show(value: Any) -> str:
    """A score with three digits that tell something; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, float):
        return "–" if value is None else str(value)
    if abs(value) < 0.0005:  # float32 says -9e-8 where nothing changed
        return "0.000"
    return f"{value:.3f}" if 0.01 <= abs(value) < 1000 else f"{value:.3g}"
