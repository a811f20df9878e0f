"""Fitting a graph to the ComfyUI version of the running engine."""

from __future__ import annotations

import time
from itertools import islice, permutations
from typing import Any

import pytest

from compiler import SKETCH, compile_workflow, find_errors, fit, over_socket
from compiler.catalogue import File
from compiler.engine_files import find_file
from compiler.node_records import record_nodes
from compiler.signatures import parse_object_info, parse_signatures
from errors import FilesMissing, NodesMissing
from tests.compiler.catalogues import CATALOGUE, image_request

SCALE_OLD = {
    "input": {
        "required": {
            "image": ["IMAGE"],
            "upscale_method": [["area", "lanczos"]],
            "megapixels": ["FLOAT", {"default": 1.0, "min": 0.01, "max": 16.0}],
        }
    },
    "output": ["IMAGE"],
    "output_node": False,
}
SCALE_NEW = {
    "input": {
        "required": {
            "image": ["IMAGE", {}],
            "upscale_method": ["COMBO", {"options": ["area", "lanczos", "new"]}],
            "megapixels": ["FLOAT", {"default": 1.0, "min": 0.01, "max": 16.0}],
            "resolution_steps": ["INT", {"default": 1, "min": 1, "max": 256}],
        }
    },
    "output": ["IMAGE"],
    "output_node": False,
}


def recorded() -> dict[str, Any]:
    document: dict[str, Any] = {"versions": [], "nodes": {}}
    for version, entry in (("0.3.64", SCALE_OLD), ("0.8.0", SCALE_NEW)):
        document = record_nodes(document, {"Scale": entry}, version=version, classes=["Scale"], facts={})
    return document


def scaled(**inputs: Any) -> dict[str, Any]:
    base = {"image": ["source", 0], "upscale_method": "area", "megapixels": 1.0}
    return {"scale": {"class_type": "Scale", "inputs": {**base, **inputs}}}


def test_inputs_and_choices_that_not_all_versions_have_are_marked() -> None:
    inputs = recorded()["nodes"]["Scale"]["inputs"]
    assert inputs["resolution_steps"]["only_in"] == ["0.8.0"]
    assert inputs["upscale_method"]["choices_in"] == {"new": ["0.8.0"]}
    assert "only_in" not in inputs["megapixels"]


def test_recording_a_version_again_changes_nothing() -> None:
    document = recorded()
    for version, entry in (("0.8.0", SCALE_NEW), ("0.3.64", SCALE_OLD)):
        assert (
            record_nodes(document, {"Scale": entry}, version=version, classes=["Scale"], facts={}) == document
        )


def test_an_input_that_no_version_has_any_more_is_removed() -> None:
    document = recorded()
    document = record_nodes(document, {"Scale": SCALE_OLD}, version="0.8.0", classes=["Scale"], facts={})
    assert "resolution_steps" not in document["nodes"]["Scale"]["inputs"]


def test_an_input_that_the_engine_requires_gets_its_default() -> None:
    signatures = parse_signatures(recorded())
    fitted = fit(scaled(), parse_object_info({"Scale": SCALE_NEW}), signatures, {})
    assert fitted["scale"]["inputs"]["resolution_steps"] == 1


def test_an_input_that_the_engine_does_not_have_is_removed_only_if_it_has_its_default() -> None:
    signatures, live = parse_signatures(recorded()), parse_object_info({"Scale": SCALE_OLD})
    assert "resolution_steps" not in fit(scaled(resolution_steps=1), live, signatures, {})["scale"]["inputs"]
    with pytest.raises(NodesMissing, match="resolution_steps"):
        fit(scaled(resolution_steps=8), live, signatures, {})


def test_a_choice_that_the_engine_does_not_have_is_named() -> None:
    signatures, live = parse_signatures(recorded()), parse_object_info({"Scale": SCALE_OLD})
    with pytest.raises(NodesMissing, match="'new'"):
        fit(scaled(upscale_method="new"), live, signatures, {})


