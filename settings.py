"""All settings: name, type, default and description. Values come from `easel.yaml`; `EASEL_*` variables override it.
`docs/settings.md` is generated from this table, and a test keeps `easel.example.yaml` in sync with it."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from jsonschema import Draft202012Validator

import installation
from errors import SettingsInvalid
from schemas import allowed_values, first_error, line_of, load_schema, read_yaml
from schemas.engine_access import CredentialKind, credential_problems, has_valid_host
from schemas.explain import rule_of

Kind = Literal[
    "text", "url", "path", "integer", "number", "boolean", "list", "keys", "networks", "objects", "object"
]


@dataclass(frozen=True)
class Setting:
    """One setting. `name` is its path in easel.yaml with dots between levels; the variable name is derived from it."""

    name: str
    kind: Kind
    default: Any
    description: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    secret: bool = False
    environment_only: bool = False
    """Refused in easel.yaml, which is copied and shown more readily than the environment"""
    schema: str = ""
    """Name of the JSON Schema in `schemas/`, for values of kind `object`"""

    @property
    def variable(self) -> str:
        """Name of the environment variable"""
        return "EASEL_" + self.name.upper().replace(".", "_")


SETTINGS: tuple[Setting, ...] = (
    Setting("host", "text", "127.0.0.1", "Address to listen on; a non-loopback address requires keys."),
    Setting("port", "integer", 8080, "Port to listen on; 0 picks a free port.", minimum=0, maximum=65535),
    Setting("workers", "integer", 2, "Number of worker processes.", minimum=1),
    Setting(
        "threads",
        "integer",
        256,
        "Threads per worker; each waiting request and each LLM request that is answered uses one.",
        minimum=4,
    ),
    Setting(
        "max_waiting",
        "integer",
        96,
        "Image requests that may wait or run at the same time per worker; further ones get status 429.",
        minimum=1,
    ),
    Setting(
        "max_client_connections",
        "integer",
        0,
        "Connections that one client address may keep open to each worker, so up to `workers` times as many in all; 0: any "
        "number. `trusted_proxies` are exempt.",
        minimum=0,
    ),
    Setting(
        "state_dir",
        "path",
        "var",
        "Folder for data that survives a restart, such as stored images and the last valid catalogue. Of an installed "
        "Easel: the platform's folder for data, such as ~/.local/share/easel.",
    ),
    Setting(
        "catalogue",
        "path",
        "catalogue.yaml",
        "File with the models and workflows; by default the project's.",
    ),
    Setting(
        "templates",
        "path",
        "templates_wf",
        "Folder with the workflow templates; by default the project's.",
    ),
    Setting(
        "catalogue_dir",
        "path",
        "",
        "Folder with your own models, workflows and templates, read beside `catalogue` and `templates`; it need not exist. "
        "Empty: `catalogue.d` beside easel.yaml, or in `state_dir` if there is no easel.yaml.",
    ),
    Setting(
        "api_keys",
        "keys",
        (),
        "API keys with all rights. With these, or keys of `easel keys add` (see `docs/keys.md`), clients must send one; "
        "without any, none is needed.",
        secret=True,
    ),
    Setting("allow_open", "boolean", False, "Allow listening on a public address without API keys."),
    Setting(
        "allowed_hosts",
        "list",
        (),
        "Additional `Host` names to accept when listening on loopback, without port.",
    ),
    Setting(
        "allowed_origins",
        "list",
        (),
        "Origins of web pages that may call the API, such as `https://chat.example`; `*` for any.",
    ),
    Setting(
        "trusted_proxies",
        "networks",
        (),
        "Addresses or networks of reverse proxies whose `X-Forwarded-*` headers are trusted.",
    ),
    Setting(
        "public_url",
        "url",
        "",
        "Where clients reach this server, and base of image URLs; empty: the address that the client used.",
    ),
    Setting(
        "url_style",
        "text",
        "absolute",
        "Form of `url` in responses; most clients need `absolute`.",
        choices=("absolute", "relative", "data"),
    ),
    Setting(
        "default_response_format",
        "text",
        "auto",
        "Response format if the request has no `response_format`; auto chooses what the client's API dialect expects.",
        choices=("auto", "url", "b64_json"),
    ),
    Setting("max_request_mb", "number", 128, "Maximum size of a request body, in 10^6 bytes.", minimum=0.001),
    Setting(
        "request_timeout_s",
        "number",
        270,
        "Maximum time for a request once its body has arrived, whatever the engine and the LLM servers do; many clients "
        "time out at 300 s.",
        minimum=1,
    ),
    Setting("log_level", "text", "info", "Log level.", choices=("debug", "info", "warning", "error")),
    Setting(
        "log_format",
        "text",
        "text",
        "Form of the log: lines of text, or a JSON object in each line.",
        choices=("text", "json"),
    ),
    Setting("log_prompts", "boolean", False, "Write the prompt of each picture into the log."),
    Setting(
        "traces.url",
        "url",
        "",
        "Base URL of a collector that gets OpenTelemetry traces by OTLP over HTTP, such as http://127.0.0.1:4318; empty: as "
        "`OTEL_EXPORTER_OTLP_ENDPOINT` says, or no traces. Needs requirements-otel.txt.",
    ),
    Setting(
        "cluster.redis",
        "text",
        "",
        "Address of the Redis that joins several hosts, such as redis://HOST:6379/0, or rediss:// for TLS, see "
        "`docs/hosts.md`; empty: no other hosts. Needs requirements-cluster.txt.",
    ),
    Setting(
        "cluster.name",
        "text",
        "",
        "Name of this host's `easel worker`, unlike all others; empty: that of the machine.",
    ),
    Setting(
        "cluster.ca_file",
        "path",
        "",
        "File with the certificates by which Redis' own is checked; empty: those of the system.",
    ),
    Setting(
        "cluster.key",
        "text",
        "",
        "At least 32 characters, the same on all hosts, by which they know each other's messages.",
        secret=True,
        environment_only=True,
    ),
    Setting("cluster.user", "text", "", "User of Redis.", secret=True, environment_only=True),
    Setting("cluster.password", "text", "", "Password of Redis.", secret=True, environment_only=True),
    Setting(
        "engines",
        "objects",
        (),
        "Several ComfyUIs on this host, one for each GPU, see `docs/several_engines.md`; empty: one, as `engine.url` and "
        "`engine.start` say. The other settings of `engine` apply to all of them.",
    ),
    Setting(
        "engine.url",
        "url",
        "",
        "Address of ComfyUI; empty: 127.0.0.1:8188 or 8000 (ComfyUI Desktop) if ComfyUI runs there, else the sketch "
        "engine.",
    ),
    Setting(
        "engine.user",
        "text",
        "",
        "User for a ComfyUI behind basic auth, with `EASEL_ENGINE_PASSWORD`; sent only to `engine.url`, and to a URL that "
        "is given to a command, as are the tokens.",
        secret=True,
        environment_only=True,
    ),
    Setting(
        "engine.password",
        "text",
        "",
        "Password for a ComfyUI behind basic auth.",
        secret=True,
        environment_only=True,
    ),
    Setting(
        "engine.token",
        "text",
        "",
        "Token for a ComfyUI that wants `Authorization: Bearer TOKEN`.",
        secret=True,
        environment_only=True,
    ),
    Setting(
        "engine.query_token",
        "text",
        "",
        "Token for a ComfyUI that wants it in the query of each URL.",
        secret=True,
        environment_only=True,
    ),
    Setting(
        "engine.query_token_name",
        "text",
        "token",
        "Name of the query parameter for `EASEL_ENGINE_QUERY_TOKEN`.",
    ),
    Setting(
        "engine.models_dir",
        "path",
        "",
        "ComfyUI's folder `models`, if it is on this machine; `easel pull-model` puts files there.",
    ),
    Setting(
        "engine.extra_model_paths",
        "path",
        "",
        "ComfyUI's extra_model_paths.yaml; empty: the one beside the folder `models`, if there is one.",
    ),
    Setting(
        "engine.stall_timeout_s",
        "number",
        270,
        "Time without progress after which a running job counts as stalled; loading a model reports no progress either.",
        minimum=5,
    ),
    Setting(
        "engine.sketch",
        "boolean",
        True,
        "Start the built-in sketch engine if no ComfyUI is configured and none was ever found.",
    ),
    Setting(
        "engine.depth",
        "integer",
        2,
        "Jobs sent to ComfyUI at the same time when it shares the GPU with LLM stacks or is one of several; further jobs "
        "wait in Easel.",
        minimum=1,
        maximum=100,
    ),
    Setting(
        "engine.start",
        "object",
        {},
        "How to start ComfyUI if it is down: `{systemd: UNIT}`, `{docker: NAME}` or `{command: [ARG, …]}`; empty: never.",
        schema="engine_start",
    ),
    Setting(
        "engine.start_timeout_s",
        "number",
        180,
        "Maximum time from the start of ComfyUI to its first response.",
        minimum=1,
    ),
    Setting(
        "gpu.sharing",
        "text",
        "exclusive",
        "Whether LLMs are always unloaded for a picture (exclusive), or stay loaded while memory suffices (coexist).",
        choices=("exclusive", "coexist"),
    ),
    Setting(
        "gpu.reserve_gb",
        "number",
        1,
        "With `coexist`: GPU memory that must stay free in addition to the model's `min_vram_gb`, in 10^9 bytes.",
        minimum=0,
    ),
    Setting(
        "gpu.llm_during_generation",
        "text",
        "switch",
        "What an LLM request to a server that shares the GPU does in generation mode: switch back when the pictures are "
        "done, wait until somebody else switches, or be refused.",
        choices=("switch", "wait", "refuse"),
    ),
    Setting(
        "gpu.event_log_mb",
        "number",
        10,
        "Size of the log of all decisions about the GPU (`gpu/events.jsonl` in the state directory), in MB; the oldest "
        "lines are removed. `easel gpu replay` plays it against another policy. 0: none.",
        minimum=0,
        maximum=10_000,
    ),
    Setting(
        "gpu.min_stay_s",
        "number",
        30,
        "Minimum time in one mode while requests for both modes arrive, and after a failed switchover.",
        minimum=0,
    ),
    Setting(
        "gpu.restore",
        "text",
        "linger",
        "When the GPU returns to the LLMs without a request: soon after the last picture (linger), after idle time, or "
        "never. `when_done` is the old name of `linger` with `linger_s: 0`.",
        choices=("linger", "idle", "never", "when_done"),
    ),
    Setting(
        "gpu.linger_s",
        "number",
        5,
        "With `restore: linger`: time without a picture; one that comes sooner needs no switchover.",
        minimum=0,
    ),
    Setting(
        "gpu.idle_restore_minutes",
        "number",
        60,
        "With `restore: idle`, and after an explicit switch to generation: minutes without a picture; 0 means never.",
        minimum=0,
    ),
    Setting(
        "gpu.drain_timeout_s",
        "number",
        120,
        "How long a switchover waits for running requests.",
        minimum=0,
    ),
    Setting(
        "gpu.on_drain_timeout",
        "text",
        "fail",
        "If requests still run after that time: abort the switchover (fail), or abort the requests (kill).",
        choices=("fail", "kill"),
    ),
    Setting(
        "gpu.release_timeout_s",
        "number",
        60,
        "How long unloading models may take before the switchover fails.",
        minimum=1,
    ),
    Setting(
        "gpu.verify_timeout_s",
        "number",
        20,
        "How long freeing GPU memory may take after the models are unloaded.",
        minimum=0,
    ),
    Setting(
        "gpu.min_free_gb",
        "number",
        0,
        "GPU memory that ComfyUI needs free, in 10^9 bytes; 0: the model's requirement, or whatever becomes free.",
        minimum=0,
    ),
    Setting(
        "llm.stacks",
        "objects",
        (),
        "LLM servers that share a GPU, see `docs/llm_stacks.md`; empty: ComfyUI does not share the GPU. LLM requests are "
        "forwarded to them, too.",
    ),
    Setting(
        "llm.upstreams",
        "objects",
        (),
        "LLM servers and services that do not share the GPU, or have no driver in `llm.stacks`; LLM requests are forwarded "
        "to them, see `docs/llm_stacks.md`.",
    ),
    Setting(
        "llm.aliases",
        "object",
        {},
        "Names that stand for LLM models: `{primary: qwen3-8b}`. `primary` (chat), `embed`, `stt` and `tts` also stand for "
        "requests without a model.",
        schema="aliases",
    ),
    Setting(
        "llm.max_requests",
        "integer",
        128,
        "LLM requests that may wait or be answered at the same time per worker; further ones get status 429.",
        minimum=1,
    ),
    Setting("images.enabled", "boolean", True, "Accept image requests."),
    Setting(
        "images.default_model", "text", "", "Model for requests without one; empty: the catalogue's default."
    ),
    Setting(
        "images.default_size",
        "text",
        "",
        "Size for requests without one, if the model supports it; empty: the model's default.",
    ),
    Setting("images.visible", "list", (), "Ids of the models to offer; empty: all."),
    Setting(
        "images.list",
        "text",
        "drawable",
        "Which image models `GET /v1/models` lists: those that the connected engine can draw and the default model, or "
        "all. The others can be requested all the same.",
        choices=("drawable", "all"),
    ),
    Setting("images.preload", "list", (), "Ids of models to load into ComfyUI when the server starts."),
    Setting(
        "images.fetch_urls",
        "boolean",
        False,
        "Fetch images that an edit gives as http(s) URLs; never from private networks.",
    ),
    Setting(
        "images.lora_tags",
        "text",
        "apply",
        "What `<lora:NAME:0.8>` in a prompt does: apply the catalogue's LoRA, refuse the request, or be drawn as text.",
        choices=("apply", "refuse", "text"),
    ),
    Setting(
        "images.metadata",
        "text",
        "none",
        "Metadata in pictures: none, the parameters as text, or these and the complete ComfyUI graph.",
        choices=("none", "parameters", "workflow"),
    ),
    Setting(
        "images.keep_prompts",
        "boolean",
        True,
        "Store the prompts of kept pictures in the image index; false: neither prompts nor negative prompts of new ones.",
    ),
    Setting(
        "licences.allow",
        "list",
        ("commercial",),
        "Licences that nobody has to accept: names under `licences:` of the catalogue, SPDX ids, or the groups commercial, "
        "conditional, non-commercial and unknown.",
    ),
    Setting(
        "licences.deny",
        "list",
        (),
        "Licences, named in the same way, whose models are neither downloaded nor drawn; a name wins over a group, and deny "
        "over allow.",
    ),
    Setting(
        "licences.accept",
        "text",
        "ask",
        "What about all other licences: they must be accepted before a download (ask) or before any use (required), or "
        "their models are denied (never).",
        choices=("ask", "required", "never"),
    ),
    Setting(
        "image_store.keep",
        "text",
        "all",
        "Which pictures are kept: all, so that the gallery has those of every client, or only those that are answered as "
        "URLs.",
        choices=("all", "urls"),
    ),
    Setting("image_store.max_count", "integer", 1000, "Maximum number of stored images.", minimum=1),
    Setting(
        "image_store.max_mb",
        "integer",
        1024,
        "Maximum size of all stored images and of what the index has of long prompts, in 10^6 bytes.",
        minimum=1,
    ),
    Setting(
        "jobs.threads",
        "integer",
        2,
        "Threads per worker that draw requests sent with `Prefer: respond-async`; 0: the preference is not applied.",
        minimum=0,
        maximum=64,
    ),
    Setting(
        "jobs.max_count",
        "integer",
        20_000,
        "Jobs that may wait for their pictures, of all clients together; further ones get status 429.",
        minimum=1,
    ),
    Setting(
        "jobs.max_mb",
        "integer",
        2000,
        "Maximum size of what the waiting jobs were sent, such as images to edit, in 10^6 bytes.",
        minimum=1,
    ),
)

SETTINGS_BY_NAME: Mapping[str, Setting] = {setting.name: setting for setting in SETTINGS}


SHIPPED_FILES = frozenset({"catalogue", "templates"})
"""Settings whose default is a file of the project"""
OWN_FOLDER = "catalogue.d"
"""Default name of the folder `catalogue_dir`"""


@dataclass(frozen=True)
class Settings:
    """The settings of this installation. `settings["engine.url"]` returns a value of the kind given in SETTINGS."""

    values: Mapping[str, Any] = field(repr=False)
    """Not in `repr`, like `text`: some are secret"""
    base: Path
    """Folder that relative paths are relative to: the folder of the configuration file"""
    file_name: str = ""
    text: str = field(default="", repr=False)
    """Name and content of the configuration file; empty without one"""
    from_environment: frozenset[str] = frozenset()
    """Names of the settings whose values come from variables"""

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def location(self, path: str) -> str:
        """`FILE:LINE: ` of the value at `path`, such as `llm.stacks.0.url`, or `VARIABLE: `; empty if there is no file."""
        for name in self.from_environment:
            if f"{path}.".startswith(f"{name}."):
                return f"{SETTINGS_BY_NAME[name].variable}: "
        steps: list[str | int] = [int(step) if step.isdecimal() else step for step in path.split(".")]
        return f"{self.file_name}:{line_of(self.text, steps)}: " if self.text else ""

    def path(self, name: str) -> Path:
        """A setting of kind `path` as an absolute path. A relative one is in `base`; the defaults of SHIPPED_FILES are in
        the project's folder if `base` has no such file. The default of `catalogue_dir` is beside the configuration
        file, or in the state directory if there is none."""
        value = cast(str, self.values[name])
        if name == "catalogue_dir" and not value:
            return (self.base.absolute() if self.file_name else self.path("state_dir")) / OWN_FOLDER
        path = (self.base / value).absolute()
        if name in SHIPPED_FILES and value == SETTINGS_BY_NAME[name].default and not path.exists():
            return installation.PROJECT / value
        return path


def load_settings(environment: Mapping[str, str] = os.environ, root: Path | None = None) -> Settings:
    """Read `easel.yaml` (or the file named by EASEL_CONFIG) and the EASEL_* variables.

    `root` is the folder of easel.yaml, and of relative paths if there is no such file; the default is this project's
    folder, or that of the platform for an installed program. Raises SettingsInvalid with all unknown names and invalid
    values.
    """
    root = root or installation.config_folder()
    named = environment.get("EASEL_CONFIG", "")
    file = Path(named).absolute() if named else root / "easel.yaml"
    values = {setting.name: setting.default for setting in SETTINGS}
    if installation.IS_INSTALLED:
        values["state_dir"] = str(installation.state_folder())
    errors: list[str] = []
    if named or file.exists():
        values |= _from_file(file, errors)
    of_variables = _from_environment(environment, errors)
    values |= of_variables
    has_llms = values["llm.stacks"] or values["llm.upstreams"]
    if has_llms and values["max_waiting"] + values["llm.max_requests"] >= values["threads"]:
        errors.append(
            "max_waiting and llm.max_requests together must be smaller than threads, so that some threads stay free for "
            "other requests"
        )
    elif values["max_waiting"] >= values["threads"]:
        errors.append(
            "max_waiting must be smaller than threads, so that some threads stay free for other requests"
        )
    errors += _credential_errors(values)
    if file.exists():
        settings = Settings(
            values, file.parent, file.name, file.read_text("utf-8"), from_environment=frozenset(of_variables)
        )
    else:
        settings = Settings(values, base=root, from_environment=frozenset(of_variables))
    errors += _errors_beside_engines(settings)
    if errors:
        raise SettingsInvalid("\n".join(errors), errors=errors)
    return settings


_OF_ONE_ENGINE: Mapping[str, str] = {
    "engine.url": "remove it, or write it as `url` of an entry of `engines`",
    "engine.start": "remove it, or write it as `start` of an entry of `engines`",
    "engine.query_token_name": "remove it, or write it as `query_token_name` of an entry of `engines`",
    **{
        f"engine.{kind}": f"unset it, and name a variable that holds it in `{kind}_env` of an entry of `engines`; "
        "the variable's name must not begin with EASEL_"
        for kind in ("user", "password", "token", "query_token")
    },
}
"""Settings of a single ComfyUI -> what to do with them if there are several"""


def _errors_beside_engines(settings: Settings) -> Iterable[str]:
    """For each setting that would not be used beside `engines`."""
    if not settings["engines"]:
        return
    for name, remedy in _OF_ONE_ENGINE.items():
        if settings[name] != SETTINGS_BY_NAME[name].default:
            is_variable = name in settings.from_environment
            place = settings.location(name) if is_variable else f"{settings.location(name)}{name}: "
            yield f"{place}it is for a single ComfyUI, and not used beside `engines`; {remedy}"


def _credential_errors(values: Mapping[str, Any]) -> Iterable[str]:
    if values["engine.password"] and not values["engine.user"]:
        yield "EASEL_ENGINE_PASSWORD is set without EASEL_ENGINE_USER; set both"
    if values["engine.user"] and values["engine.token"]:
        yield "EASEL_ENGINE_USER and EASEL_ENGINE_TOKEN exclude each other: both are sent in the same header; unset one"
    if not values["engine.query_token_name"]:
        yield "engine.query_token_name must not be empty; remove it, or write the name that the proxy wants"
    kinds: tuple[CredentialKind, ...] = ("user", "password", "token", "query_token")
    for kind in kinds:
        name = f"engine.{kind}"
        for rule in credential_problems(kind, values[name], "EASEL_ENGINE_PASSWORD"):
            yield f"{SETTINGS_BY_NAME[name].variable}: the given value is not allowed; {rule}"


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
    values: dict[str, Any] = {}
    for name, value in _flatten(document):
        location = f"{file.name}:{line_of(text, name.split('.'))}: {name}"
        setting = SETTINGS_BY_NAME.get(name)
        if setting is None:
            errors.append(f"{location}: unknown setting; known settings are {_siblings(name)}")
        elif setting.environment_only:
            errors.append(
                f"{location}: not allowed in this file; remove the line and set {setting.variable} in the environment of "
                "Easel"
            )
        elif value is not None:
            _add_value(values, setting, value, location, errors)
    return values


def _flatten(document: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if not isinstance(document, dict):
        yield prefix.rstrip(".") or "the document", document
        return
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and any(known.startswith(name + ".") for known in SETTINGS_BY_NAME):
            yield from _flatten(value, name + ".")
        else:
            yield name, value


def _siblings(name: str) -> str:
    """The settings in the same section as `name`; all settings if there is no such section."""
    section = name.rpartition(".")[0]
    names = [known for known in SETTINGS_BY_NAME if known.rpartition(".")[0] == section]
    return ", ".join(names or SETTINGS_BY_NAME)


def _from_environment(environment: Mapping[str, str], errors: list[str]) -> dict[str, Any]:
    variables = {setting.variable: setting for setting in SETTINGS}
    # EASEL_CONFIG is the path of the file; EASEL_TEST_* are options of the tests.
    for name in sorted(environment):
        known = name in variables or name == "EASEL_CONFIG" or name.startswith("EASEL_TEST_")
        if name.startswith("EASEL_") and not known:
            errors.append(f"{name}: unknown setting; known settings are {', '.join(variables)}")
    values: dict[str, Any] = {}
    for name, setting in variables.items():
        if text := environment.get(name, ""):
            _add_value(values, setting, _parse(text, setting.kind), name, errors)
    return values


def _parse(text: str, kind: Kind) -> Any:
    """The value of an environment variable; `text` itself if it cannot be parsed."""
    if kind in _LIST_KINDS:
        return [part.strip() for part in text.split(",") if part.strip()]
    if kind in ("objects", "object"):
        try:
            return read_yaml(text)
        except ValueError:
            return text
    if kind == "boolean":
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(
            text.strip().lower(), text
        )
    try:
        return {"integer": int, "number": float}.get(kind, str)(text)
    except ValueError:
        return text


def _add_value(
    values: dict[str, Any], setting: Setting, value: Any, location: str, errors: list[str]
) -> None:
    error = _error(setting, value)
    if error:
        may_be_secret = setting.secret or (
            setting.kind == "url" and any(mark in str(value) for mark in "@?#")
        )
        shown = "the given value" if may_be_secret else repr(value)
        errors.append(f"{location}: {shown} is not allowed; {error}")
    elif setting.kind in (*_LIST_KINDS, "objects"):
        values[setting.name] = tuple(value)
    else:
        values[setting.name] = value


_LIST_KINDS: tuple[Kind, ...] = ("list", "keys", "networks")
_KEY = re.compile(r"[\x21-\x7e]+")
_OBJECTS_RULE = "it must be a list of objects"
_LIST_RULE = "it must be a list of strings"
_LIST_TYPE: Mapping[str, Any] = {
    "type": "array",
    "items": {"type": "string", "description": _LIST_RULE},
    "description": _LIST_RULE,
}
_TYPES: Mapping[Kind, Mapping[str, Any]] = {
    "text": {"type": "string"},
    "url": {
        "type": "string",
        "pattern": r"^(https?://[^\s/?#@]+(/[^\s?#]*)?)?\Z",
        "description": "it must be a URL such as http://127.0.0.1:8188, without user and password",
    },
    "path": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    **dict.fromkeys(_LIST_KINDS, _LIST_TYPE),
    "objects": {
        "type": "array",
        "items": {"type": "object", "description": _OBJECTS_RULE},
        "description": _OBJECTS_RULE,
    },
    "object": {"type": "object"},
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
    """Why `value` is not allowed, without repeating it; None if it is allowed."""
    error = first_error(Draft202012Validator(_schema_of(setting)), value)
    if error is not None and setting.name == "engine.url" and isinstance(value, str):
        if "@" in value:
            return (
                "write it without user and password, and set EASEL_ENGINE_USER and EASEL_ENGINE_PASSWORD in the "
                "environment of Easel"
            )
        if "?" in value:
            return "write it without a query, and set EASEL_ENGINE_QUERY_TOKEN in the environment of Easel for a token"
    if error is not None:
        return rule_of(error, show_value=False)
    if setting.kind == "url" and value and not has_valid_host(value):
        return "its host name or port is not valid; write it such as http://127.0.0.1:8188"
    if setting.kind == "keys" and not all(map(_KEY.fullmatch, value)):
        return "clients could not send it: a key has only visible ASCII characters, and no spaces"
    if setting.kind == "networks" and not all(map(_is_network, value)):
        return "each must be an IP address or network, such as 127.0.0.1 or 172.16.0.0/12"
    if isinstance(value, float) and setting.kind == "integer":
        return f"it must be {allowed_values(_schema_of(setting))}"  # JSON Schema takes 8080.0 for an integer
    if isinstance(value, float) and not math.isfinite(value):
        return "it must be a finite number"
    return None


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True
