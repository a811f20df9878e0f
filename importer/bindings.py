"""What a request may set in a workflow: each field with the places in the graph that get its value.

Everything is found by types and links. Where the graph leaves a choice, the choice is named in `assumptions` with the option
that decides otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from compiler.answer import SAVING_CLASSES
from compiler.node_records import MODEL_SUFFIXES, NO_FILE_CHOICES
from compiler.signatures import InputSignature, Signatures
from compiler.values import MAX_SEED, Nodes
from errors import WorkflowNotImportable, shorten
from importer.find_sampling import Sampling, find_sampling
from importer.find_size import FoundSize, find_size, loads_picture
from importer.find_texts import FoundText, find_text
from importer.graph_view import GraphView, Place
from importer.node_order import sources_first

_NO_GUIDANCE = 1
"""At this cfg the negative prompt has no effect; models that were distilled have their guidance elsewhere."""
_PREVIEW_RANK = 2
_OTHER_KINDS = {"VIDEO": "a video", "AUDIO": "sound", "MESH": "a 3D model"}
_OUTSIDE = re.compile(r"^([A-Za-z]:|[/\\])|(^|[/\\])\.\.([/\\]|$)")
_CHANNEL, _MASK_CHANNEL = "channel", "red"
_NAMED_DECODERS = "vae"
"""Among the files of this folder, ComfyUI lists decoders such as taesd by a name without an ending."""
_PICTURE_CHOICES = frozenset({"image"})
"""These order the pictures instead of becoming a field."""
_NO_PICTURES = (
    "The workflow delivers no picture: no node such as SaveImage or PreviewImage was found. Add one in ComfyUI, or name the "
    "node with --output."
)


@dataclass(frozen=True)
class Field:
    """A request field. `places`: the inputs that get its value; `value`: what the workflow has there."""

    name: str
    places: tuple[Place, ...]
    value: Any

    @property
    def place(self) -> Place:
        return self.places[0]


@dataclass(frozen=True)
class Assumption:
    """A choice that the graph left open: a sentence, and the option that decides otherwise."""

    text: str
    option: str


@dataclass(frozen=True)
class Bindings:
    output: str
    fields: Mapping[str, Field]
    """by name: prompt, negative_prompt, width, height, seed, batch, steps, cfg, sampler, schedule, strength, prefix, and
    what was exposed"""
    files: Mapping[Place, str]
    """Inputs that name files of weights, and the folder of each"""
    images: tuple[Place, ...]
    """Inputs that name pictures, in the order in which a request sends them"""
    mask_file: Place | None = None
    """The input that names a picture of which only a mask is used"""
    mask_from: str | None = None
    """The node that loads the picture whose mask the workflow uses"""
    size: FoundSize = field(default_factory=FoundSize)
    sampling: Sampling | None = None
    assumptions: tuple[Assumption, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        if not self.images:
            return ("generate",)
        if "prompt" not in self.fields:
            return ("vary",)
        has_mask = self.mask_from is not None or self.mask_file is not None
        return ("inpaint",) if has_mask else ("edit",)

    @property
    def changed(self) -> Mapping[Place, Any]:
        """Literals that the template has with another value: a request's mask says in its red channel where to draw."""
        if self.mask_file is None:
            return {}
        return {(self.mask_file[0], _CHANNEL): _MASK_CHANNEL}

    def places_of_values(self, graph: GraphView) -> tuple[tuple[Place, ...], ...]:
        """For each value of a request except its pictures, the inputs that get it."""
        mask = tuple(
            (node, name)
            for node, entry in graph.nodes.items()
            for name in entry["inputs"]
            if (node, name) == self.mask_file or graph.link((node, name)) == (self.mask_from, 1)
        )
        return *(field.places for field in self.fields.values()), mask


@dataclass(frozen=True)
class Choices:
    """What the user decides: places by field name, the output node, and inputs to expose under a name."""

    places: Mapping[str, Place] = field(default_factory=dict)
    output: str | None = None
    exposed: Mapping[str, Place] = field(default_factory=dict)


def find_bindings(nodes: Nodes, signatures: Signatures, choices: Choices) -> Bindings:
    """Find what a request may set. Raises WorkflowNotImportable."""
    return _Search(GraphView(nodes, signatures), choices).run()