def test_a_node_that_the_engine_does_not_have_is_named() -> None:
    with pytest.raises(NodesMissing) as caught:
        fit(scaled(), {}, parse_signatures(recorded()), {})
    assert caught.value.details["nodes"] == ["Scale"]


def live_with(**files: list[str]) -> dict[str, Any]:
    """The signatures of an engine that has every node, and `files` by folder."""
    live = {}
    for name, node in CATALOGUE.signatures.items():
        inputs = {
            key: [files.get(known.folder, []), {}] if known.folder else [known.type, {}]
            for key, known in node.inputs.items()
            if known.choices is None
        } | {
            key: [list(known.choices), {}] for key, known in node.inputs.items() if known.choices is not None
        }
        live[name] = {
            "input": {"required": inputs},
            "output": list(node.outputs),
            "output_node": node.output_node,
        }
    return parse_object_info(live)


def test_all_missing_files_are_reported_with_folder_and_url() -> None:
    (graph,) = compile_workflow(image_request(model="flux-schnell"), CATALOGUE).graphs
    live = {name: node for name, node in live_with(vae=["ae.safetensors"]).items() if name in graph.classes}
    with pytest.raises(FilesMissing) as caught:
        fit(graph.nodes, live, CATALOGUE.signatures, CATALOGUE.models["flux-schnell"].files)
    files = caught.value.details["files"]
    assert [(file["name"], file["folder"]) for file in files] == [
        ("flux1-schnell.safetensors", "models/diffusion_models"),
        ("clip_l.safetensors", "models/text_encoders"),
        ("t5xxl_fp16.safetensors", "models/text_encoders"),
    ]
    assert all(file["url"].startswith("https://") for file in files)


# --- files of custom loaders ---------------------------------------------------------------------------


def loader(*files: str, **settings: Any) -> dict[str, Any]:
    return {
        "Loader": {
            "input": {"required": {"model_name": [list(files), settings]}},
            "output": ["MODEL"],
            "output_node": True,
        }
    }


def loaded(name: str, *listed: str, facts: Any = None, snapshot: dict[str, Any] | None = None) -> Any:
    """The file name in the graph for an engine that lists `listed`."""
    document = record_nodes(
        {"versions": [], "nodes": {}},
        loader("old.gguf") if snapshot is None else snapshot,
        version="1",
        classes=["Loader"],
        facts=facts or {},
    )
    signatures = parse_signatures(document)
    nodes = {"n": {"class_type": "Loader", "inputs": {"model_name": name}}}
    assert list(find_errors(nodes, signatures, "t")) == []
    return fit(nodes, parse_object_info(loader(*listed)), signatures, {})["n"]["inputs"]["model_name"]


@pytest.mark.parametrize(
    "snapshot",
    [
        loader("old.gguf"),
        loader("None", "sub/old.SAFETENSORS"),
        loader("a.sft"),
        loader("a.ckpt"),
        loader("a.pth"),
        loader("a.onnx"),
        loader("a.bin"),
        loader("a.pt"),
        loader(),
        loader("None"),
        loader("x.png", image_upload=True),
    ],
)
def test_a_list_of_files_is_never_frozen_so_a_file_added_later_works(snapshot: dict[str, Any]) -> None:
    assert loaded("new.gguf", "old.gguf", "new.gguf", snapshot=snapshot) == "new.gguf"


def test_a_list_of_words_is_frozen() -> None:
    document = record_nodes({"versions": [], "nodes": {}}, loader("safetensors", "ckpt"), version="1", classes=["Loader"], facts={})  # fmt: skip
    assert document["nodes"]["Loader"]["inputs"]["model_name"]["choices"] == ["safetensors", "ckpt"]


