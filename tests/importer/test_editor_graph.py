"""Files of ComfyUI's editor become the graphs that the editor itself would send."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from errors import NodesMissing, WorkflowUnreadable
from importer.editor_file import is_editor_file, read_editor_file
from importer.editor_graph import convert_editor_file
from importer.read_source import parse_workflow
from tests.importer.editor_files import (
    editor_file,
    node,
    sampler_file,
    sampler_graph,
    signatures,
    socket,
    subgraph,
)


def graph_of(document: dict[str, Any]) -> dict[str, Any]:
    return convert_editor_file(read_editor_file(document), signatures()).nodes


def notes_of(document: dict[str, Any]) -> tuple[str, ...]:
    return convert_editor_file(read_editor_file(document), signatures()).notes


def test_values_get_their_names_and_links_their_nodes() -> None:
    assert graph_of(sampler_file()) == sampler_graph()


def test_links_may_be_objects() -> None:
    document = sampler_file()
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    document["links"] = [dict(zip(keys, link, strict=False)) for link in document["links"]]
    assert graph_of({**document, "version": 1}) == sampler_graph()


def test_links_are_found_by_the_names_of_the_inputs_in_any_order() -> None:
    document = sampler_file()
    sampler = document["nodes"][5]
    sampler["inputs"].reverse()
    assert graph_of(document) == sampler_graph()


@pytest.mark.parametrize("values", [[5], [5, "randomize"], []])
def test_values_that_the_file_does_not_have_are_the_defaults(values: list[Any]) -> None:
    inputs = graph_of(sampler_file(n6={"widgets_values": values}))["6"]["inputs"]
    assert (inputs["seed"], inputs["steps"], inputs["cfg"]) == (values[0] if values else 0, 20, 8.0)


def test_values_after_the_last_input_are_left_out() -> None:
    picture = {"widgets_values": ["out", "image", None]}
    assert graph_of(sampler_file(n8=picture)) == sampler_graph()


def test_a_missing_value_for_after_a_run_shifts_nothing_and_is_said() -> None:
    document = sampler_file(n6={"widgets_values": [5, 20, 7, "euler", "normal", 1]})
    assert graph_of(document) == sampler_graph()
    assert "Node 6 (KSampler)" in notes_of(document)[0]


def test_wrong_values_pass_unchanged() -> None:
    values = [-1, "fixed", "20", None, "no_such_sampler", "normal", 1]
    inputs = graph_of(sampler_file(n6={"widgets_values": values}))["6"]["inputs"]
    assert [inputs[name] for name in ("seed", "steps", "cfg", "sampler_name")] == [
        -1,
        "20",
        None,
        "no_such_sampler",
    ]


def test_a_seed_beyond_what_the_editor_can_hold_stays_exact() -> None:
    values = [2**64 - 1, "fixed", 20, 7, "euler", "normal", 1]
    assert graph_of(sampler_file(n6={"widgets_values": values}))["6"]["inputs"]["seed"] == 2**64 - 1


def test_values_may_be_saved_by_name() -> None:
    values = {"seed": 5, "steps": 9, "cfg": 7, "sampler_name": "lcm", "scheduler": "normal", "denoise": 1}
    inputs = graph_of(sampler_file(n6={"widgets_values": values}))["6"]["inputs"]
    assert (inputs["steps"], inputs["sampler_name"]) == (9, "lcm")


# --- muted, bypassed and virtual nodes ---


def test_a_muted_node_vanishes_and_so_does_the_link_to_it() -> None:
    graph = graph_of(sampler_file(n2={"mode": 2}))
    assert "2" not in graph
    assert "model" not in graph["6"]["inputs"]


def test_a_bypassed_node_passes_on_the_input_of_the_same_type() -> None:
    graph = graph_of(sampler_file(n2={"mode": 4}))
    assert "2" not in graph
    assert graph["6"]["inputs"]["model"] == ["1", 0]


def test_a_bypassed_node_without_an_input_of_the_type_cuts_the_link() -> None:
    assert "negative" not in graph_of(sampler_file(n4={"mode": 4}))["6"]["inputs"]


def test_other_modes_run() -> None:
    assert graph_of(sampler_file(n2={"mode": 3})) == sampler_graph()


def test_of_a_bypassed_node_with_two_outputs_each_passes_on_the_input_at_its_place() -> None:
    sockets = [
        socket("positive", "CONDITIONING", 5),
        socket("negative", "CONDITIONING", 6),
        socket("control_net", "CONTROL_NET"),
        socket("image", "IMAGE"),
    ]
    control = node(9, "ControlNetApplyAdvanced", [1, 0, 1], sockets, ["CONDITIONING", "CONDITIONING"], mode=4)
    document = sampler_file(more=[control], links=[[11, 9, 0, 6, 1], [12, 9, 1, 6, 2]])
    sampler = document["nodes"][5]["inputs"]
    sampler[1]["link"], sampler[2]["link"] = 11, 12
    assert graph_of(document) == sampler_graph()


@pytest.mark.parametrize(("mode", "passes"), [(0, True), (4, True), (2, False)])
def test_a_reroute_vanishes(mode: int, passes: bool) -> None:
    reroute = node(9, "Reroute", [], [socket("", "*", 4)], ["MODEL"], mode=mode)
    document = sampler_file(more=[reroute], links=[[11, 9, 0, 6, 0]])
    document["nodes"][5]["inputs"][0]["link"] = 11
    assert graph_of(document)["6"]["inputs"].get("model") == (["2", 0] if passes else None)


@pytest.mark.parametrize("mode", [0, 2])
def test_the_value_of_a_primitive_node_beats_that_of_its_consumer(mode: int) -> None:
    primitive = node(9, "PrimitiveNode", [77, "fixed"], outputs=["INT"], mode=mode)
    document = sampler_file(more=[primitive], links=[[11, 9, 0, 6, 4]])
    document["nodes"][5]["inputs"].append(socket("seed", "INT", 11, widget=True))
    graph = graph_of(document)
    assert "9" not in graph
    assert graph["6"]["inputs"]["seed"] == 77


def test_a_muted_node_behind_a_widget_leaves_the_value_that_is_stored_there() -> None:
    primitive = node(9, "PrimitiveInt", [77, "fixed"], outputs=["INT"], mode=2)
    document = sampler_file(more=[primitive], links=[[11, 9, 0, 6, 4]])
    document["nodes"][5]["inputs"].append(socket("seed", "INT", 11, widget=True))
    assert graph_of(document)["6"]["inputs"]["seed"] == 5


def _with_named_link(name: str) -> dict[str, Any]:
    """The sampler's model passes through a setter, and a getter with this name."""
    return sampler_file(
        more=[
            node(20, "SetNode", ["model"], [socket("MODEL", "MODEL", 20)], ["*"]),
            node(21, "GetNode", [name], [], ["MODEL"]),
        ],
        links=[[20, 2, 0, 20, 0], [21, 21, 0, 6, 0]],
        n6={"inputs": [socket("model", "MODEL", 21)]},
    )


