"""The compiler's input and output: the request, its plan, and the graphs that run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from compiler.size import Size

MAX_SEED = 2**64 - 1
"""The largest seed that ComfyUI's samplers take."""

Origin = Literal["request", "random", "image", "lora", "preset", "setting", "model", "workflow", "built-in"]

Task = Literal["generate", "edit", "inpaint", "vary"]
"""Draw from a prompt only; redraw an image with a prompt; redraw the masked part of an image; redraw an image without a
prompt."""
TASKS: tuple[Task, ...] = get_args(Task)
TASK_SOURCES: Mapping[Task, str] = {
    "generate": "a prompt without an image",
    "edit": "an image and a prompt",
    "inpaint": "an image, a mask and a prompt",
    "vary": "an image without a prompt or a mask",
}
"""task -> what a request for it contains, for messages"""


MAX_IMAGES = 16
"""The most images that a request may have; the limit of OpenAI's image models"""


@dataclass(frozen=True)
class ImageCount:
    """How many images a workflow takes for a task that has any."""

    min: int = 1
    max: int = 1

    def __contains__(self, number: int) -> bool:
        return self.min <= number <= self.max

    def __str__(self) -> str:
        if self.min == self.max:
            return f"{self.min} image{'s' if self.min > 1 else ''}"
        return f"{self.min} to {self.max} images"


@dataclass(frozen=True)
class SourceImage:
    """The image to redraw: its size, and the file names in the engine of it, of its mask and of the images that are used
    with it, in the order of the request."""

    size: Size
    image: str
    mask: str | None = None
    more: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[str, ...]:
        """The file names of all images, the one to redraw first."""
        return (self.image, *self.more)


@dataclass(frozen=True)
class InputPicture:
    """The picture of an input: its size, and its file name in the engine, where it has the size of the canvas."""

    size: Size
    name: str


@dataclass(frozen=True)
class Shape:
    """A size that a request does not give in full: an aspect ratio (width divided by height), an area, or both. The
    model decides the rest. `param` and `asked` are the field that gave it and its value, for messages."""

    ratio: float | None
    pixels: int | None
    param: str
    asked: str


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA by its id in the catalogue. A `strength` of None means the catalogue's default."""

    name: str
    strength: float | None = None
    param: str = "lora"
    """The request field that has it, for messages"""


@dataclass(frozen=True)
class ImageRequest:
    """What a client requested, in the project's own field names and independent of any model.

    `inputs` holds only the values that the client sent: steps, cfg, negative_prompt, sampler, schedule, and any other
    input that a workflow may declare. `presets` names sets of such values: quality, input_fidelity. `id` makes the file
    names of this request's jobs unique in the engine. Every task but `generate` needs a `source`.
    """

    prompt: str
    seed: int
    id: str
    model: str = ""
    task: Task = "generate"
    n: int = 1
    size: Size | None = None
    shape: Shape | None = None
    """Used if there is no `size`."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    presets: Mapping[str, str] = field(default_factory=dict)
    loras: tuple[LoraChoice, ...] = ()
    source: SourceImage | None = None
    input_images: Mapping[str, InputPicture] = field(default_factory=dict)
    """The pictures of inputs that are images, such as a control image, by the name of the input"""
    seed_origin: Origin = "request"
    stages: Mapping[str, Any] = field(default_factory=dict)
    """What is done with the pictures: stage of the catalogue -> value, such as {"upscale": 2}"""


@dataclass(frozen=True)
class PlannedValue:
    """A value for the graph, and where it came from."""

    value: Any
    origin: Origin


@dataclass(frozen=True)
class JobPlan:
    """One run of the graph: `batch` pictures from one seed."""

    seed: int
    batch: int


@dataclass(frozen=True)
class Note:
    """A request field that was adjusted (`done` is the value used instead) or ignored (`done` is None), and why."""

    field: str
    asked: Any
    done: Any
    why: str


@dataclass(frozen=True)
class Plan:
    """What a request means for its model: every default is filled in and every limit is kept."""

    model: str
    workflow: str
    template: str
    task: Task
    size: Size
    canvas: Size
    """The size that the graph draws and then crops to `size`: each side is rounded up to the model's multiple."""
    prefix: str
    values: Mapping[str, PlannedValue]
    """Every variable of the templates except seed and batch, which differ from job to job."""
    jobs: tuple[JobPlan, ...]
    adjusted: tuple[Note, ...] = ()
    ignored: tuple[Note, ...] = ()
    presets: Mapping[str, str] = field(default_factory=dict)
    """The presets that were applied."""
    has_seed: bool = True
    """Whether the seed changes the picture. If not, no seed is reported."""
    stages: Mapping[str, Any] = field(default_factory=dict)
    """stage of the catalogue -> the value that was requested"""
    input_images: frozenset[str] = frozenset()
    """The inputs that are pictures of the request"""

    @property
    def final_size(self) -> Size:
        """That of the pictures that are sent."""
        factor = self.stages.get("upscale", 1)
        return Size(self.size.width * factor, self.size.height * factor)

    @property
    def is_transparent(self) -> bool:
        """Whether the pictures have no background."""
        return "background" in self.stages


Nodes = Mapping[str, Mapping[str, Any]]
"""ComfyUI's API format: node id -> {"class_type": …, "inputs": {…}}. A link is [node id, output index]."""


@dataclass(frozen=True)
class Graph:
    """A checked graph in ComfyUI's API format, and the job that it runs."""

    nodes: Nodes
    job: JobPlan
    template: str
    output: str
    """The id of the node whose pictures are the answer."""
    crops: bool = True
    """Whether the graph itself crops its canvas to the plan's size. If not, the finished picture must be cropped."""

    @property
    def classes(self) -> frozenset[str]:
        """The node classes that the graph uses."""
        return frozenset(node["class_type"] for node in self.nodes.values())


@dataclass(frozen=True)
class Compiled:
    """A plan and one graph for each of its jobs, in order."""

    plan: Plan
    graphs: tuple[Graph, ...]
