"""The catalogue as values: models, their workflows, LoRAs, and the names by which clients request them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol

from jsonschema import Draft202012Validator

from compiler.graph_shapes import GraphShapes
from compiler.named_entries import NamedEntries
from compiler.openai_names import model_key, names_no_model
from compiler.render import TemplateRenderer
from compiler.signatures import Signatures
from compiler.size import Size, SizeRule
from compiler.values import TASKS, ImageCount, Task
from compiler.versions import Marks, Needs, derived_needs, is_at_least, newest_first
from errors import MAX_NAMED, ModelNotCurated, list_names

LoraTags = Literal["apply", "refuse", "text"]
"""Apply the LoRA and remove the tag from the prompt; refuse the request; draw the tag as part of the prompt."""

CATALOGUE_FILE = "catalogue.yaml"
SHIPPED_PREFIX = f"{CATALOGUE_FILE}/"
"""Of the id of a workflow in catalogue.yaml, if the owner's folder has one with the same id"""
DEFAULT_LIMIT_N = 10
DEFAULT_LIMIT_BATCH = 1


@dataclass(frozen=True)
class File:
    """A file of weights: its name in the engine's `folder`, and its download URL."""

    name: str
    folder: str
    url: str | None = None
    size: int | None = None
    """bytes"""
    sha256: str | None = None
    gated: bool = False
    """Its publisher gives it only to accounts that accepted the terms."""


@dataclass(frozen=True)
class Licence:
    name: str
    commercial: bool | str
    """true, false, `conditional` or `unknown`"""
    url: str | None = None
    """None only if it is not known whether commercial use is allowed"""
    id: str | None = None
    note: str | None = None
    key: str | None = None
    """Its name under `licences:`; None if the entry has the licence itself"""


LicenceState = Literal["allowed", "accepted", "denied", "not_accepted"]
"""By the settings, or by somebody who accepted it"""


@dataclass(frozen=True)
class ValueMapping:
    """ComfyUI's name for a value that another server names differently, and whether the meaning is exactly the same."""

    name: str | None
    """None: the model's default"""
    exact: bool = True
    why: str = ""


@dataclass(frozen=True)
class ConditionalSchema:
    """Other limits, or another default, for an input if the task or other inputs have certain values."""

    conditions: Mapping[str, tuple[Any, ...]]
    schema: Mapping[str, Any]

    def applies_to(self, values: Mapping[str, Any]) -> bool:
        return all(values.get(name) in allowed for name, allowed in self.conditions.items())


@dataclass(frozen=True)
class Input:
    """A value that a request may set: its JSON Schema, the tasks that have it, and the values of other inputs at which
    it has no effect (`unused_when`)."""

    schema: Mapping[str, Any]
    unused_when: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = TASKS
    conditional_schemas: tuple[ConditionalSchema, ...] = ()
    choices_from: str = ""
    """The node input whose choices are allowed, such as KSampler.sampler_name."""
    more_choices: tuple[str, ...] = ()
    """Choices that no node has: the template must handle each of them."""
    is_image: bool = False
    """A picture: the value is its name in the engine, None if the request has none. It is fitted to the canvas."""
    takes_more: bool = False
    """A number above the maximum is reduced to the maximum and listed as adjusted, instead of being refused."""

    def effective_for(self, values: Mapping[str, Any]) -> Input:
        """The input with the limits and the default that apply for `values` (of the task and of other inputs)."""
        if not self.conditional_schemas:
            return self
        applicable = [other.schema for other in self.conditional_schemas if other.applies_to(values)]
        if not applicable:
            return self
        return replace(
            self, schema={**self.schema, **{k: v for schema in applicable for k, v in schema.items()}}
        )

    @cached_property
    def validator(self) -> Draft202012Validator:
        return Draft202012Validator(self.schema)