def test_a_getter_gives_what_feeds_the_setter_with_its_name() -> None:
    graph = graph_of(_with_named_link("model"))
    assert graph["6"]["inputs"]["model"] == ["2", 0]
    assert not {"20", "21"} & set(graph)


def test_a_getter_without_a_setter_is_refused() -> None:
    with pytest.raises(WorkflowUnreadable, match="no SetNode has this name"):
        graph_of(_with_named_link("modell"))


def test_a_getter_in_a_subgraph_finds_the_setter_outside() -> None:
    inner = [
        node(1, "GetNode", ["model"], [], ["MODEL"]),
        node(2, "LoraLoaderModelOnly", ["l.safetensors", 1], [socket("model", "MODEL", 1)], ["MODEL"]),
    ]
    graph = graph_of(
        sampler_file(
            more=[
                node(20, "SetNode", ["model"], [socket("MODEL", "MODEL", 20)], ["*"]),
                node(21, "inner", [], [], ["MODEL"]),
            ],
            links=[[20, 2, 0, 20, 0], [21, 21, 0, 6, 0]],
            n6={"inputs": [socket("model", "MODEL", 21)]},
        )
        | {
            "definitions": {
                "subgraphs": [
                    subgraph(
                        "inner", inner, [[1, 1, 0, 2, 0], [2, 2, 0, -20, 0]], outputs=[("MODEL", "MODEL")]
                    )
                ]
            }
        }
    )
    assert graph["21:2"]["inputs"]["model"] == ["2", 0]
    assert graph["6"]["inputs"]["model"] == ["21:2", 0]