@pytest.mark.parametrize(
    ("name", "listed", "expected"),
    [
        ("x.gguf", ["x.gguf", "SD/x.gguf"], "x.gguf"),
        ("x.gguf", ["SD/x.gguf", "y.gguf"], "SD/x.gguf"),
        ("x.gguf", ["SD\\x.gguf", "y.gguf"], "SD\\x.gguf"),
        ("SD/x.gguf", ["SD\\x.gguf", "x.gguf"], "SD\\x.gguf"),
        ("SD/x.gguf", ["models/SD/x.gguf"], "models/SD/x.gguf"),
        ("SD\\x.gguf", ["SD/x.gguf"], "SD/x.gguf"),
        ("a/b/x.gguf", ["a\\b\\x.gguf", "b\\x.gguf"], "a\\b\\x.gguf"),
    ],
)
def test_a_file_in_a_subfolder_gets_the_spelling_of_the_engine(
    name: str, listed: list[str], expected: str
) -> None:
    assert loaded(name, *listed) == expected


@pytest.mark.parametrize(
    ("name", "listed", "message"),
    [
        ("x.gguf", ["a/x.gguf", "b\\x.gguf"], "could be any of a/x.gguf, b/x.gguf"),
        ("flux-Q5.gguf", ["flux-Q4.gguf", "zzz.gguf"], "similar: flux-Q4.gguf"),
        ("Model.gguf", ["model.gguf"], "similar: model.gguf"),
        ("SD/x.gguf", ["x.gguf"], "similar: x.gguf"),
        ("juggernaut.gguf", ["XL\\Juggernaut_v9.gguf"], "similar: XL/Juggernaut_v9.gguf"),
        ("x.gguf", ["ax.gguf"], "does not have x.gguf"),
        ("x.gguf", [], "for the input model_name of the node 'n'"),
    ],
)
def test_a_file_that_is_ambiguous_or_missing_is_reported_with_the_names_there_are(
    name: str, listed: list[str], message: str
) -> None:
    with pytest.raises(FilesMissing) as caught:
        loaded(name, *listed)
    assert message in caught.value.message
    (entry,) = caught.value.details["files"]
    assert {"ambiguous", "nearest"} <= set(entry)


def test_similar_names_among_thousands_of_files_are_found_quickly() -> None:
    words = [
        "juggernaut",
        "realistic",
        "vision",
        "dream",
        "shaper",
        "flux",
        "lora",
        "detail",
        "anime",
        "ema",
        "turbo",
        "lightning",
        "pony",
    ]
    listed = [
        f"SD/{'_'.join(parts)}_v{number}.safetensors"
        for number, parts in enumerate(islice(permutations(words, 4), 5000))
    ]
    started_at = time.process_time()
    match = find_file("XL/" + listed[2345].removeprefix("SD/").replace("_", ""), listed)
    assert time.process_time() - started_at < 0.3
    assert match.nearest[0] == listed[2345]
    assert len(match.nearest) > 1


def test_the_folder_of_a_missing_file_is_that_of_the_facts_or_of_the_catalogue() -> None:
    with pytest.raises(FilesMissing, match="in models/diffusion_models"):
        loaded("x.gguf", facts={"Loader": {"files": {"model_name": "diffusion_models"}}})
    document = record_nodes(
        {"versions": [], "nodes": {}}, loader(), version="1", classes=["Loader"], facts={}
    )
    nodes = {"n": {"class_type": "Loader", "inputs": {"model_name": "SD/x.gguf"}}}
    file = File("SD/x.gguf", "unet", url="https://example.org/x.gguf")
    with pytest.raises(FilesMissing, match=r"SD/x\.gguf in models/unet") as caught:
        fit(nodes, parse_object_info(loader()), parse_signatures(document), {"model": file})
    assert caught.value.details["files"][0]["url"] == file.url


@pytest.mark.parametrize("order", [("1", "2"), ("2", "1")])
def test_outputs_that_only_one_version_has_are_kept_and_checked_against_the_engine(
    order: tuple[str, ...],
) -> None:
    entries = {
        version: {
            "A": {"input": {"required": {}}, "output": outputs, "output_node": False},
            "B": {"input": {"required": {"x": ["INT"]}}, "output": [], "output_node": True},
        }
        for version, outputs in {"1": ["STRING"], "2": ["STRING", "INT"]}.items()
    }
    document: dict[str, Any] = {"versions": [], "nodes": {}}
    for version in order:
        document = record_nodes(document, entries[version], version=version, classes=["A", "B"], facts={})
    signatures = parse_signatures(document)
    nodes = {"a": {"class_type": "A", "inputs": {}}, "b": {"class_type": "B", "inputs": {"x": ["a", 1]}}}
    assert list(find_errors(nodes, signatures, "t")) == []
    assert fit(nodes, parse_object_info(entries["2"]), signatures, {}) == nodes
    with pytest.raises(NodesMissing, match="A has no output 1"):
        fit(nodes, parse_object_info(entries["1"]), signatures, {})


