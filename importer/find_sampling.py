"""Finds the sampler that draws the answer's picture, and what decides how it samples: seed, steps, cfg, sampler, scheduler,
denoise. Types and links decide, never names of nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from importer.graph_view import GraphView, Place

_CFG_NAMES = ("cfg", "cfg_conds", "cfg_scale")
_GUIDANCE = "guidance"


@dataclass(frozen=True)
class Sampling:
    """What was found about sampling. Each place is that of the literal, behind nodes that only hold a value."""

    sampler: str
    """The node whose latent begins the picture: the first of several samplers in a row"""
    chain: tuple[str, ...]
    """All samplers in a row, from that to the last"""
    seed: Place | None = None
    steps: Place | None = None
    cfg: Place | None = None
    guidance: Place | None = None
    sampler_name: Place | None = None
    scheduler: Place | None = None
    denoise: Place | None = None
    is_split: bool = False
    """The samplers share their steps among each other, so the number of steps cannot be changed alone."""


def find_sampling(graph: GraphView, output: str) -> Sampling | None:
    """What samples the pictures of the node `output`; None if nothing does."""
    nearest = next((node for node in graph.upstream(output) if is_sampler(graph, node)), None)
    if nearest is None:
        return None
    chain = [nearest]
    while (before := _sampler_before(graph, chain[0])) is not None and before not in chain:
        chain.insert(0, before)
    first = chain[0]
    parts = list(_parts(graph, first))
    return Sampling(
        first,
        tuple(chain),
        seed=_seed(graph, parts),
        steps=_find(graph, parts, ("steps",)),
        cfg=_find(graph, parts, _CFG_NAMES),
        guidance=_guidance(graph, first),
        sampler_name=_find(graph, parts, ("sampler_name",)),
        scheduler=_find(graph, parts, ("scheduler",)),
        denoise=_find(graph, parts, ("denoise",)),
        is_split=any("end_at_step" in graph.inputs(node) for node in chain) and len(chain) > 1,
    )


def is_sampler(graph: GraphView, node: str) -> bool:
    """Whether the node turns a latent into another one with a model: it has conditioning and model, or a guider."""
    if "LATENT" not in graph.output_types(node) or not list(graph.named(node, "LATENT")):
        return False
    has_model = bool(list(graph.named(node, "MODEL")) and list(graph.named(node, "CONDITIONING")))
    return has_model or bool(list(graph.named(node, "GUIDER")))


def latent_input(graph: GraphView, node: str) -> Place | None:
    """The input of a node through which the latent comes that it works on."""
    names = list(graph.named(node, "LATENT"))
    preferred = [name for name in names if name in ("latent_image", "latent", "samples")]
    found = [*preferred, *names]
    return (node, found[0]) if found else None


def _sampler_before(graph: GraphView, sampler: str) -> str | None:
    """The sampler from which the latent of this one comes, if no picture was decoded between them."""
    place, seen = latent_input(graph, sampler), set()
    while place is not None and (producer := graph.producer(place)) is not None and producer[0] not in seen:
        seen.add(producer[0])
        if is_sampler(graph, producer[0]):
            return producer[0]
        place = latent_input(graph, producer[0])
    return None


def _parts(graph: GraphView, sampler: str) -> Iterator[str]:
    """The sampler and the nodes that hold its settings: those of its noise, guider, sigmas and sampling method."""
    pending, seen = [sampler], {sampler}
    for node in pending:
        yield node
        for kind in ("NOISE", "GUIDER", "SIGMAS", "SAMPLER"):
            for name in graph.named(node, kind):
                producer = graph.producer((node, name))
                if producer is not None and producer[0] not in seen:
                    seen.add(producer[0])
                    pending.append(producer[0])


def _find(graph: GraphView, parts: list[str], names: tuple[str, ...]) -> Place | None:
    for node in parts:
        for name in names:
            if name in graph.nodes[node]["inputs"]:
                return graph.traced((node, name))
    return None


def _seed(graph: GraphView, parts: list[str]) -> Place | None:
    for node in parts:
        for name, signature in graph.inputs(node).items():
            if signature.control and name in graph.nodes[node]["inputs"]:
                return graph.traced((node, name))
    return None


def _guidance(graph: GraphView, sampler: str) -> Place | None:
    """The guidance of distilled models, which is part of the conditioning."""
    for node in graph.upstream(sampler):
        if _GUIDANCE in graph.inputs(node) and "CONDITIONING" in graph.output_types(node):
            return graph.traced((node, _GUIDANCE))
    return None
