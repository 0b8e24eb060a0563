"""Hooks of the documentation site: cards and the changelog, which live beside what they describe, become pages of it.

Their Markdown stays where it is, and links to it from the pages work in a clone as well as on the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
ELSEWHERE = {
    "src/cfx/resources/models/mini/README.md": "cards/mini.md",
    "src/cfx/resources/models/mini-rl-ehull/README.md": "cards/mini-rl-ehull.md",
    "src/cfx/resources/models/mini-rl-fom/README.md": "cards/mini-rl-fom.md",
    "src/cfx/resources/hulls/chgnet-mp/README.md": "cards/chgnet-mp.md",
    "src/cfx/resources/hulls/7net-mp/README.md": "cards/7net-mp.md",
    "src/cfx/resources/properties/README.md": "cards/properties.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files of the repository -> pages of the site."""


def on_files(files, config):
    """Adds the pages."""
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Leads links to these files to their pages."""
    sources = {address: source for source, address in ELSEWHERE.items()}
    source = sources.get(page.file.src_uri, posixpath.join("docs", page.file.src_uri))
    here = posixpath.dirname(page.file.src_uri)

    def lead(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        return f"]({posixpath.relpath(ELSEWHERE[target], here or '.')})" if target in ELSEWHERE else match[0]

    return re.sub(r"\]\(((?:\.\./)+[^)#]+\.md)\)", lead, markdown)
