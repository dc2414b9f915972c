"""What turns the pages of ``docs/`` into those of the site: hooks that mkdocs calls (``mkdocs.yml``).

The front page is ``README.md``, so that nothing is said twice. Its links into ``docs/`` become links within the site,
and links of any page to files that the site does not have become plain text.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
FRONT, README = "index.md", "README.md"


def front_page(readme: str) -> str:
    """The README as a page of ``docs/``."""
    return re.sub(r"\]\(docs/", "](", readme)


def without_outside(text: str, page: str, docs: Path) -> str:
    """``page`` (its path in ``docs/``) without links to files outside ``docs/``. Links to the README lead to the front
    page."""

    def replaced(found: re.Match[str]) -> str:
        label, target = found.groups()
        path, hash_, anchor = target.partition("#")
        if not path or re.match(r"\w+:", target):
            return found[0]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
        if place == f"../{README}":
            return f"[{label}]({posixpath.relpath(FRONT, posixpath.dirname(page) or '.')}{hash_}{anchor})"
        outside = place.startswith("../") or (page == FRONT and not (docs / place).exists())
        return label if outside else found[0]

    return LINK.sub(replaced, text)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Called by mkdocs with every page."""
    name, docs = page.file.src_uri, Path(config["docs_dir"])
    if name == FRONT:
        markdown = front_page((docs.parent / README).read_text(encoding="utf-8"))
    return without_outside(markdown, name, docs)
