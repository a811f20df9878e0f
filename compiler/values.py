"""The values that cross the compiler's border: what was asked (request), what it means (plan), what runs (graph)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from compiler.size import Size

MAX_SEED = 2**64 - 1
"""The largest seed that ComfyUI's samplers take."""

Origin = Literal["request", "drawn", "image", "preset", "setting", "model", "workflow", "built-in"]

Task = Literal["generate", "edit", "inpaint", "vary"]
"""Draw from nothing; redraw an image by a prompt; redraw what a mask leaves open; redraw an image without a prompt."""
TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True)
class Source:
    """The image that is to be redrawn: its size, and what the engine will call it and its mask."""

    size: Size
    image: str
    mask: str | None = None


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA by its id in the catalogue; `strength` None: the catalogue's own."""

    name: str
    strength: float | None = None


@dataclass(frozen=True)
class ImageRequest:
    """What a client asked for, in canonical names, before any model has been looked at.

    `inputs` holds only what was given: steps, cfg, negative_prompt, sampler, schedule, and whatever else a
    workflow may declare. `presets` names sets of such values: quality, input_fidelity. `id` makes the file names of
    this request's jobs unique in the engine. `source` goes with every task but `generate`.
    """

    prompt: str
    seed: int
    id: str
    model: str = ""
    task: Task = "generate"
    n: int = 1
    size: Size | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    presets: Mapping[str, str] = field(default_factory=dict)
    loras: tuple[LoraChoice, ...] = ()
    source: Source | None = None
    seed_origin: Origin = "request"


@dataclass(frozen=True)
class PlannedValue:
    """A value that the graph will get, and who decided it."""

    value: Any
    origin: Origin


@dataclass(frozen=True)
class JobPlan:
    """One run of the graph: `batch` pictures of one seed."""

    seed: int
    batch: int


@dataclass(frozen=True)
class Note:
    """Something that was not done as asked: `field`, what was asked, what was done (None: nothing), and why."""

    field: str
    asked: Any
    done: Any
    why: str


@dataclass(frozen=True)
class Plan:
    """What a request means for its model: every default filled, every limit kept."""

    model: str
    workflow: str
    template: str
    task: Task
    size: Size
    canvas: Size
    """What the graph draws: `size` with each side rounded up to the model's multiple; cut down to `size` at the end."""
    prefix: str
    values: Mapping[str, PlannedValue]
    """Every name a template may use, but for seed and batch, which differ from job to job."""
    jobs: tuple[JobPlan, ...]
    adjusted: tuple[Note, ...] = ()
    ignored: tuple[Note, ...] = ()
    presets: Mapping[str, str] = field(default_factory=dict)
    """The presets that were applied."""


Nodes = Mapping[str, Mapping[str, Any]]
"""ComfyUI's API format: node id -> {"class_type": …, "inputs": {…}}. A link is [node id, output index]."""


@dataclass(frozen=True)
class Graph:
    """A checked graph in ComfyUI's API format, and the job it does."""

    nodes: Nodes
    job: JobPlan
    template: str

    @property
    def classes(self) -> frozenset[str]:
        """The node classes in it."""
        return frozenset(node["class_type"] for node in self.nodes.values())


@dataclass(frozen=True)
class Compiled:
    """A plan and one graph for each of its jobs, in order."""

    plan: Plan
    graphs: tuple[Graph, ...]
