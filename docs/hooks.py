"""What mkdocs does beyond its configuration: files of the repository outside of docs/ become part of the site.

README.md, CONTRIBUTING.md and CHANGELOG.md become pages. Any other file outside of docs/ that a page links to is copied to
``source/path``.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([\w./-]+)")  # [text](path#anchor)


def _in_site(path: str) -> str:
    """Where a file of the repository is in the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path, f"source/{path}")


def _outside(text: str, folder: str) -> Iterator[str]:
    """Files of the repository outside of docs/ that a page links to, from ``folder`` of the repository."""
    for link in LINK.findall(text):
        path = posixpath.normpath(posixpath.join(folder, link))
        if not path.startswith("docs/") and path not in PAGES:
            yield path


def _moved(text: str, folder: str, page: str) -> str:
    """The text of a page with links for its place in the site.

    :param text: with links as they are in the repository
    :param folder: of the repository, in which it lies there
    :param page: where it is in the site
    """

    def place(link: re.Match[str]) -> str:
        target = _in_site(posixpath.normpath(posixpath.join(folder, link[1])))
        return posixpath.relpath(target, posixpath.dirname(page) or ".")

    return LINK.sub(place, text)


def on_files(files: Files, config: Any) -> Files:
    linked = set()
    for page in Path(config.docs_dir).rglob("*.md"):
        linked |= set(_outside(page.read_text(), page.parent.relative_to(ROOT).as_posix()))
    for name in PAGES:
        linked |= set(_outside((ROOT / name).read_text(), ""))
        files.append(File.generated(config, PAGES[name], content=(ROOT / name).read_text()))
    for path in sorted(path for path in linked if (ROOT / path).is_file()):
        files.append(File.generated(config, _in_site(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    uri = page.file.src_uri
    folder = "" if uri in PAGES.values() else posixpath.join("docs", posixpath.dirname(uri))
    return _moved(markdown, folder, uri)
