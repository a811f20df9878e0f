"""The documentation is built as a site: without a warning, complete, searchable, and closed in itself."""

from __future__ import annotations

import importlib.util
import json
import os
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

from tests.conftest import ROOT

DOCS = ROOT / "docs"


def build_site() -> ModuleType:
    """docs/build_site.py, which is a program and no module of the project."""
    spec = importlib.util.spec_from_file_location("build_site", DOCS / "build_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Page(HTMLParser):
    """The addresses that a page names: those of `links` are followed by a click, those of `loaded` at once."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids.add(values.get("id") or "")
        if values.get("href") and tag == "a":
            self.links.append(values["href"] or "")
        elif values.get("href") and values.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(values["href"] or "")
        if values.get("src"):
            self.loaded.append(values["src"] or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("site") / "site"
    assert build_site().build(folder) == ""
    return folder


def test_every_page_and_file_of_the_documentation_is_in_the_site(site: Path) -> None:
    files = [
        path.relative_to(DOCS)
        for path in DOCS.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    pages = [*(name for name in files if name.suffix == ".md"), *map(Path, ("CHANGELOG.md", "SECURITY.md"))]
    others = [name for name in files if name.suffix not in (".md", ".py") and name.name != "site.yaml"]
    addresses = {
        name: site / (name.parent if name.stem in ("index", "README") else name.with_suffix(""))
        for name in pages
    }
    assert [str(name) for name in pages if not (addresses[name] / "index.html").exists()] == []
    assert [str(name) for name in others if not (site / name).exists()] == []


def test_every_page_is_in_the_navigation(site: Path) -> None:
    start = Page(site / "index.html")
    listed = {os.path.normpath(urlsplit(link).path) for link in start.links}
    pages = {str(path.parent.relative_to(site)) for path in site.rglob("index.html")}
    assert pages - listed == set()


def test_every_link_between_pages_leads_somewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("index.html")}
    broken = []
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or not (parts.path or parts.fragment):
                continue
            target = Path(os.path.normpath(path.parent / unquote(parts.path)))
            target = target / "index.html" if target.is_dir() else target
            has_anchor = (
                not parts.fragment or target not in pages or unquote(parts.fragment) in pages[target].ids
            )
            if not target.exists() or not has_anchor:
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_pages_load_nothing_from_other_servers(site: Path) -> None:
    loaded = {address for path in site.rglob("*.html") for address in Page(path).loaded}
    assert loaded
    assert {address for address in loaded if urlsplit(address).netloc} == set()


def test_the_search_knows_every_page(site: Path) -> None:
    items = json.loads((site / "search.json").read_text())["items"]
    found = {item["location"].partition("#")[0].strip("/") or "." for item in items}
    assert {str(path.parent.relative_to(site)) for path in site.rglob("index.html")} - found == set()
    assert any(
        "requests_per_minute" in item["text"] or "requests-per-minute" in item["text"] for item in items
    )


def test_a_folder_with_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "letters").write_text("mine")
    with pytest.raises(FileExistsError, match="no site"):
        build_site().build(tmp_path)
    assert (tmp_path / "letters").read_text() == "mine"
    with pytest.raises(FileExistsError, match="no site"):
        build_site().build(tmp_path / "letters")


def test_a_site_of_before_is_known(site: Path) -> None:
    assert build_site().is_site(site)


def test_a_broken_link_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = build_site()
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Start\n\n[there](missing.md) and [here](index.md#nowhere)\n")
    (docs / "site.yaml").write_text("site_name: x\nnav: [{Start: index.md}, {Design: [{Decisions: []}]}]\n")
    monkeypatch.setattr(module, "DOCS", docs)
    warnings = module.build(tmp_path / "site")
    assert "missing.md" in warnings
    assert "nowhere" in warnings