Presets = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""request field -> its value -> the values of inputs that it stands for"""


@dataclass(frozen=True)
class Workflow:
    id: str
    title: str
    template: str
    tasks: tuple[Task, ...]
    inputs: Mapping[str, Input]
    presets: Presets = field(default_factory=dict)
    output: str | None = None
    """The id of the node whose pictures are the answer; None: the only node that saves a picture."""
    size_from_image: bool = False
    """The graph makes the size of its pictures from the image, such as a fixed number of pixels in its shape. Width and
    height need not be used."""
    faults: tuple[str, ...] = ()
    """What it lacks, so that none of its models can be drawn: its template, or a node that is not known."""
    images: ImageCount = field(default_factory=ImageCount)
    """Of the tasks that have an image"""
    file: str = CATALOGUE_FILE
    """The file that declares it, as messages name it"""

    @property
    def entry(self) -> str:
        """Where it is declared, such as `workflows.mine in catalogue.yaml`."""
        return f"workflows.{self.id.removeprefix(SHIPPED_PREFIX)} in {self.file}"

    def inputs_for(self, task: Task) -> Mapping[str, Input]:
        """The inputs that `task` has, with the limits and defaults that apply to it."""
        return self._inputs_by_task[task]

    @cached_property
    def _inputs_by_task(self) -> dict[Task, dict[str, Input]]:
        return {
            task: {
                name: rule.effective_for({"task": task})
                for name, rule in self.inputs.items()
                if task in rule.tasks
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
    """These override the presets of the workflow."""
    needs: Needs | None = None
    """The ComfyUI that it says it needs, where the nodes do not tell"""
    takes_loras: bool = True
    """False for a model of the owner's whose template has no LoRAs, if only catalogue.yaml has some for its family: an
    update that adds one must not make the model undrawable."""

    @property
    def names(self) -> tuple[str, ...]:
        """Its id and its aliases."""
        return (self.id, *self.aliases)

    @property
    def checkpoint(self) -> str:
        """The file name of its checkpoint, or of its diffusion model if the weights are in several files; empty if it
        has no files, such as one that only scales images."""
        for role in ("checkpoint", "diffusion_model"):
            if role in self.files:
                return self.files[role].name
        return next((file.name for file in self.files.values()), "")


@dataclass(frozen=True)
class Lora:
    """A small file that changes what a model draws, for models of its `families`."""

    id: str
    title: str
    families: tuple[str, ...]
    file: File
    licence: Licence
    strength: float = 1.0
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What inputs are if a request with this LoRA does not set them, such as the number of steps it was distilled for"""

    @property
    def files(self) -> Mapping[str, File]:
        """by role"""
        return {"lora": self.file}


LicencePurpose = Literal["draw", "pull"]


class LicenceRules(Protocol):
    """What this installation says about licences. Answers may change while the catalogue stays."""

    @property
    def version(self) -> object: ...
    def state(self, holder: LicenceHolder) -> LicenceState: ...
    def blocks_drawing(self, holder: LicenceHolder) -> bool: ...
    def check(self, holder: LicenceHolder, purpose: LicencePurpose = "draw") -> None:
        """Raises LicenceNotAccepted if `holder` must not be drawn with, or its files must not be pulled."""


class _AllAllowed:
    version = None

    def state(self, holder: LicenceHolder) -> LicenceState:
        return "allowed"

    def blocks_drawing(self, holder: LicenceHolder) -> bool:
        return False

    def check(self, holder: LicenceHolder, purpose: LicencePurpose = "draw") -> None:
        return


@dataclass(frozen=True)
class Stage:
    """What a request can have done with its pictures before they are sent. See compiler/stages.py."""

    id: str
    """The request field that asks for it"""
    title: str
    template: str
    values: tuple[Any, ...]
    """What the request field may be"""
    files: Mapping[str, File]
    licence: Licence


LicenceHolder = Model | Lora | Stage
"""What has a licence of its own"""


@dataclass(frozen=True)
class TaskProof:
    """What the check of a model's template for one task found."""

    faults: tuple[str, ...] = ()
    """What is wrong, and what to write instead; empty if the model can draw the task."""
    has_seed: bool = True
    """Whether the seed changes the graph."""
    files: tuple[tuple[str, str], ...] = ()
    """folder and name of each file that the template names itself"""
    marks: Marks = ()
    """The versions of ComfyUI that have what the graph uses, where not all do"""
    unverified: tuple[str, ...] = ()
    """What the graph uses that only the documentation of ComfyUI describes, see compiler/documented_nodes.py"""
    kept_as: str = field(default="", compare=False, repr=False)
    """The hash under which a file of kept proofs had it; empty if it was made now"""