def test_notes_vanish() -> None:
    assert (
        graph_of(sampler_file(more=[node(9, "Note", ["x"]), node(10, "MarkdownNote", ["y"])]))
        == sampler_graph()
    )


def test_a_link_into_an_input_that_is_not_known_is_kept() -> None:
    document = sampler_file(links=[[11, 7, 0, 8, 1]])
    document["nodes"][7]["inputs"].append(socket("brand_new", "IMAGE", 11))
    assert graph_of(document)["8"]["inputs"]["brand_new"] == ["7", 0]


# --- widgets that depend on others ---


def test_the_inputs_of_a_dynamic_combo_follow_it_directly() -> None:
    resize = node(
        9,
        "ResizeImageMaskNode",
        ["scale longer dimension", 640, "area"],
        [socket("input", "IMAGE", 10)],
        ["IMAGE"],
    )
    inputs = graph_of(sampler_file(more=[resize]))["9"]["inputs"]
    assert inputs["resize_type"] == "scale longer dimension"
    assert inputs["resize_type.longer_size"] == 640
    assert inputs["scale_method"] == "area"


def test_a_seed_in_a_dynamic_combo_has_no_value_for_after_a_run() -> None:
    values = ["write", 512, "on", 0.7, 64, 0.95, 0.05, 1.05, 3, 0, False, True]
    inputs = graph_of(sampler_file(more=[node(9, "TextGenerate", values)]))["9"]["inputs"]
    assert (inputs["sampling_mode.seed"], inputs["thinking"], inputs["use_default_template"]) == (
        3,
        False,
        True,
    )


def test_a_list_of_options_has_a_widget_for_each() -> None:
    inputs = graph_of(sampler_file(more=[node(9, "CustomCombo", ["b", 1, "a", "b", ""])]))["9"]["inputs"]
    assert inputs == {"choice": "b", "index": 1, "option1": "a", "option2": "b", "option3": ""}


def test_a_list_as_a_value_is_wrapped() -> None:
    inputs = graph_of(sampler_file(n8={"widgets_values": [["x", 1]]}))["8"]["inputs"]
    assert inputs["filename_prefix"] == {"__value__": ["x", 1]}


# --- subgraphs ---

TEXT_IN_SUBGRAPH = subgraph(
    "sub",
    [
        node(
            3,
            "CLIPTextEncode",
            ["inner"],
            [socket("clip", "CLIP", 1), socket("text", "STRING", 2, widget=True)],
            ["CONDITIONING"],
        )
    ],
    [[1, -10, 0, 3, 0], [2, -10, 1, 3, 1], [3, 3, 0, -20, 0]],
    [("clip", "CLIP"), ("text", "STRING")],
    [("CONDITIONING", "CONDITIONING")],
)


def with_subgraph(**host: Any) -> dict[str, Any]:
    """`sampler_file()` with its node 3 in a subgraph."""
    inputs = [socket("clip", "CLIP", 2), socket("text", "STRING", None, widget=True)]
    document = sampler_file(n3={"type": "sub", "inputs": inputs, "widgets_values": ["outer"], **host})
    document["definitions"] = {"subgraphs": [copy.deepcopy(TEXT_IN_SUBGRAPH)]}
    return document


def test_nodes_of_a_subgraph_get_paths_and_the_value_that_its_node_shows() -> None:
    graph = graph_of(with_subgraph())
    assert graph["3:3"] == {"class_type": "CLIPTextEncode", "inputs": {"text": "outer", "clip": ["1", 1]}}
    assert graph["6"]["inputs"]["positive"] == ["3:3", 0]


@pytest.mark.parametrize(
    "host",
    [
        {"properties": {"proxyWidgets": [["3", "text"]]}, "widgets_values": []},
        {"widgets_values": []},
    ],
    ids=["older file", "no values"],
)
def test_the_inner_value_holds_where_the_node_outside_has_none(host: dict[str, Any]) -> None:
    assert graph_of(with_subgraph(**host))["3:3"]["inputs"]["text"] == "inner"


