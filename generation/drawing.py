"""A request being drawn: its jobs one after another, each while the GPU is ours, and the pictures of each finished."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from arbiter import Arbiter, Lease
from compiler import Catalogue, Compiled, Graph, Plan, Size
from engine import Engine, Outcome, Preview, Progress
from errors import EngineRejected, JobTimedOut, NoPictures
from generation.fitting import Fitting
from generation.values import MIME, Image, MetadataPolicy, OutputOptions, ProgressCallback, Timings
from image_store import ImageStore
from pictures import apply_policy, encode, png_size


@dataclass(frozen=True)
class Deps:
    """What every drawing of a process uses."""

    arbiter: Arbiter
    store: ImageStore
    fitting: Fitting
    metadata: MetadataPolicy
    clock: Callable[[], float]


class Drawing:
    """A request that is ready to be drawn: compiled, and fitted to its engine."""

    def __init__(
        self,
        means: Deps,
        compiled: Compiled,
        catalogue: Catalogue,
        engine: Engine,
        graphs: list[dict[str, Any]],
        uploads: Mapping[str, bytes],
        *,
        began: float,
        compiled_at: float,
        deadline: float,
    ) -> None:
        self.plan = compiled.plan
        self.checkpoint = catalogue.models[compiled.plan.model].checkpoint
        self._deps, self._engine, self._catalogue = means, engine, catalogue
        self._compiled, self._graphs, self._uploads = compiled, graphs, uploads
        self._uploaded: set[str] = set()
        self._began, self._compiled_at, self._deadline = began, compiled_at, deadline
        self._spent = dict.fromkeys(("gpu_wait_s", "queued_s", "run_s", "fetch_s", "finish_s"), 0.0)

    @property
    def is_sketch(self) -> bool:
        """Whether no model runs."""
        return self._engine.is_sketch

    def timings(self) -> Timings:
        """Of the jobs that have ended."""
        total_s = self._deps.clock() - self._began
        return Timings(total_s=total_s, compile_s=self._compiled_at - self._began, **self._spent)

    def images(
        self,
        finish: OutputOptions,
        *,
        watch: ProgressCallback = lambda event: None,
        cancelled: Callable[[], bool] = lambda: False,
        previews: bool = False,
    ) -> Iterator[Image]:
        """Run the jobs one after another; yields the images of each as it ends. To be iterated once.

        `previews`: the engine shall show what it is drawing, if it can. Raises what `Generator.generate` raises
        once the GPU is needed.
        """
        try:
            for index, graph in enumerate(self._compiled.graphs):
                outcome = self._job(index, watch, cancelled, previews)
                yield from self._finished(graph, outcome, finish)
        except EngineRejected:
            # A file that went since we last looked: fresh eyes name it in the model's own terms.
            self._deps.fitting.graphs_afresh(self._compiled, self._catalogue, self._engine)
            raise
        finally:
            self._engine.forget(self._uploaded)

    def _job(
        self, index: int, watch: ProgressCallback, cancelled: Callable[[], bool], previews: bool
    ) -> Outcome:
        """Run one job while the GPU is ours; the lease names it, so that it is taken back should we die."""
        prompt_id = str(uuid.uuid4())
        lease = self._deps.arbiter.lease(
            "generation",
            job=prompt_id,
            timeout_s=self._remaining_s(),
            need_bytes=self._need_bytes,
            cancelled=cancelled,
        )
        with lease as held:
            if not self._graphs:
                self._graphs = self._deps.fitting.graphs(self._compiled, self._catalogue, self._engine)
            self._upload()
            outcome = self._engine.run(
                self._graphs[index],
                prompt_id=prompt_id,
                timeout_s=self._remaining_s(),
                watch=_shown(held, watch),
                cancelled=lambda: cancelled() or held.is_void(),
                previews=previews,
            )
            held.ran(outcome.run_s)
        self._spend(gpu_wait_s=held.waited_s, queued_s=outcome.queued_s)
        self._spend(run_s=outcome.run_s, fetch_s=outcome.fetch_s)
        return outcome

    def _upload(self) -> None:
        """Before each job: an engine that was started again since the last has emptied its temp folder."""
        for name, data in self._uploads.items():
            self._uploaded.add(name)
            self._engine.upload(data, name)

    @property
    def _need_bytes(self) -> int:
        """GPU memory that the model needs, 0 where the catalogue does not say."""
        return int((self._catalogue.models[self.plan.model].min_vram_gb or 0) * 1e9)

    def _remaining_s(self) -> float:
        remaining = self._deadline - self._deps.clock()
        if remaining <= 0:
            raise JobTimedOut("The request's time was over before its last job began.")
        return remaining

    def _spend(self, **seconds: float) -> None:
        for name, value in seconds.items():
            self._spent[name] += value

    # --- the pictures ------------------------------------------------------------------------------

    def _finished(self, graph: Graph, outcome: Outcome, finish: OutputOptions) -> Iterator[Image]:
        if len(outcome.pictures) != graph.job.batch:
            raise NoPictures(
                f"The job made {len(outcome.pictures)} pictures where {graph.job.batch} were wanted.",
                prompt_id=outcome.prompt_id,
            )
        for index, picture in enumerate(outcome.pictures):
            began = self._deps.clock()
            image = self._image(picture.data, index, graph, outcome.prompt_id, finish)
            self._spend(finish_s=self._deps.clock() - began)
            yield image

    def _image(self, png: bytes, index: int, graph: Graph, prompt_id: str, finish: OutputOptions) -> Image:
        width, height = png_size(png)
        policy = self._deps.metadata
        text = parameters_text(self.plan, graph.job.seed) if policy != "none" else None
        if finish.format == "png":
            data = apply_policy(png, policy, parameters=text)
        else:
            data = encode(png, finish.format, finish.quality, text)
        kept = self._deps.store.keep(data, finish.format) if finish.keep else None
        return Image(
            data=data,
            mime=MIME[finish.format],
            size=Size(width, height),
            seed=graph.job.seed,
            index=index,
            batch=graph.job.batch,
            prompt_id=prompt_id,
            kept=kept,
        )


def _shown(lease: Lease, watch: ProgressCallback) -> ProgressCallback:
    """`watch`, and everybody who looks at the status page sees the progress too."""

    def show(event: Progress | Preview) -> None:
        if isinstance(event, Progress) and event.maximum > 1:
            lease.show(event.value, event.maximum)
        watch(event)

    return show


_WORDS: Mapping[str, str] = {
    "steps": "Steps",
    "sampler": "Sampler",
    "schedule": "Schedule type",
    "cfg": "CFG scale",
    "strength": "Denoising strength",
}


def parameters_text(plan: Plan, seed: int) -> str:
    """The plan in the text form that most picture tools read from a picture's `parameters`."""
    values = {name: planned.value for name, planned in plan.values.items()}
    lines = [str(values["prompt"])]
    if values.get("negative_prompt"):
        lines.append(f"Negative prompt: {values['negative_prompt']}")
    parts = [f"{word}: {values[name]}" for name, word in _WORDS.items() if name in values]
    lines.append(", ".join([*parts, f"Seed: {seed}", f"Size: {plan.size}", f"Model: {plan.model}"]))
    return "\n".join(lines)
