"""The page over HTTP: what browsers and API clients get at `/`, the headers, the files, and the texts."""

from __future__ import annotations

import ast
import gzip
import json
import re
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from errors import error_classes
from page.document import FIRST_MODULES
from page.files import FIRST_TEXTS, FOLDER, read_files
from tests.conftest import ROOT, MakeApp

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"}
STATIC = FOLDER / "static"
FILES = read_files()
SCRIPTS = sorted(STATIC.rglob("*.js"))


@pytest.fixture
def client(make_app: MakeApp) -> FlaskClient:
    return make_app().test_client()


def links(html: str) -> list[str]:
    return re.findall(r'(?:src|href)="([^"#]+)"', html)


# --- what is at / ----------------------------------------------------------------------------------


def test_browsers_get_the_page_and_api_clients_the_error_with_the_base_url(client: FlaskClient) -> None:
    page = client.get("/", headers=BROWSER)
    assert (page.status_code, page.content_type) == (200, "text/html; charset=utf-8")
    for accept in ("*/*", "application/json", "application/json, text/html;q=0.5", ""):
        response = client.get("/", headers={"Accept": accept})
        assert response.status_code == 404
        assert response.get_json()["error"]["details"]["base_url"] == "http://localhost/v1"
    assert set(page.vary) == {"Accept", "Accept-Encoding", "Accept-Language"}


def test_the_page_needs_no_key_and_the_api_does(make_app: MakeApp) -> None:
    client = make_app(api_keys=["secret"]).test_client()
    page = client.get("/", headers=BROWSER)
    assert page.status_code == 200
    assert {client.get(f"/{path}").status_code for path in links(page.text)} == {200}
    assert client.get("/v1/models").status_code == 401


def test_another_site_can_neither_frame_nor_read_nor_post(client: FlaskClient) -> None:
    origin = {"Origin": "https://example.org"}
    page = client.get("/", headers=BROWSER | origin)
    policy = page.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["X-Frame-Options"] == "DENY"
    assert page.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in page.headers
    drawn = client.post("/v1/images/generations", json={"prompt": "a cat"}, headers=origin)
    assert drawn.get_json()["error"]["code"] == "auth.foreign_origin"


def test_the_page_has_no_inline_code_and_no_other_host(client: FlaskClient) -> None:
    html = client.get("/", headers=BROWSER).text
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=", html)
    assert not [link for link in links(html) if "//" in link]


@pytest.mark.parametrize(
    ("accepted", "language"), [("de-AT,de;q=0.9,en;q=0.8", "de"), ("fr", "en"), ("", "en")]
)
def test_the_document_is_in_the_language_of_the_browser(
    client: FlaskClient, accepted: str, language: str
) -> None:
    html = client.get("/", headers=BROWSER | {"Accept-Language": accepted}).text
    assert f'<html lang="{language}"' in html


def test_behind_a_prefix_that_a_trusted_proxy_names_the_files_are_below_it(make_app: MakeApp) -> None:
    client = make_app(trusted_proxies=["127.0.0.1"]).test_client()
    prefix = {"X-Forwarded-Prefix": "/easel", "X-Forwarded-For": "10.0.0.1"}
    html = client.get("/", headers=BROWSER | prefix).text
    assert {link.split("/")[1] for link in links(html)} == {"easel"}
    # Without one they are relative, which works behind any.
    assert not [link for link in links(client.get("/", headers=BROWSER).text) if link.startswith("/")]


# --- files -----------------------------------------------------------------------------------------