def test_a_shown_value_is_written_into_sockets_without_a_widget_too() -> None:
    document = with_subgraph()
    inner = document["definitions"]["subgraphs"][0]
    inner["nodes"].append(node(5, "PreviewAny", [], [socket("source", "*", 9)], ["STRING"]))
    inner["links"].append({"id": 9, "origin_id": -10, "origin_slot": 1, "target_id": 5, "target_slot": 0})
    assert graph_of(document)["3:5"]["inputs"] == {"source": "outer"}


def test_a_subgraph_may_be_used_twice() -> None:
    document = with_subgraph()
    host = copy.deepcopy(document["nodes"][2])
    document["nodes"].append({**host, "id": 9, "widgets_values": ["second"]})
    graph = graph_of(document)
    assert (graph["3:3"]["inputs"]["text"], graph["9:3"]["inputs"]["text"]) == ("outer", "second")


@pytest.mark.parametrize("mode", [2, 4])
def test_a_subgraph_that_is_muted_or_bypassed_drops_its_nodes(mode: int) -> None:
    graph = graph_of(with_subgraph(mode=mode))
    assert "3:3" not in graph
    assert "positive" not in graph["6"]["inputs"]


def test_subgraphs_may_be_nested() -> None:
    document = with_subgraph()
    host = copy.deepcopy(document["nodes"][2])
    host |= {"id": 7, "widgets_values": ["middle"]}
    host["inputs"] = [socket("clip", "CLIP", 1), socket("text", "STRING", 2, widget=True)]
    outer = subgraph(
        "outer",
        [host],
        [[1, -10, 0, 7, 0], [2, -10, 1, 7, 1], [3, 7, 0, -20, 0]],
        [("clip", "CLIP"), ("text", "STRING")],
        [("CONDITIONING", "CONDITIONING")],
    )
    document["definitions"]["subgraphs"].append(outer)
    document["nodes"][2]["type"] = "outer"
    graph = graph_of(document)
    assert graph["3:7:3"]["inputs"] == {"text": "outer", "clip": ["1", 1]}
    assert graph["6"]["inputs"]["positive"] == ["3:7:3", 0]


def test_a_group_node_of_an_older_editor_is_a_subgraph() -> None:
    group = {
        "nodes": [
            node(0, "CLIPTextEncode", ["grouped"], [socket("clip", "CLIP")], ["CONDITIONING"], index=0),
            node(
                1,
                "ConditioningZeroOut",
                [],
                [socket("conditioning", "CONDITIONING")],
                ["CONDITIONING"],
                index=1,
            ),
        ],
        "links": [[0, 0, 1, 0, 0, "CONDITIONING"]],
        "external": [],
    }
    document = sampler_file(
        n3={"type": "workflow/mine", "inputs": [socket("clip", "CLIP", 2)], "widgets_values": ["grouped"]}
    )
    document["extra"] = {"groupNodes": {"mine": group}}
    graph = graph_of(document)
    assert graph["3:0"]["inputs"] == {"text": "grouped", "clip": ["1", 1]}
    assert graph["3:1"]["inputs"] == {"conditioning": ["3:0", 0]}
    assert graph["6"]["inputs"]["positive"] == ["3:1", 0]


# --- bad input ---


def test_a_subgraph_in_itself_is_refused() -> None:
    document = with_subgraph()
    inner = document["definitions"]["subgraphs"][0]
    inner["nodes"].append(node(8, "sub", []))
    with pytest.raises(WorkflowUnreadable, match="contains itself"):
        graph_of(document)


def test_subgraphs_that_multiply_are_refused_before_they_fill_the_memory() -> None:
    levels = [
        subgraph(f"level{number}", [node(1, f"level{number + 1}"), node(2, f"level{number + 1}")], [])
        for number in range(25)
    ]
    document = editor_file(
        [node(1, "level0")], definitions={"subgraphs": [*levels, subgraph("level25", [], [])]}
    )
    with pytest.raises(WorkflowUnreadable, match="more than"):
        graph_of(document)


def test_a_link_from_nowhere_is_refused() -> None:
    document = sampler_file()
    document["nodes"][7]["inputs"][0]["link"] = 99
    with pytest.raises(WorkflowUnreadable, match="Link 99 in the workflow"):
        graph_of(document)


