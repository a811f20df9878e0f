"""What the sketch engine cannot do reaches a client as a limit of the sketch engine, and never ends its worker."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from api.errors import status_of
from engine import Engine
from errors import EngineRejected, NodeFailed, SketchCannotRun
from sketch import SketchProcess
from sketch.nodes import MAKE, CannotSketch, run_node
from sketch.nodes.inputs import NodeInputs
from sketch.nodes.values import Images
from sketch.signatures import Input, Node
from tests.sketch.sketch_client import FILES, NODES, graph


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with SketchProcess(nodes=NODES, files=FILES) as sketch:
        engine = Engine(sketch.url)
        yield engine
        engine.close()


def draw(engine: Engine, prompt: dict[str, Any]) -> int:
    return len(engine.run(prompt, prompt_id=str(uuid.uuid4()), timeout_s=60).pictures)


def test_a_size_over_its_limit_is_its_own_limit_and_the_next_job_runs(engine: Engine) -> None:
    with pytest.raises(SketchCannotRun) as caught:
        draw(engine, graph(latent={"width": 16384, "height": 16384}))
    assert caught.value.message.startswith("Node sampler: Easel's sketch engine")
    assert "cannot run this node (KSampler): 1 picture(s) of 16384x16384" in caught.value.message
    assert "ComfyUI that has the node can: set engine.url" in caught.value.message
    assert (caught.value.code, status_of(type(caught.value))) == ("engine.sketch_cannot_run", 503)
    assert draw(engine, graph()) == 1


def test_a_graph_that_is_wrong_for_every_engine_is_not_a_limit(engine: Engine) -> None:
    with pytest.raises(NodeFailed) as caught:
        draw(engine, graph(save={"filename_prefix": "../../outside"}))
    assert not isinstance(caught.value, SketchCannotRun)
    with pytest.raises(EngineRejected, match=r"Easel's sketch engine refused the graph: .*steps"):
        draw(engine, graph(sampler={"steps": 0}))


def test_a_chain_of_five_hundred_nodes_is_drawn(engine: Engine) -> None:
    prompt = graph(save={"images": ["n499", 0]})
    for index in range(500):
        source = f"n{index - 1}" if index else "decoded"
        prompt[f"n{index}"] = {"class_type": "ImageInvert", "inputs": {"image": [source, 0]}}
    assert draw(engine, prompt) == 1


def a_node(*outputs: str) -> NodeInputs:
    node = Node({"thing": Input("CUSTOM_TYPE")}, outputs, output_node=False)
    return NodeInputs("Odd Node", node, {"thing": "a plain value that only this custom node knows"})


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TypeError("unsupported operand"), ""),
        (ZeroDivisionError(), ""),
        (RuntimeError("Python's own"), ""),
        (RecursionError(), ""),
        (MemoryError(), ": this machine has too little free memory"),
        (OSError(28, "No space left on device"), ": No space left on device"),
    ],
)
def test_any_error_of_a_node_names_its_class_and_says_that_a_comfyui_can(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Images:
        raise error

    inputs = a_node("IMAGE")
    inputs.values = {}  # type: ignore[assignment]
    monkeypatch.setitem(MAKE, "IMAGE", fail)
    with pytest.raises(CannotSketch) as caught:
        run_node(inputs, None)  # type: ignore[arg-type]
    assert f"cannot run this node (Odd Node){reason}. A ComfyUI that has the node can" in str(caught.value)
    assert "unsupported" not in str(caught.value)


def test_a_value_that_only_a_custom_node_understands_is_not_called_wrong() -> None:
    with pytest.raises(CannotSketch):
        run_node(a_node("CUSTOM_TYPE"), None)  # type: ignore[arg-type]
