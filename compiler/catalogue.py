"""The catalogue as values: models, the workflows that draw them, and the names by which clients find them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from jsonschema import Draft202012Validator

from compiler.render import TemplateRenderer
from compiler.signatures import Signatures
from compiler.size import Size, SizeRule
from compiler.values import TASKS, Task
from errors import ModelNotCurated

DEFAULT_LIMIT_N = 10
DEFAULT_LIMIT_BATCH = 1

# Clients that know no other names send these; an alias of the catalogue wins over them.
_NAMES_OF_THE_DEFAULT = ("dall-e-", "gpt-image-", "chatgpt-image-")
SLOT_NAME = "img"
"""The name by which hal0 addresses whatever draws pictures."""


@dataclass(frozen=True)
class File:
    """A file of weights: its name in the engine's `folder`, and where it can be had."""

    name: str
    folder: str
    url: str | None = None
    size: int | None = None
    """bytes"""
    sha256: str | None = None


@dataclass(frozen=True)
class Licence:
    name: str
    url: str
    commercial: bool | str
    id: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class ValueMapping:
    """Another server's name for a value: ComfyUI's name (None: the model's default), and whether it is the same."""

    name: str | None
    exact: bool = True
    why: str = ""


@dataclass(frozen=True)
class ConditionalSchema:
    """Other limits, or another default, for an input while the task or other inputs have certain values."""

    conditions: Mapping[str, tuple[Any, ...]]
    schema: Mapping[str, Any]

    def holds(self, facts: Mapping[str, Any]) -> bool:
        return all(facts.get(name) in values for name, values in self.conditions.items())


@dataclass(frozen=True)
class Input:
    """A value that a request may set: its JSON Schema, for which tasks there is such a value, and at which other
    values it has no effect."""

    schema: Mapping[str, Any]
    unused_when: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = TASKS
    specials: tuple[ConditionalSchema, ...] = ()
    takes_more: bool = False
    """A number above the maximum means the maximum, and is listed, instead of being refused."""

    def under(self, facts: Mapping[str, Any]) -> Input:
        """The input as it is while `facts` (the task and values of inputs) hold."""
        others = [special.schema for special in self.specials if special.holds(facts)]
        if not others:
            return self
        return replace(self, schema={**self.schema, **{k: v for other in others for k, v in other.items()}})

    @cached_property
    def validator(self) -> Draft202012Validator:
        return Draft202012Validator(self.schema)


Presets = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Field of a request -> its value -> what that means: values of inputs."""


@dataclass(frozen=True)
class Workflow:
    id: str
    title: str
    template: str
    tasks: tuple[Task, ...]
    inputs: Mapping[str, Input]
    presets: Presets = field(default_factory=dict)

    def inputs_for(self, task: Task) -> Mapping[str, Input]:
        """The inputs that `task` has, as they are for it."""
        return self._inputs_by_task[task]

    @cached_property
    def _inputs_by_task(self) -> dict[Task, dict[str, Input]]:
        return {
            task: {
                name: rule.under({"task": task}) for name, rule in self.inputs.items() if task in rule.tasks
            }
            for task in self.tasks
        }


@dataclass(frozen=True)
class Model:
    id: str
    title: str
    family: str
    workflows: Mapping[Task, str]
    """task -> workflow id"""
    files: Mapping[str, File]
    licence: Licence
    size: SizeRule
    defaults: Mapping[str, Any] = field(default_factory=dict)
    limit_n: int = DEFAULT_LIMIT_N
    limit_batch: int = DEFAULT_LIMIT_BATCH
    aliases: tuple[str, ...] = ()
    disk_gb: float | None = None
    min_vram_gb: float | None = None
    presets: Presets = field(default_factory=dict)
    """Where its numbers differ from the workflow's."""

    @property
    def checkpoint(self) -> str:
        """The file that is the model's own: its checkpoint, or the diffusion model of a split one."""
        for role in ("checkpoint", "diffusion_model"):
            if role in self.files:
                return self.files[role].name
        return next(iter(self.files.values())).name


@dataclass(frozen=True)
class Lora:
    """A small file that changes what a model draws, for models of its `families`."""

    id: str
    title: str
    families: tuple[str, ...]
    file: File
    licence: Licence
    strength: float = 1.0


@dataclass(frozen=True)
class Catalogue:
    """Everything the compiler needs to know. Immutable; a changed file makes a new one."""

    models: Mapping[str, Model]
    workflows: Mapping[str, Workflow]
    default_model: str
    signatures: Signatures
    sampling_names: Mapping[str, Mapping[str, ValueMapping]]
    """input -> other servers' name in lower case -> choice"""
    renderer: TemplateRenderer
    loras: Mapping[str, Lora] = field(default_factory=dict)
    default_size: Size | None = None
    """The installation's own default; used where the model allows it."""
    hidden: frozenset[str] = frozenset()
    """Models that this installation does not show."""

    @property
    def visible_models(self) -> tuple[Model, ...]:
        return tuple(model for model in self.models.values() if model.id not in self.hidden)

    def find(self, name: str | None) -> Model:
        """The model that a client means: an id or alias in any case, nothing for the default, or a name of
        OpenAI's models for the default too. Raises ModelNotCurated."""
        wanted = (name or "").strip().casefold()
        model_id = self._names.get(wanted)
        if model_id is None and (wanted in ("", SLOT_NAME) or wanted.startswith(_NAMES_OF_THE_DEFAULT)):
            model_id = self.default_model
        if model_id is None:
            known = [model.id for model in self.visible_models]
            raise ModelNotCurated(
                f"The model {name!r} is not in the catalogue; there is {', '.join(known)}.",
                param="model",
                model=name,
                models=known,
            )
        return self.models[model_id]

    def loras_for(self, model: Model) -> dict[str, Lora]:
        """The LoRAs that fit this model, by id."""
        return {name: lora for name, lora in self.loras.items() if model.family in lora.families}

    @cached_property
    def _names(self) -> dict[str, str]:
        return {
            name.casefold(): model.id for model in self.visible_models for name in (model.id, *model.aliases)
        }

    @cached_property
    def files(self) -> dict[str, list[str]]:
        """Every file of weights that models and LoRAs name, by folder."""
        folders: dict[str, set[str]] = {}
        of_models = [file for model in self.models.values() for file in model.files.values()]
        for file in (*of_models, *(lora.file for lora in self.loras.values())):
            folders.setdefault(file.folder, set()).add(file.name)
        return {folder: sorted(names) for folder, names in sorted(folders.items())}