@pytest.mark.parametrize(
    ("live", "nodes"),
    [
        ({}, scaled()),
        ({"Scale": SCALE_OLD}, scaled(upscale_method="new")),
        ({"Scale": SCALE_OLD}, scaled(resolution_steps=8)),
        ({"Scale": SCALE_OLD}, scaled(megapixels=99.0)),
    ],
)
def test_what_the_sketch_engine_lacks_is_its_own_limit(live: dict[str, Any], nodes: dict[str, Any]) -> None:
    with pytest.raises(NodesMissing) as caught:
        fit(nodes, parse_object_info(live), parse_signatures(recorded()), {}, SKETCH)
    message = caught.value.message
    assert message.startswith("Easel's sketch engine")
    assert "Scale" in message
    assert "cannot run this node; a ComfyUI that has it can: set engine.url" in message
    assert "This ComfyUI" not in message


def test_a_file_that_the_sketch_engine_does_not_list_belongs_into_the_catalogue() -> None:
    entry = {
        "input": {"required": {"name": [["a.safetensors"], {}]}},
        "output": ["MODEL"],
        "output_node": False,
    }
    document = record_nodes(
        {"versions": [], "nodes": {}}, {"Load": entry}, version="1", classes=["Load"], facts={}
    )
    nodes = {"load": {"class_type": "Load", "inputs": {"name": "b.safetensors"}}}
    with pytest.raises(
        FilesMissing, match=r"^Easel's sketch engine does not have b.safetensors.*under `files:`"
    ):
        fit(nodes, parse_object_info({"Load": entry}), parse_signatures(document), {}, SKETCH)


# --- pictures over the WebSocket --------------------------------------------------------------------

SENDER = {"input": {"required": {"images": ["IMAGE"]}}, "output": [], "output_node": True}


def ending_in(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {
        "source": {"class_type": "EmptyImage", "inputs": {}},
        "end": {
            "class_type": class_type,
            "inputs": {"images": ["source", 0], **inputs},
            "_meta": {"title": "x"},
        },
    }


@pytest.mark.parametrize(
    "nodes", [ending_in("SaveImage", filename_prefix="a"), ending_in("SaveImage"), ending_in("PreviewImage")]
)
def test_an_output_that_only_saves_sends_its_pictures_instead(nodes: dict[str, Any]) -> None:
    sending = over_socket(nodes, "end", parse_object_info({"SaveImageWebsocket": SENDER}))
    assert sending == {
        "source": nodes["source"],
        "end": {
            "class_type": "SaveImageWebsocket",
            "inputs": {"images": ["source", 0]},
            "_meta": {"title": "x"},
        },
    }
    assert nodes["end"]["class_type"] != "SaveImageWebsocket"


def test_an_output_that_does_more_than_save_8_bits_is_kept() -> None:
    live = parse_object_info({"SaveImageWebsocket": SENDER})
    used = ending_in("SaveImage", filename_prefix="a") | {
        "other": {"class_type": "PreviewImage", "inputs": {"images": ["end", 0]}}
    }
    for nodes in (
        ending_in("SaveImageAdvanced", format="png"),
        ending_in("SaveImage", filename_prefix="a", quality=3),
        ending_in("SaveImageWebsocket"),
        used,
    ):
        assert over_socket(nodes, "end", live) is None


def test_an_output_is_kept_if_the_engine_cannot_send_pictures() -> None:
    other = {**SENDER, "input": {"required": {"images": ["IMAGE"], "quality": ["INT", {}]}}}
    for live in ({}, {"SaveImageWebsocket": other}):
        assert over_socket(ending_in("SaveImage"), "end", parse_object_info(live)) is None