def test_links_in_a_circle_are_refused() -> None:
    first = node(20, "Reroute", [], [socket("", "*", 22)], ["MODEL"])
    second = node(21, "Reroute", [], [socket("", "*", 21)], ["MODEL"])
    document = sampler_file(more=[first, second], links=[[21, 20, 0, 21, 0], [22, 21, 0, 20, 0]])
    document["nodes"][5]["inputs"][0]["link"] = 21
    with pytest.raises(WorkflowUnreadable, match="circle"):
        graph_of(document)


def test_an_unknown_node_that_no_other_needs_is_left_out_and_named() -> None:
    file = sampler_file(more=[node(9, "Fast Bypasser")])
    converted = convert_editor_file(read_editor_file(file), signatures())
    assert "9" not in converted.nodes
    assert any("Fast Bypasser" in note for note in converted.notes)


def test_a_workflow_whose_only_result_is_an_unknown_node_is_refused() -> None:
    file = sampler_file()
    for entry in file["nodes"]:
        if entry["type"] == "SaveImage":
            entry["type"] = "MySave"
    with pytest.raises(NodesMissing, match="MySave"):
        graph_of(file)


def test_unknown_classes_are_named_with_what_to_do() -> None:
    with pytest.raises(NodesMissing, match=r"NoSuchNode.*--object-info") as caught:
        graph_of(sampler_file(n2={"type": "NoSuchNode"}))
    assert caught.value.details["nodes"] == ["NoSuchNode"]


@pytest.mark.parametrize(
    "document",
    [
        {"nodes": [{"id": 1}], "links": []},
        {"nodes": [3], "links": []},
        {"nodes": [node(1, "Note"), node(1, "Note")], "links": []},
        {"nodes": [], "links": [[1, 2]]},
        {"nodes": [], "links": [["a", "b", "c", "d", "e"]]},
        {"nodes": [], "links": [], "definitions": {"subgraphs": [{}]}},
        {"nodes": [], "links": [], "extra": {"groupNodes": {"x": {"nodes": [4]}}}},
        {"nodes": [node(1, "Note", mode="x")], "links": []},
    ],
)
def test_files_with_parts_of_another_form_are_refused(document: dict[str, Any]) -> None:
    assert is_editor_file(document)
    with pytest.raises(WorkflowUnreadable):
        read_editor_file(document)


def test_thousands_of_bypassed_nodes_in_a_row_are_refused_while_reading() -> None:
    bypassed = [
        node(100 + number, "ImageInvert", [], [socket("image", "IMAGE", 1000 + number)], ["IMAGE"], mode=4)
        for number in range(5000)
    ]
    links = [
        [1000, 7, 0, 100, 0],
        *([1000 + number, 99 + number, 0, 100 + number, 0] for number in range(1, 5000)),
    ]
    document = sampler_file(more=bypassed, links=links)
    document["links"][9] = [10, 5099, 0, 8, 0, "*"]
    with pytest.raises(WorkflowUnreadable, match="follow each other"):
        parse_workflow(document, lambda classes: signatures())


def test_a_small_file_that_stands_for_endless_nodes_is_refused() -> None:
    definitions = [
        subgraph(f"level {level}", [node(number, f"level {level + 1}") for number in range(10)], [])
        for level in range(3)
    ]
    definitions.append(subgraph("level 3", [node(number, "PreviewAny") for number in range(50)], []))
    document = editor_file([node(1, "level 0")], definitions={"subgraphs": definitions})
    with pytest.raises(WorkflowUnreadable, match="more than 20000 nodes"):
        graph_of(document)


@pytest.mark.parametrize("values", [5, "euler", True])
def test_saved_values_of_another_form_are_refused(values: Any) -> None:
    with pytest.raises(WorkflowUnreadable, match="widgets_values of node 6"):
        graph_of(sampler_file(n6={"widgets_values": values}))


@pytest.mark.parametrize("odd", [[1, 2], {"a": 1}])
def test_an_odd_value_in_place_of_what_happens_after_a_run_is_said(odd: Any) -> None:
    document = sampler_file(n6={"widgets_values": [5, odd, 20, 7, "euler", "normal", 1]})
    assert any("what happens to seed after a run" in note for note in notes_of(document))
