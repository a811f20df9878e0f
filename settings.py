"""Every setting once: name, kind, default and one sentence. Values come from `easel.yaml` and, stronger, from
`EASEL_*` variables; `docs/settings.md` is printed from this table and `easel.example.yaml` is held to it by a test."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from jsonschema import Draft202012Validator

from errors import SettingsInvalid
from schemas import first_error, line_of, load_schema, read_yaml
from schemas.explain import rule_of

Kind = Literal["text", "url", "path", "integer", "number", "switch", "list", "entries", "entry"]


@dataclass(frozen=True)
class Setting:
    """One setting. `name` is its place in easel.yaml, dots between levels; its variable is made from that."""

    name: str
    kind: Kind
    default: Any
    sentence: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    secret: bool = False
    schema: str = ""
    """The JSON Schema in `schemas/` for a value of kind entry."""

    @property
    def variable(self) -> str:
        return "EASEL_" + self.name.upper().replace(".", "_")


TABLE: tuple[Setting, ...] = (
    Setting("host", "text", "127.0.0.1", "Address to listen on; any but a loopback one needs `api_keys`."),
    Setting("port", "integer", 8080, "Port to listen on; 0 picks a free one.", minimum=0, maximum=65535),
    Setting("workers", "integer", 2, "Worker processes.", minimum=1),
    Setting("threads", "integer", 128, "Threads of a worker; a waiting request holds one.", minimum=4),
    Setting(
        "max_waiting",
        "integer",
        96,
        "Requests of a worker that may wait for pictures at a time; more are answered 429.",
        minimum=1,
    ),
    Setting(
        "state_dir",
        "path",
        "var",
        "Folder for what outlives a restart: kept images, the last good catalogue.",
    ),
    Setting("catalogue", "path", "catalogue.yaml", "The catalogue of models and workflows."),
    Setting("templates", "path", "templates_wf", "Folder of the workflow templates."),
    Setting("api_keys", "list", (), "Keys that clients must send one of; empty: none needed.", secret=True),
    Setting("allow_open", "switch", False, "Listen on a public address without any key, on purpose."),
    Setting(
        "allowed_hosts",
        "list",
        (),
        "More `Host` names to answer to while listening on loopback, without port.",
    ),
    Setting(
        "allowed_origins",
        "list",
        (),
        "Origins of web pages that may call the API, such as `https://chat.example`; `*` for any.",
    ),
    Setting(
        "trusted_proxies",
        "list",
        (),
        "Addresses of reverse proxies whose `X-Forwarded-*` headers are believed.",
    ),
    Setting("public_url", "url", "", "Base of the image URLs; empty: the one the client called."),
    Setting(
        "url_style",
        "text",
        "absolute",
        "Form of `url` in answers: most clients need it absolute.",
        choices=("absolute", "relative", "data"),
    ),
    Setting(
        "default_response_format",
        "text",
        "auto",
        "What a request without `response_format` gets; auto decides as each client's dialect expects.",
        choices=("auto", "url", "b64_json"),
    ),
    Setting("max_request_mb", "number", 128, "Largest request body, in 10^6 bytes.", minimum=0.001),
    Setting(
        "request_timeout_s",
        "number",
        270,
        "Longest time a request may take; many clients give up at 300 s, and taking a job back may need 20 s.",
        minimum=1,
    ),
    Setting("log_level", "text", "info", "How much to log.", choices=("debug", "info", "warning", "error")),
    Setting(
        "engine.url",
        "url",
        "",
        "ComfyUI's address; empty: the one on 127.0.0.1:8188 if there is one, else the sketch engine.",
    ),
    Setting(
        "engine.stall_timeout_s",
        "number",
        270,
        "A running job without any sign of life for so long is taken for a stalled ComfyUI; loading a model is silent too.",
        minimum=5,
    ),
    Setting(
        "engine.sketch",
        "switch",
        True,
        "Start the built-in sketch engine when no ComfyUI is configured and none was ever seen.",
    ),
    Setting(
        "engine.depth",
        "integer",
        2,
        "Jobs that ComfyUI has at a time while it shares the GPU with LLM stacks; the others wait in Easel.",
        minimum=1,
        maximum=100,
    ),
    Setting(
        "engine.start",
        "entry",
        {},
        "How to start ComfyUI when it is down: `{systemd: UNIT}`, `{docker: NAME}`, `{command: [ARG, …]}`; empty: never.",
        schema="engine_start",
    ),
    Setting(
        "engine.start_timeout_s",
        "number",
        180,
        "How long ComfyUI may take from its start to its first answer.",
        minimum=1,
    ),
    Setting(
        "gpu.sharing",
        "text",
        "exclusive",
        "Whether the LLMs always leave the GPU for a picture, or stay while there is room beside them.",
        choices=("exclusive", "coexist"),
    ),
    Setting(
        "gpu.reserve_gb",
        "number",
        1,
        "With `coexist`: GPU memory to be left over beside the model's `min_vram_gb`, in 10^9 bytes.",
        minimum=0,
    ),
    Setting(
        "gpu.llm_during_generation",
        "text",
        "switch",
        "What an LLM request does while ComfyUI has the GPU: take it when the pictures are done, wait, or be refused.",
        choices=("switch", "wait", "refuse"),
    ),
    Setting(
        "gpu.min_stay_s",
        "number",
        30,
        "Shortest time that the GPU stays with one side while the other waits, so that the two do not thrash.",
        minimum=0,
    ),
    Setting(
        "gpu.restore",
        "text",
        "idle",
        "When the GPU goes back to the LLMs with nobody asking: after idling, as soon as the pictures are done, or never.",
        choices=("idle", "when_done", "never"),
    ),
    Setting(
        "gpu.idle_restore_minutes",
        "number",
        60,
        "With `restore: idle`: minutes without a picture; 0 is never.",
        minimum=0,
    ),
    Setting(
        "gpu.drain_timeout_s",
        "number",
        120,
        "How long a switch waits for requests that run.",
        minimum=0,
    ),
    Setting(
        "gpu.on_drain_timeout",
        "text",
        "fail",
        "When they are not done by then: give the switch up, or cut them off.",
        choices=("fail", "kill"),
    ),
    Setting(
        "gpu.release_timeout_s",
        "number",
        60,
        "How long models may stay in memory after they were told to leave, before the switch is given up.",
        minimum=1,
    ),
    Setting(
        "gpu.verify_timeout_s",
        "number",
        20,
        "How long the GPU's memory may take to come free after the models are gone.",
        minimum=0,
    ),
    Setting(
        "gpu.min_free_gb",
        "number",
        0,
        "GPU memory that must be free before ComfyUI gets it, in 10^9 bytes; 0: the model's need, or all that comes free.",
        minimum=0,
    ),
    Setting(
        "llm.stacks",
        "entries",
        (),
        "The LLM servers that share the GPU, see `docs/llm_stacks.md`; empty: ComfyUI has the GPU to itself.",
    ),
    Setting("images.enabled", "switch", True, "Answer image requests at all."),
    Setting(
        "images.default_model", "text", "", "Model for requests that name none; empty: the catalogue's own."
    ),
    Setting(
        "images.default_size",
        "text",
        "",
        "Size for requests that give none, where the model allows it; empty: the model's own.",
    ),
    Setting("images.visible", "list", (), "Ids of the models to show; empty: all."),
    Setting("images.preload", "list", (), "Ids of models to load into ComfyUI when the server starts."),
    Setting(
        "images.fetch_urls",
        "switch",
        False,
        "Fetch images that an edit names by an http(s) URL; never from private networks.",
    ),
    Setting(
        "images.metadata",
        "text",
        "none",
        "What pictures carry inside: nothing, the parameters as text, or ComfyUI's whole graph.",
        choices=("none", "parameters", "workflow"),
    ),
    Setting("image_store.max_count", "integer", 1000, "Images kept for `url` answers.", minimum=1),
    Setting("image_store.max_mb", "integer", 1024, "Space for kept images, in 10^6 bytes.", minimum=1),
)

BY_NAME: Mapping[str, Setting] = {setting.name: setting for setting in TABLE}


@dataclass(frozen=True)
class Settings:
    """The settings of this installation. `settings["engine.url"]` gives a value of the kind that the table says."""

    values: Mapping[str, Any]
    base: Path
    """Folder that relative paths start from: that of the configuration file."""
    file_name: str = ""
    text: str = ""
    """Name and content of the configuration file, if there is one"""

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def place(self, path: str) -> str:
        """Where the owner wrote the value at `path`, such as `llm.stacks.0.url`: file and line, or nothing known."""
        steps: list[str | int] = [int(step) if step.isdecimal() else step for step in path.split(".")]
        return f"{self.file_name}:{line_of(self.text, steps)}: " if self.text else ""

    def path(self, name: str) -> Path:
        """A setting of kind path, absolute."""
        return (self.base / cast(str, self.values[name])).absolute()


def load_settings(environment: Mapping[str, str] = os.environ, root: Path | None = None) -> Settings:
    """Read `easel.yaml` (or the file that EASEL_CONFIG names) and the EASEL_* variables.

    `root` is where easel.yaml is looked for and where paths start without one: this project's folder.
    Raises SettingsInvalid with every unknown name and every wrong value.
    """
    root = root or Path(__file__).resolve().parent
    named = environment.get("EASEL_CONFIG", "")
    file = Path(named).absolute() if named else root / "easel.yaml"
    given: dict[str, Any] = {}
    errors: list[str] = []
    if named or file.exists():
        given |= _from_file(file, errors)
    given |= _from_environment(environment, errors)
    values = {setting.name: given.get(setting.name, setting.default) for setting in TABLE}
    if values["max_waiting"] >= values["threads"]:
        errors.append(
            "max_waiting must be smaller than threads, or requests that wait leave none for the others"
        )
    if errors:
        raise SettingsInvalid("\n".join(errors), errors=errors)
    if not file.exists():
        return Settings(values, base=root)
    return Settings(values, base=file.parent, file_name=file.name, text=file.read_text("utf-8"))


def _from_file(file: Path, errors: list[str]) -> dict[str, Any]:
    try:
        text = file.read_text("utf-8")
        document = read_yaml(text) or {}
    except OSError as error:
        raise SettingsInvalid(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsInvalid(f"{file} is not UTF-8 at byte {error.start}") from error
    except ValueError as error:
        raise SettingsInvalid(f"{file.name}:{error}") from error
    given: dict[str, Any] = {}
    for name, value in _flat(document):
        place = f"{file.name}:{line_of(text, name.split('.'))}: {name}"
        setting = BY_NAME.get(name)
        if setting is None:
            errors.append(f"{place}: there is no such setting; there is {_nearby(name)}")
        elif value is not None:
            _take(given, setting, value, place, errors)
    return given


def _flat(document: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if not isinstance(document, dict):
        yield prefix.rstrip(".") or "the document", document
        return
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and any(known.startswith(name + ".") for known in BY_NAME):
            yield from _flat(value, name + ".")
        else:
            yield name, value


def _nearby(name: str) -> str:
    group = name.rpartition(".")[0]
    return ", ".join(known for known in BY_NAME if known.rpartition(".")[0] == group) or ", ".join(BY_NAME)


def _from_environment(environment: Mapping[str, str], errors: list[str]) -> dict[str, Any]:
    variables = {setting.variable: setting for setting in TABLE}
    # EASEL_CONFIG says where the file is; EASEL_TEST_* speak to the tests.
    for name in sorted(environment):
        known = name in variables or name == "EASEL_CONFIG" or name.startswith("EASEL_TEST_")
        if name.startswith("EASEL_") and not known:
            errors.append(f"{name}: there is no such setting; there is {', '.join(variables)}")
    given: dict[str, Any] = {}
    for name, setting in variables.items():
        if environment.get(name, "") != "":
            _take(given, setting, _from_text(environment[name], setting.kind), name, errors)
    return given


def _from_text(text: str, kind: Kind) -> Any:
    if kind == "list":
        return [part.strip() for part in text.split(",") if part.strip()]
    if kind in ("entries", "entry"):
        try:
            return read_yaml(text)
        except ValueError:
            return text
    if kind == "switch":
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(
            text.strip().lower(), text
        )
    try:
        return {"integer": int, "number": float}.get(kind, str)(text)
    except ValueError:
        return text


def _take(given: dict[str, Any], setting: Setting, value: Any, place: str, errors: list[str]) -> None:
    error = _error(setting, value)
    if error:
        may_be_secret = setting.secret or (setting.kind == "url" and "@" in str(value))
        shown = "the given value" if may_be_secret else repr(value)
        errors.append(f"{place}: {shown} is not allowed; {error}")
    elif setting.kind in ("list", "entries"):
        given[setting.name] = tuple(value)
    else:
        given[setting.name] = value


_TEXTS = "it must be a list of texts"
_TYPES: Mapping[Kind, Mapping[str, Any]] = {
    "text": {"type": "string"},
    "url": {
        "type": "string",
        "pattern": r"^(https?://[^\s/?#@]+(/[^\s?#]*)?)?$",
        "description": "it must be an address such as http://127.0.0.1:8188, without user and password",
    },
    "path": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "switch": {"type": "boolean"},
    "list": {"type": "array", "items": {"type": "string", "description": _TEXTS}, "description": _TEXTS},
    "entries": {"type": "array", "items": {"type": "object"}},
    "entry": {"type": "object"},
}


def _schema_of(setting: Setting) -> Mapping[str, Any]:
    if setting.schema:
        return load_schema(setting.schema)
    limits = {"enum": list(setting.choices), "minimum": setting.minimum, "maximum": setting.maximum}
    return {
        **_TYPES[setting.kind],
        **{name: limit for name, limit in limits.items() if limit not in (None, [])},
    }


def _error(setting: Setting, value: Any) -> str | None:
    """Why `value` is not allowed, without repeating it; None if it is."""
    error = first_error(Draft202012Validator(_schema_of(setting)), value)
    if error is not None:
        return rule_of(error, show_value=False)
    if isinstance(value, float) and not math.isfinite(value):
        return "it must be a finite number"
    return None