def test_files_are_compressed_once_and_kept_by_browsers_for_ever(client: FlaskClient) -> None:
    path = f"/page/{FILES.version}/js/app.js"
    plain = client.get(path)
    packed = client.get(path, headers={"Accept-Encoding": "gzip, br"})
    assert plain.content_type == "text/javascript; charset=utf-8"
    assert gzip.decompress(packed.data) == plain.data
    assert (packed.headers["Content-Encoding"], "Content-Encoding" in plain.headers) == ("gzip", False)
    assert "immutable" in packed.headers["Cache-Control"]
    assert packed.headers["ETag"] != plain.headers["ETag"]
    again = client.get(path, headers={"If-None-Match": plain.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_files_of_another_version_and_outside_the_folder_do_not_exist(client: FlaskClient) -> None:
    for path in ("000000000000/js/app.js", f"{FILES.version}/js/none.js", f"{FILES.version}/../files.py"):
        response = client.get(f"/page/{path}")
        assert (response.status_code, response.get_json()["error"]["code"]) == (404, "route.not_found")


def test_the_version_changes_with_any_file(tmp_path: Path) -> None:
    (tmp_path / "static").mkdir()
    (tmp_path / "texts/en").mkdir(parents=True)
    (tmp_path / "static/a.js").write_text("1")
    before = read_files(tmp_path).version
    (tmp_path / "texts/en/draw.json").write_text('{"draw.title": "x"}')
    assert read_files(tmp_path).version != before


def test_less_than_60_kb_are_sent_before_the_first_picture(client: FlaskClient) -> None:
    gzipped = {"Accept-Encoding": "gzip"}
    page = client.get("/", headers=BROWSER | gzipped)
    html = gzip.decompress(page.data).decode()
    names = {link.split(FILES.version + "/")[1] for link in links(html)}
    names |= {"js/live_worker.js", "js/draw/draw_worker.js"}
    assert "texts/en/first.json" in names
    sizes = {name: len(client.get(f"/page/{FILES.version}/{name}", headers=gzipped).data) for name in names}
    # Headers take about 700 bytes per file, models and status come as JSON.
    assert len(page.data) + sum(sizes.values()) < 60_000


def closure(name: str) -> set[str]:
    """The modules that are loaded with a module, by their names below js/."""
    found: set[str] = set()
    waiting = {name}
    while waiting:
        module = waiting.pop()
        found.add(module)
        waiting |= imported(module) - found
    return found


def imported(name: str) -> set[str]:
    """The modules that a module imports when it is loaded, by their names below js/."""
    text = (STATIC / "js" / name).read_text("utf-8")
    paths = re.findall(r'^(?:import|export) (?:[^"]*? from )?"(\.[^"]+)";', text, re.M)
    return {
        ((STATIC / "js" / name).parent / path).resolve().relative_to(STATIC / "js").as_posix()
        for path in paths
    }


def test_the_document_names_exactly_the_modules_of_the_first_view() -> None:
    assert sorted(FIRST_MODULES) == sorted(closure("app.js"))


def test_what_is_sent_has_no_comments_and_the_same_lines(tmp_path: Path) -> None:
    (tmp_path / "static").mkdir()
    (tmp_path / "texts").mkdir()
    script = '// what it is\n  call("// text"); // why\n/** {x} of\n * y */\n  end();'
    (tmp_path / "static/a.js").write_text(script)
    assert read_files(tmp_path)["a.js"].body == b'\ncall("// text"); // why\n\n\nend();'


@pytest.mark.parametrize("path", [*SCRIPTS, *sorted(STATIC.rglob("*.css"))], ids=lambda path: path.name)
def test_comments_and_texts_do_not_hide_code(path: Path) -> None:
    """What is stripped line by line must be no part of a text, and have no code behind it."""
    text = path.read_text("utf-8")
    assert not re.search(
        r"\*/[ \t]*[^\s*]",
        "\n".join(line for line in text.split("\n") if line.strip().startswith(("/*", "*"))),
    )
    code = [line for line in text.split("\n") if not line.strip().startswith(("//", "/*", "*"))]
    assert path.suffix == ".css" or not [
        line for line in code if line.count("`") % 2
    ]  # a text of several lines


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(STATIC).as_posix())
def test_a_script_never_makes_code_or_html_of_text(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
    )
    assert not re.search(r"https?://(?!www\.w3\.org/)", re.sub(r"^\s*(//|/?\*).*$", "", text, flags=re.M))


# --- texts -----------------------------------------------------------------------------------------

LANGUAGES = sorted(path.name for path in (FOLDER / "texts").iterdir())


def texts(language: str) -> dict[str, str]:
    """All but those for the server's error codes, whose own messages are the English ones."""
    beginning, errors = f"texts/{language}/", f"texts/{language}/errors.json"
    files = [
        json.loads(file.body) for name, file in FILES.items() if name.startswith(beginning) and name != errors
    ]
    return {key: text for file in files for key, text in file.items()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_the_same_texts_with_the_same_values(language: str) -> None:
    english, other = texts("en"), texts(language)
    assert set(other) == set(english)
    for key, text in english.items():
        assert set(re.findall(r"\{(\w+)", other[key])) == set(re.findall(r"\{(\w+)", text)), key
        assert other[key].strip(), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_texts_of_a_view_are_in_its_file(language: str) -> None:
    for path in (FOLDER / "texts" / language).glob("*.json"):
        assert {key.partition(".")[0] for key in json.loads(path.read_text("utf-8"))} <= {path.stem}


def loaded_later() -> set[str]:
    """Modules that are loaded when they are needed, by their names below js/."""
    found = set()
    for path in SCRIPTS:
        for target in re.findall(r'\bimport\("([^"]+)"\)', path.read_text("utf-8")):
            found.add((path.parent / target).resolve().relative_to(STATIC / "js").as_posix())
    return found


def texts_loaded_with_modules() -> dict[str, set[str]]:
    """Module -> the files of texts that are loaded on the line on which it is."""
    found: dict[str, set[str]] = {}
    for path in SCRIPTS:
        for line in path.read_text("utf-8").split("\n"):
            for target in re.findall(r'\bimport\("([^"]+)"\)', line):
                module = (path.parent / target).resolve().relative_to(STATIC / "js").as_posix()
                found.setdefault(module, set()).update(re.findall(r'\baddTexts\("(\w+)"\)', line))
    return {module: names for module, names in found.items() if names}


def test_no_part_of_the_page_uses_texts_that_are_not_loaded_with_it() -> None:
    app = (STATIC / "js/app.js").read_text("utf-8")
    of_views = dict(re.findall(r'import\("\./([^"]+)"\).*texts: \[([^\]]*)\]', app))
    assert set(of_views) == {f"{view}/view.js" for view in ("gallery", "machine", "catalogue")}
    of_parts = texts_loaded_with_modules()
    assert {"menu/key_dialog.js", "draw/results.js"} <= set(of_parts)
    first = closure("app.js")
    for entry in sorted({"app.js"} | loaded_later()):
        loaded = {*FIRST_TEXTS, entry.partition("/")[0], *re.findall(r"\w+", of_views.get(entry, ""))}
        loaded |= of_parts.get(entry, set())
        for module in closure(entry) - (first if entry != "app.js" else set()):
            source = (STATIC / "js" / module).read_text("utf-8")
            used = set(
                re.findall(
                    r"""["'`](common|draw|edit|gallery|machine|catalogue|menu|results)\.[\w.]+""",
                    source,
                )
            )
            assert used <= loaded, (entry, module)


def test_every_icon_is_loaded_where_it_is_shown() -> None:
    more = re.findall(r"^  (\w+): ", (STATIC / "js/more_icons.js").read_text("utf-8"), re.M)
    assert len(more) > 10
    first = closure("app.js")
    for entry in sorted({"app.js"} | loaded_later()):
        modules = closure(entry) - (first if entry != "app.js" else set())
        sources = [(STATIC / "js" / module).read_text("utf-8") for module in modules]
        shown = [
            name
            for name in more
            for source in sources
            if re.search(rf'(?:icon: |\b(?:icon|iconButton|tool|button)\()"{name}"', source)
        ]
        assert not shown or "more_icons.js" in modules, (entry, shown)


def test_scripts_use_only_texts_that_exist_and_all_of_them() -> None:
    sources = "\n".join(path.read_text("utf-8") for path in [*SCRIPTS, *(FOLDER / "templates").iterdir()])
    used = set(
        re.findall(
            r"""["'`]((?:common|draw|edit|gallery|machine|catalogue|menu|results)\.[\w.]+)["'`]""",
            sources,
        )
    )
    known = set(texts("en"))
    names = r"((?:common|draw|edit|gallery|machine|catalogue|menu|results)\.[\w.]*)"
    beginnings = tuple(re.findall(rf"`{names}\$\{{|'{names}' ~", sources))
    beginnings = tuple(filter(None, (part for pair in beginnings for part in pair)))
    assert {key for key in used if not key.startswith(("draw.error.", "catalogue.yaml"))} - known <= {
        *beginnings
    }
    unused = {key for key in known - used if not beginnings or not key.startswith(beginnings)}
    assert unused == set()


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_texts_for_errors_are_for_codes_that_exist_and_the_usual_ones_are_there(language: str) -> None:
    found: dict[str, str] = json.loads(FILES[f"texts/{language}/errors.json"].body)
    codes = {error.code for error in error_classes()} | {"network.unreachable"}
    named = {key.removeprefix("errors.") for key in found}
    assert named - codes == set()
    usual = ("image.", "engine.", "gpu.", "queue.", "auth.", "model.files", "model.licence", "server.")
    rare = {"image.url_refused", "image.url_failed", "image.invalid_cursor", "image.no_thumbnail"}
    rare |= {"auth.key_not_found", "engine.no_websocket", "engine.no_pictures", "engine.upload_refused"}
    rare |= {"server.away", "gpu.image_mode", "gpu.preempted", "gpu.not_generating"}
    assert {code for code in codes if code.startswith(usual)} - named - rare == set()


def told_reasons() -> set[str]:
    """The codes of all that a request can wait for: what `because` is called with anywhere."""
    folders = ("api", "arbiter", "cluster", "engines", "generation", "llm", "status")
    calls = [
        node
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "because(" in (text := path.read_text("utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "because"
    ]
    codes = {call.args[1].value for call in calls if isinstance(call.args[1], ast.Constant)}
    assert len(codes) == len({ast.dump(call.args[1]) for call in calls}), (
        "a code is not written where it is told"
    )
    return {str(code) for code in codes}


def test_all_that_a_request_can_wait_for_has_a_text_in_both_languages_and_is_documented() -> None:
    codes = told_reasons()
    assert {"pictures_before", "jobs_before", "free_host", "host", "gpu"} <= codes
    prefix = "draw.waits."
    for language in ("en", "de"):
        texts = json.loads((FOLDER / "texts" / language / "draw.json").read_text("utf-8"))
        assert {name.removeprefix(prefix) for name in texts if name.startswith(prefix)} == codes, language
    api = (ROOT / "docs/api.md").read_text("utf-8")
    listed = api[api.index("`reason` says the same") : api.index("`: running` follows")]
    assert codes <= set(re.findall(r"`(\w+)`", listed))
