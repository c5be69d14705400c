"""What mkdocs does beyond its configuration: files of the repository outside of docs/ become part of the site.

README.md, CONTRIBUTING.md and CHANGELOG.md become pages. Any other file that a page links to as ``../path`` is copied to
``source/path``.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
OUTSIDE = re.compile(r"(?<=\]\()\.\./([\w./-]+)")  # [text](../path#anchor)


def _place(path: str) -> str:
    """Where a file of the repository is in the site."""
    return PAGES.get(path, f"source/{path}")


def _as_page(text: str) -> str:
    """A page at the top of the repository, with links as from docs/."""
    text = re.sub(r"(?<=\]\()(?!https?:|#|docs/)([\w./-]+)", lambda link: _place(link[1]), text)
    return re.sub(r"(?<=\]\()docs/", "", text)


def on_files(files: Files, config: Any) -> Files:
    for name in PAGES:
        files.append(File.generated(config, PAGES[name], content=_as_page((ROOT / name).read_text())))
    linked = {path for page in Path(config.docs_dir).rglob("*.md") for path in OUTSIDE.findall(page.read_text())}
    linked |= {path for name in PAGES for path in _linked_at_the_top(name)}
    for path in sorted(linked - PAGES.keys()):
        files.append(File.generated(config, _place(path), abs_src_path=str(ROOT / path)))
    return files


def _linked_at_the_top(name: str) -> list[str]:
    found = re.findall(r"(?<=\]\()(?!https?:|#|docs/)([\w./-]+)", (ROOT / name).read_text())
    return [path for path in found if (ROOT / path).is_file()]


def on_page_markdown(markdown: str, **_: Any) -> str:
    return OUTSIDE.sub(lambda link: _place(link[1]), markdown)
