"""The site: it builds without a warning, its links lead somewhere, and it loads nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from typer.main import get_command

from cfx.cli.app import app

from .pages import PAGES, ROOT, blocks

LARGEST_PICTURE = 150_000


class Links(HTMLParser):
    """What a page links to, loads, and can be linked at."""

    def __init__(self, page: Path):
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        elif tag in ("link", "script", "img", "iframe", "source") and given.get("rel") != "canonical":
            self.loads |= {given[name] for name in ("src", "href") if given.get(name)}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, Links]:
    pytest.importorskip("material", reason="mkdocs-material is not installed: pip install -e '.[docs]'")
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(target)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # the theme's news of its successor
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and not re.search("WARNING|ERROR|INFO", said), said
    return {page.relative_to(target): Links(page) for page in target.rglob("*.html")} | {Path(): target}


def test_links_and_anchors(site):
    target = site[Path()]
    for page, content in ((page, content) for page, content in site.items() if page != Path()):
        for address in content.links | content.loads:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or page.name == "404.html":
                continue
            file = (target / page.parent / unquote(parts.path)).resolve() if parts.path else target / page
            file = file / "index.html" if file.is_dir() else file
            assert file.is_file(), (page, address)
            if parts.fragment and file.suffix == ".html":
                assert unquote(parts.fragment) in site[file.relative_to(target.resolve())].anchors, (page, address)


def test_nothing_is_loaded_from_elsewhere(site):
    for page, content in site.items():
        if page != Path():
            assert not [one for one in content.loads if urlsplit(one).netloc], page
    for style in site[Path()].rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text()), style


def test_every_command_has_a_page(site):
    addresses = [page.stem for page in site] + ["rl"]
    pages = {
        "sample": "sampling",
        "fetch": "fetching",
        "train": "training",
        "eval": "evaluating",
        "retrieve": "retrieving",
    }
    for name in get_command(app).commands:
        assert pages.get(name, name) in addresses


def test_tables_of_options_are_up_to_date():
    spec = importlib.util.spec_from_file_location("make_command_pages", ROOT / "tools" / "make_command_pages.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    described = set()
    for page in (ROOT / "docs").rglob("*.md"):
        text = page.read_text()
        assert tool.updated(text) == text, f"run: python tools/make_command_pages.py ({page})"
        described |= set(re.findall(r"<!-- options: cfx ([a-z ]+) -->", text))
    commands = get_command(app).commands
    assert described == set(commands) - {"hull"} | {f"hull {name}" for name in commands["hull"].commands}


def test_links_of_the_sources():
    for page in PAGES:
        for address in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if not urlsplit(address).scheme and not address.startswith("#"):
                assert (page.parent / urlsplit(address).path).exists(), (page, address)


def test_pictures_are_small():
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.stat().st_size <= LARGEST_PICTURE, picture


def test_a_line_of_code_is_one_command():
    """A paragraph that was filled with a list of commands in it has several of them in one line."""
    for page in PAGES:
        for block in blocks(page):
            for line in block.text.splitlines():
                assert len(re.findall(r"(?:^|\s)cfx [a-z]+ [^|&;'`]", line)) < 2 or "$" in line, (page, line)