_UNCHECKED = TaskProof()


@dataclass(frozen=True)
class OwnFileNote:
    """What the check says about a file in the owner's folder."""

    file: str
    """such as catalogue.d/mine.yaml"""
    text: str
    line: int | None = None
    path: str = ""
    """of the entry in the file, such as models.mine.size; empty if the file as a whole is meant"""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (place, self.path, self.text) if part)


@dataclass(frozen=True)
class Catalogue:
    """All that the compiler needs besides the request. Immutable: when a file changes, a new catalogue is loaded."""

    models: Mapping[str, Model]
    workflows: Mapping[str, Workflow]
    default_model: str
    nodes: Mapping[str, Any]
    """The node records that `signatures` were parsed from, in the form of nodes.json"""
    signatures: Signatures
    sampling_names: Mapping[str, Mapping[str, ValueMapping]]
    """input -> another server's name for its value, in lower case -> the mapping"""
    renderer: TemplateRenderer
    loras: Mapping[str, Lora] = field(default_factory=dict)
    stages: Mapping[str, Stage] = field(default_factory=dict)
    named: NamedEntries = field(default_factory=NamedEntries)
    """The files and licences that entries of catalogue.yaml may name"""
    default_size: Size | None = None
    """This installation's default, for models that can draw it."""
    lora_tags: LoraTags = "apply"
    """What this installation does with <lora:NAME:STRENGTH> in a prompt."""
    hidden: frozenset[str] = frozenset()
    """Models that this installation hides."""
    licences: LicenceRules = field(default_factory=_AllAllowed, compare=False, repr=False)
    proofs: Mapping[str, Mapping[Task, TaskProof]] = field(default_factory=dict)
    """model id -> task -> proof; empty if the templates were not checked"""
    own_faults: tuple[OwnFileNote, ...] = ()
    """Files and entries in the owner's folder that are not used, and why"""
    own_overrides: tuple[OwnFileNote, ...] = ()
    """What those that are used replace in catalogue.yaml"""
    shapes: GraphShapes = field(default_factory=GraphShapes, compare=False, repr=False)
    """Of the graphs that were compiled"""

    @cached_property
    def visible_models(self) -> tuple[Model, ...]:
        return tuple(model for model in self.models.values() if model.id not in self.hidden)

    def prepare(self) -> None:
        """Make the tables of names and files, and compile the templates, which otherwise the first requests would do."""
        _ = self.visible_models, self._names, self._loras_by_family, self.files, self.undrawable
        self.renderer.prepare(workflow.template for workflow in self.workflows.values())

    def find(self, name: str | None) -> Model:
        """The model that a client requests by id or alias, in upper or lower case. No name, or the name of one of
        OpenAI's image models, means the default model. Raises ModelNotCurated."""
        model_id = self._names.get((name or "").strip().casefold()) or self._names.get(model_key(name))
        if model_id is None and names_no_model(name):
            model_id = self.default_model
        if model_id is None:
            known = [model.id for model in self.visible_models]
            raise ModelNotCurated(
                f"The model {name!r} is not in the catalogue, which has {list_names(known)}.",
                param="model",
                model=name,
                models=known[:MAX_NAMED],
            )
        return self.models[model_id]

    def find_with_files(self, name: str) -> LicenceHolder:
        """The model, LoRA or stage of this name, in upper or lower case; a model if there are several. Raises
        ModelNotCurated."""
        folded = name.strip().casefold()
        if folded not in self._names:
            others: list[Lora | Stage] = [*self.loras.values(), *self.stages.values()]
            for each in others:
                if each.id.casefold() == folded:
                    return each
        return self.find(name)

    def proof_of(self, model: Model, task: Task) -> TaskProof:
        """What the check found for this task of the model."""
        return self.proofs.get(model.id, {}).get(task, _UNCHECKED)

    def drawable_tasks(self, model: Model) -> tuple[Task, ...]:
        """The tasks that the model can draw; none if its licence does not allow it here."""
        if self.licences.blocks_drawing(model):
            return ()
        return tuple(task for task in model.workflows if not self.proof_of(model, task).faults)

    def needs(self, model: Model, task: Task) -> tuple[Needs, ...]:
        """The versions of ComfyUI that this task of the model needs, the newest first; empty if any will do."""
        marks = self.proof_of(model, task).marks
        if marks not in self._derived_needs:
            self._derived_needs[marks] = derived_needs(marks, self.nodes.get("complete", ()))
        derived = self._derived_needs[marks]
        return newest_first((model.needs, *derived)) if model.needs else derived

    def needed_version(self, model: Model) -> str | None:
        """The oldest ComfyUI that is known to draw all tasks of the model; None if none is known to be too old."""
        needs = newest_first({need for task in model.workflows for need in self.needs(model, task)})
        return needs[0].comfyui if needs else None

    def unverified(self, model: Model) -> tuple[str, ...]:
        """What the model uses that no recorded ComfyUI has, so that nobody could check it there: node classes, choices,
        and the version that it says it needs. Empty if its graphs were checked against a recorded version."""
        parts = {part for task in model.workflows for part in self.proof_of(model, task).unverified}
        versions = self.nodes.get("versions", ())
        if model.needs and not any(is_at_least(each, model.needs.comfyui) for each in versions):
            parts.add(f"ComfyUI {model.needs.comfyui}")
        return tuple(sorted(parts))

    @cached_property
    def _derived_needs(self) -> dict[Marks, tuple[Needs, ...]]:
        return {}

    @cached_property
    def undrawable(self) -> dict[str, dict[Task, tuple[str, ...]]]:
        """model id -> task -> the faults because of which this model cannot draw this task"""
        faults = {
            model.id: {
                task: proof.faults for task in model.workflows if (proof := self.proof_of(model, task)).faults
            }
            for model in self.models.values()
        }
        return {model: tasks for model, tasks in faults.items() if tasks}

    def image_counts(self, model: Model) -> dict[Task, ImageCount]:
        """How many images the model takes, for each of its tasks that has any."""
        return {
            task: self.workflows[workflow].images
            for task, workflow in model.workflows.items()
            if task != "generate"
        }

    def image_inputs(self, model: Model, task: Task | None = None) -> tuple[str, ...]:
        """The inputs of the model that are pictures; of all of its tasks, or of one."""
        tasks = model.workflows if task is None else [task] if task in model.workflows else []
        workflows = (self.workflows[model.workflows[each]] for each in tasks)
        names = (name for workflow in workflows for name, rule in workflow.inputs.items() if rule.is_image)
        return tuple(dict.fromkeys(names))

    def loras_for(self, model: Model) -> Mapping[str, Lora]:
        """The LoRAs that this model can use, by id."""
        return self._loras_by_family.get(model.family, {}) if model.takes_loras else {}

    @cached_property
    def _loras_by_family(self) -> dict[str, dict[str, Lora]]:
        families: dict[str, dict[str, Lora]] = {}
        for name, lora in self.loras.items():
            for family in lora.families:
                families.setdefault(family, {})[name] = lora
        return families

    @cached_property
    def _names(self) -> dict[str, str]:
        return {name.casefold(): model.id for model in self.visible_models for name in model.names}

    @cached_property
    def files(self) -> dict[str, list[str]]:
        """folder -> names of the files of weights that models, LoRAs and templates use"""
        folders: dict[str, set[str]] = {}
        model_files = [file for model in self.models.values() for file in model.files.values()]
        stage_files = [file for stage in self.stages.values() for file in stage.files.values()]
        for file in (*model_files, *stage_files, *(lora.file for lora in self.loras.values())):
            folders.setdefault(file.folder, set()).add(file.name)
        for proofs in self.proofs.values():
            for folder, name in (file for proof in proofs.values() for file in proof.files):
                folders.setdefault(folder, set()).add(name)
        return {folder: sorted(names) for folder, names in sorted(folders.items())}