class _Search:
    def __init__(self, graph: GraphView, choices: Choices) -> None:
        if ("width" in choices.places) != ("height" in choices.places):
            raise WorkflowNotImportable(
                "Name both inputs of the size: --width NODE.INPUT and --height NODE.INPUT."
            )
        self._graph, self._choices = graph, choices
        self._assumptions: list[Assumption] = []
        self._notes: list[str] = []
        self._fields: dict[str, Field] = {}
        for name, place in (*choices.places.items(), *choices.exposed.items()):
            self._check_place(name, place)

    def run(self) -> Bindings:
        graph = self._graph
        output = self._output()
        self._part = graph.upstream(output, active_only=False)
        self._active = graph.upstream(output)
        images, mask_file = self._without_mask(self._images(output))
        sampling = find_sampling(graph, output)
        size = find_size(graph, sampling.sampler) if sampling is not None else FoundSize()
        if sampling is not None:
            self._add_texts(sampling)
            self._add_sampling(sampling, has_image=bool(images))
            self._add_size(size)
        for name, place in self._choices.places.items():
            if name not in _PICTURE_CHOICES:
                self._set(name, place)
        for name, place in self._choices.exposed.items():
            self._check_is_free(name, place)
            self._set(name, place)
        self._add("prefix", (output, "filename_prefix"))
        self._check_prompt(bool(images))
        return Bindings(
            output=output,
            fields=self._fields,
            files=dict(self._files()),
            images=images,
            mask_file=mask_file,
            mask_from=self._mask(images) if mask_file is None else None,
            size=size,
            sampling=sampling,
            assumptions=tuple(self._assumptions),
            notes=tuple(self._notes),
        )

    # --- places that the user names ---

    def _check_place(self, name: str, place: Place) -> None:
        node, key = place
        if node not in self._graph.nodes:
            raise WorkflowNotImportable(f"{node}.{key} for {name}: the workflow has no node {node}.")
        present = self._graph.nodes[node]["inputs"]
        if key not in present:
            raise WorkflowNotImportable(
                f"{node}.{key} for {name}: the node has no input {key}, only {', '.join(present) or 'none'}."
            )
        if self._graph.traced(place) is None and name not in ("width", "height"):
            raise WorkflowNotImportable(
                f"{node}.{key} for {name}: the workflow computes this value; name the input where it begins."
            )

    def _check_is_free(self, name: str, place: Place) -> None:
        if name in self._fields:
            raise WorkflowNotImportable(
                f"{name} is a field of the workflow already ({_name(self._fields[name].place)}); choose another name."
            )
        traced = self._graph.traced(place)
        for bound in self._fields.values():
            if traced in bound.places:
                raise WorkflowNotImportable(f"{_name(place)} is already the field {bound.name}.")

    def _set(self, name: str, place: Place) -> None:
        traced = self._graph.traced(place) or place
        self._fields[name] = Field(name, (traced,), self._graph.value(traced))

    def _add(self, name: str, *places: Place | None) -> None:
        """Bind literals that exist and that the answer depends on."""
        found = tuple(
            place
            for place in places
            if place is not None and place[0] in self._part and self._graph.is_literal(place)
        )
        if found and name not in self._fields:
            self._fields[name] = Field(name, found, self._graph.value(found[0]))

    # --- the output ---

    def _output(self) -> str:
        graph = self._graph
        if (named := self._choices.output) is not None:
            if named not in graph.nodes:
                raise WorkflowNotImportable(f"The workflow has no node {named} (--output).")
            return named
        ranked = sorted(self._picture_outputs(), key=lambda each: each[0])
        kind = self._other_kind()
        if not ranked or (kind is not None and ranked[0][0] >= _PREVIEW_RANK):
            raise WorkflowNotImportable(kind or _NO_PICTURES)
        candidates = [node for rank, node in ranked if rank == ranked[0][0]]
        chosen = max(candidates, key=lambda node: len(graph.upstream(node)))
        if len(candidates) > 1:
            named_nodes = ", ".join(f"{node} ({graph.node_class(node)})" for node in candidates)
            self._assumptions.append(
                Assumption(
                    f"The answer is what node {chosen} gives; the workflow has {len(candidates)} such nodes: {named_nodes}.",
                    "--output NODE",
                )
            )
        return chosen

    def _picture_outputs(self) -> Iterator[tuple[int, str]]:
        """The nodes that could deliver the answer, with a rank: those that save pictures first, previews last."""
        for node in self._graph.nodes:
            signature = self._graph.signature(node)
            if self._graph.node_class(node) in SAVING_CLASSES:
                yield 0, node
            elif signature.output_node and list(self._graph.named(node, "IMAGE")):
                has_prefix = "filename_prefix" in signature.inputs
                yield 1 if has_prefix else _PREVIEW_RANK + (len(signature.inputs) > 1), node

    def _other_kind(self) -> str | None:
        """Why a workflow that saves something else than pictures cannot be served."""
        for node in self._graph.nodes:
            for kind, what in _OTHER_KINDS.items():
                if self._graph.signature(node).output_node and list(self._graph.named(node, kind)):
                    node_class = self._graph.node_class(node)
                    return (
                        f"The workflow makes {what} (node {node}, {node_class}); Easel serves pictures only."
                    )
        return None

    # --- texts ---

    def _add_texts(self, sampling: Sampling) -> None:
        prompt = find_text(self._graph, sampling.sampler)
        negative = find_text(self._graph, sampling.sampler, negative=True)
        if prompt is not None and "prompt" not in self._choices.places:
            self._bind_text("prompt", prompt)
        prompt_places = self._fields["prompt"].places if "prompt" in self._fields else ()
        if negative is not None and "negative_prompt" not in self._choices.places:
            own = tuple(place for place in negative.places if place not in prompt_places)
            if own:
                self._bind_text("negative_prompt", FoundText(own, negative.others, negative.rewritten))

    def _bind_text(self, name: str, found: FoundText) -> None:
        graph = self._graph
        self._add(name, *found.places)
        if not found.is_sure:
            others = ", ".join(_name(place) for place in found.others)
            self._assumptions.append(
                Assumption(
                    f"The {name.replace('_', ' ')} is {_name(found.place)} ({_quoted(graph.value(found.place))}); the text "
                    f"is joined with {others}, which stay as they are.",
                    f"--{name.replace('_', '-')} NODE.INPUT",
                )
            )
        if found.rewritten:
            self._notes.append(f"A language model in the workflow rewrites the {name.replace('_', ' ')}.")
        texts = {str(graph.value(place)) for place in found.places}
        if len(texts) > 1:
            names = ", ".join(_name(place) for place in found.places)
            self._notes.append(
                f"{names} have different texts in the workflow; all of them get the {name.replace('_', ' ')} of a request."
            )

    def _check_prompt(self, has_image: bool) -> None:
        if "prompt" in self._fields or has_image:
            return
        raise WorkflowNotImportable(
            "No text was found that decides what is drawn, and the workflow takes no picture either. Name the input of the "
            "prompt with --prompt NODE.INPUT."
        )

    # --- sampling ---

    def _add_sampling(self, sampling: Sampling, *, has_image: bool) -> None:
        graph = self._graph
        self._add("seed", sampling.seed)
        self._note_odd_seed()
        if sampling.is_split:
            self._notes.append(
                "Two samplers share the steps, so their number stays as it is; --expose makes it a field."
            )
        else:
            self._add("steps", sampling.steps)
        cfg = None if sampling.cfg is None else graph.value(sampling.cfg)
        if sampling.guidance is not None and cfg in (None, _NO_GUIDANCE):
            self._add("cfg", sampling.guidance)
        else:
            self._add("cfg", sampling.cfg)
        self._add("sampler", self._with_choices(sampling.sampler_name))
        self._add("schedule", self._with_choices(sampling.scheduler))
        denoise = None if sampling.denoise is None else graph.value(sampling.denoise)
        if has_image and isinstance(denoise, int | float) and 0 < denoise < 1:
            self._add("strength", sampling.denoise)

    def _note_odd_seed(self) -> None:
        """Say what happens to a seed that no request could have."""
        found = self._fields.get("seed")
        if found is None or (type(found.value) is int and 0 <= found.value <= MAX_SEED):
            return
        self._notes.append(
            f"{_name(found.place)} is {_quoted(found.value)}, which is no seed from 0 to {MAX_SEED}. It is not kept: each "
            "request brings a seed, or gets a random one."
        )

    def _with_choices(self, place: Place | None) -> Place | None:
        """`place` if its value is one of the choices of its node; otherwise it stays as exported."""
        if place is None:
            return None
        signature = self._graph.inputs(place[0]).get(place[1])
        choices = signature.choices if signature is not None else None
        return place if choices is not None and self._graph.value(place) in choices else None

    # --- size ---

    def _add_size(self, size: FoundSize) -> None:
        if size.value is None or {"width", "height"} & set(self._choices.places):
            return
        for name, places, value in zip(
            ("width", "height"), (size.width, size.height), size.value, strict=True
        ):
            self._fields[name] = Field(
                name, tuple(place for place in places if place[0] in self._part), value
            )
        if size.origin is not None:
            self._notes.append(
                f"The size is computed, by node {size.origin} ({self._graph.node_class(size.origin)}) among others; the "
                "size of a request takes its place."
            )
        assert size.node is not None
        self._add("batch", (size.node, "batch_size"))

    # --- files and pictures ---

    def _files(self) -> Iterator[tuple[Place, str]]:
        for node in self._graph.nodes:
            for name, signature in self._graph.inputs(node).items():
                value = self._graph.value((node, name))
                if signature.is_model_file and isinstance(value, str) and _OUTSIDE.search(value):
                    raise WorkflowNotImportable(
                        f"The input {name} of node {node} names the file {value!r}, which is not in a folder of ComfyUI's "
                        "models directory. Move the file there and choose it again in ComfyUI."
                    )
                if _names_weights(signature, value):
                    yield (node, name), signature.folder or ""

    def _images(self, output: str) -> tuple[Place, ...]:
        """The inputs that name a picture which the answer depends on, in the order in which the output's nodes
        use them."""
        graph = self._graph
        named = self._choices.places.get("image")
        found = [
            (node, name)
            for node in sources_first(graph.nodes, [output])
            if node in self._active and loads_picture(graph, node)
            for name, signature in graph.inputs(node).items()
            if signature.folder == "input" and graph.is_literal((node, name))
        ]
        if named is not None and named not in found:
            raise WorkflowNotImportable(
                f"{_name(named)} for image: this input names no picture that the answer depends on; those that do: "
                f"{', '.join(map(_name, found)) or 'none'}."
            )
        unused = [node for node in graph.nodes if node not in self._active and loads_picture(graph, node)]
        if unused:
            self._notes.append(
                f"Node {', '.join(unused)} loads a picture that has no effect as the switches of the workflow stand."
            )
        return tuple(sorted(found, key=lambda place: place != named)) if named is not None else tuple(found)

    def _without_mask(self, images: tuple[Place, ...]) -> tuple[tuple[Place, ...], Place | None]:
        """`images` without the one that is only loaded as a mask, as LoadImageMask does; and that one."""
        masks = [place for place in images if "IMAGE" not in self._graph.output_types(place[0])]
        pictures = tuple(place for place in images if place not in masks)
        if not masks or not pictures:
            return images, None
        if len(masks) > 1:
            raise WorkflowNotImportable(
                f"The workflow loads {len(masks)} masks ({', '.join(map(_name, masks))}), but a request has one. Make "
                "them from one mask in ComfyUI."
            )
        if self._graph.value((masks[0][0], _CHANNEL)) not in (None, _MASK_CHANNEL):
            self._notes.append(
                f"The mask of a request is white where to draw: the {_CHANNEL} of node {masks[0][0]} becomes "
                f"{_MASK_CHANNEL}."
            )
        return pictures, masks[0]

    def _mask(self, images: tuple[Place, ...]) -> str | None:
        """The node whose second output, the mask of the picture, is used."""
        graph = self._graph
        loading = {node for node, _ in images}
        for node in self._active:
            for name in graph.nodes[node]["inputs"]:
                link = graph.link((node, name))
                if link is not None and link[0] in loading and _is_mask(graph, link):
                    return link[0]
        return None


def _is_mask(graph: GraphView, output: tuple[str, int]) -> bool:
    types = graph.output_types(output[0])
    return output[1] < len(types) and types[output[1]] == "MASK" and "IMAGE" in types


def _names_weights(signature: InputSignature, value: Any) -> bool:
    """Whether the value is a file of weights, and not a choice beside the files, such as `pixel_space` of VAELoader. Some
    files have no ending, as `4x-UltraSharp`."""
    if not signature.is_model_file or not isinstance(value, str) or not value.strip():
        return False
    if value.lower().endswith(MODEL_SUFFIXES):
        return True
    is_choice = value in signature.also or value.lower().strip("[]") in NO_FILE_CHOICES
    return not is_choice and signature.folder not in (None, _NAMED_DECODERS)


def _name(place: Place) -> str:
    return f"{place[0]}.{place[1]}"


def _quoted(value: Any) -> str:
    return repr(shorten(str(value), 60))
