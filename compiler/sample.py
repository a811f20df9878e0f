"""Plain requests for a model, to find out whether an engine has the nodes and files that it needs."""

from __future__ import annotations

from compiler.catalogue import Catalogue, Model
from compiler.values import ImageRequest, InputPicture, SourceImage, Task


def sample_requests(model: Model, catalogue: Catalogue) -> list[ImageRequest]:
    """One request for each workflow of the model, for the first of its tasks that the model can draw, with as many images
    as it takes; empty if it can draw none."""
    tasks: dict[str, Task] = {}
    for task in catalogue.drawable_tasks(model):
        tasks.setdefault(model.workflows[task], task)
    return [
        _sample_request(model, task, catalogue, catalogue.workflows[workflow].images.max)
        for workflow, task in tasks.items()
    ]


def _sample_request(model: Model, task: Task, catalogue: Catalogue, images: int) -> ImageRequest:
    source = SourceImage(
        model.size.default,
        "easel/image.png [temp]",
        "easel/mask.png [temp]" if task == "inpaint" else None,
        tuple(f"easel/image-{number}.png [temp]" for number in range(2, images + 1)),
    )
    inputs = catalogue.image_inputs(model, task)
    return ImageRequest(
        prompt="a sample",
        seed=0,
        id="sample",
        model=model.id,
        task=task,
        source=None if task == "generate" else source,
        input_images={name: InputPicture(model.size.default, f"easel/{name}.png [temp]") for name in inputs},
        seed_origin="random",
    )
