"""A stage whose nodes are newer than the connected ComfyUI."""

from __future__ import annotations

from typing import Any, cast

import pytest

from compiler import Size, compile_workflow
from engine import Engine
from errors import EngineTooOld
from generation.fitted_graphs import FittedGraphs
from tests.compiler.catalogues import image_request
from tests.compiler.test_shipped_catalogue import CATALOGUE


class OldComfyUI:
    is_sketch = False

    def version(self, *, fresh: bool = False) -> str:
        return "0.3.64"

    def signatures(self, classes: Any, *, fresh: bool = False) -> dict[str, Any]:
        return {}


def test_the_error_names_the_stage_and_the_version_to_get() -> None:
    request = image_request(
        model="sd-1.5-fp16", size=Size(512, 512), stages={"background": "transparent"}, inputs={}
    )
    compiled = compile_workflow(request, CATALOGUE)
    with pytest.raises(
        EngineTooOld, match=r"with background; this one is 0\.3\.64. Update ComfyUI to 0\.33\.0"
    ):
        FittedGraphs().get(compiled, CATALOGUE, cast(Engine, OldComfyUI()))
