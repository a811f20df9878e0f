"""What a request may set is found by links and types."""

from __future__ import annotations

import random
from typing import Any

import pytest

from errors import WorkflowNotImportable
from importer import Imported, Workflow, import_workflow
from importer.bindings import Bindings, Choices, find_bindings
from tests.importer.editor_files import sampler_graph, signatures


def found(graph: dict[str, Any], **choices: Any) -> Bindings:
    return find_bindings(graph, signatures(), Choices(**choices))


def places(bindings: Bindings) -> dict[str, tuple[tuple[str, str], ...]]:
    return {name: field.places for name, field in bindings.fields.items()}


def nodes(**entries: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        name: {"class_type": node_class, "inputs": inputs} for name, (node_class, inputs) in entries.items()
    }


def test_all_of_a_plain_workflow_is_found() -> None:
    bindings = found(sampler_graph())
    assert places(bindings) == {
        "prompt": (("3", "text"),),
        "negative_prompt": (("4", "text"),),
        "seed": (("6", "seed"),),
        "steps": (("6", "steps"),),
        "cfg": (("6", "cfg"),),
        "sampler": (("6", "sampler_name"),),
        "schedule": (("6", "scheduler"),),
        "width": (("5", "width"),),
        "height": (("5", "height"),),
        "batch": (("5", "batch_size"),),
        "prefix": (("8", "filename_prefix"),),
    }
    assert bindings.output == "8"
    assert bindings.tasks == ("generate",)
    assert bindings.files == {("1", "ckpt_name"): "checkpoints", ("2", "lora_name"): "loras"}
    assert bindings.assumptions == ()


def test_names_and_order_of_the_nodes_do_not_matter() -> None:
    graph = sampler_graph()
    names = {
        name: f"node {index}" for index, name in enumerate(random.Random(1).sample(list(graph), len(graph)))
    }
    renamed = {
        names[name]: {
            "class_type": entry["class_type"],
            "inputs": {
                key: [names[value[0]], value[1]] if isinstance(value, list) else value
                for key, value in entry["inputs"].items()
            },
        }
        for name, entry in reversed(graph.items())
    }
    expected = {
        name: tuple((names[node], key) for node, key in where) for name, where in places(found(graph)).items()
    }
    assert places(found(renamed)) == expected


# --- texts ---


def test_a_zeroed_negative_conditioning_is_no_negative_prompt() -> None:
    graph = sampler_graph(n6={"negative": ["z", 0]})
    graph |= nodes(z=("ConditioningZeroOut", {"conditioning": ["3", 0]}))
    assert "negative_prompt" not in found(graph).fields


def test_conditioning_nodes_are_followed_by_the_side_that_they_pass_on() -> None:
    graph = sampler_graph(n6={"positive": ["c", 0], "negative": ["c", 1]})
    control = {"positive": ["g", 0], "negative": ["4", 0], "control_net": ["n", 0], "image": ["7", 0]}
    graph |= nodes(
        c=("ControlNetApplyAdvanced", {**control, "strength": 1, "start_percent": 0, "end_percent": 1}),
        g=("FluxGuidance", {"conditioning": ["3", 0], "guidance": 3.5}),
        n=("ControlNetLoader", {"control_net_name": "c.safetensors"}),
    )
    fields = places(found(graph))
    assert (fields["prompt"], fields["negative_prompt"]) == ((("3", "text"),), (("4", "text"),))


def test_a_guider_holds_conditioning_and_cfg() -> None:
    graph = nodes(
        model=("UNETLoader", {"unet_name": "m.safetensors", "weight_dtype": "default"}),
        clip=("CLIPLoader", {"clip_name": "c.safetensors", "type": "flux2"}),
        yes=("CLIPTextEncode", {"text": "a cat", "clip": ["clip", 0]}),
        no=("CLIPTextEncode", {"text": "blurry", "clip": ["clip", 0]}),
        guider=(
            "CFGGuider",
            {"model": ["model", 0], "positive": ["yes", 0], "negative": ["no", 0], "cfg": 5.0},
        ),
        noise=("RandomNoise", {"noise_seed": 3}),
        method=("KSamplerSelect", {"sampler_name": "euler"}),
        sigmas=("Flux2Scheduler", {"steps": 20, "width": 1024, "height": 512}),
        latent=("EmptyFlux2LatentImage", {"width": 1024, "height": 512, "batch_size": 1}),
        sampler=(
            "SamplerCustomAdvanced",
            {
                "noise": ["noise", 0],
                "guider": ["guider", 0],
                "sampler": ["method", 0],
                "sigmas": ["sigmas", 0],
                "latent_image": ["latent", 0],
            },
        ),
        vae=("VAELoader", {"vae_name": "v.safetensors"}),
        decoded=("VAEDecode", {"samples": ["sampler", 0], "vae": ["vae", 0]}),
        picture=("SaveImage", {"images": ["decoded", 0], "filename_prefix": "x"}),
    )
    fields = places(found(graph))
    assert fields["prompt"] == (("yes", "text"),)
    assert fields["negative_prompt"] == (("no", "text"),)
    assert fields["cfg"] == (("guider", "cfg"),)
    assert fields["seed"] == (("noise", "noise_seed"),)
    assert fields["steps"] == (("sigmas", "steps"),)
    assert fields["sampler"] == (("method", "sampler_name"),)
    assert fields["width"] == (("latent", "width"), ("sigmas", "width"))
    assert fields["height"] == (("latent", "height"), ("sigmas", "height"))


def switched(**more: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """The prompt `user` goes through a language model behind a switch."""
    graph = sampler_graph(n3={"text": ["switch", 0]})
    return graph | nodes(
        user=("PrimitiveStringMultiline", {"value": "a cat"}),
        system=("PrimitiveStringMultiline", {"value": "You write prompts. " * 20}),
        both=("StringConcatenate", {"string_a": ["system", 0], "string_b": ["user", 0], "delimiter": "\n"}),
        written=(
            "TextGenerate",
            {"clip": ["1", 1], "prompt": ["both", 0], "max_length": 100, "sampling_mode": "off"},
        ),
        switch=("ComfySwitchNode", {"switch": True, "on_false": ["user", 0], "on_true": ["written", 0]}),
        **more,
    )


def test_a_text_that_a_language_model_rewrites_is_found_behind_switches_and_instructions() -> None:
    bindings = found(switched())
    assert places(bindings)["prompt"] == (("user", "value"),)
    assert bindings.assumptions == ()
    assert "A language model in the workflow rewrites the prompt." in bindings.notes


def test_only_the_side_of_a_switch_that_is_on_counts() -> None:
    graph = sampler_graph(n6={"steps": ["s", 0]}) | nodes(
        on=("PrimitiveBoolean", {"value": False}),
        many=("PrimitiveInt", {"value": 40}),
        few=("PrimitiveInt", {"value": 4}),
        s=("ComfySwitchNode", {"switch": ["on", 0], "on_false": ["many", 0], "on_true": ["few", 0]}),
    )
    assert places(found(graph))["steps"] == (("many", "value"),)


def test_of_literals_that_are_joined_one_is_assumed_and_that_is_said() -> None:
    graph = sampler_graph(n3={"text": ["j", 0]}) | nodes(
        j=("StringConcatenate", {"string_a": "a cat", "string_b": "in ink", "delimiter": ", "})
    )
    bindings = found(graph)
    assert places(bindings)["prompt"] == (("j", "string_a"),)
    assert [assumption.option for assumption in bindings.assumptions] == ["--prompt NODE.INPUT"]
    assert found(graph, places={"prompt": ("j", "string_b")}).assumptions == ()


def test_the_text_that_is_put_into_another_is_the_prompt() -> None:
    graph = sampler_graph(n3={"text": ["r", 0]}) | nodes(
        r=(
            "StringReplace",
            {"string": "<think>{words}</think>" * 9, "find": "{words}", "replace": ["user", 0]},
        ),
        user=("PrimitiveStringMultiline", {"value": "a cat"}),
    )
    assert places(found(graph))["prompt"] == (("user", "value"),)


def test_all_texts_of_an_encoder_get_the_prompt() -> None:
    graph = sampler_graph(n6={"positive": ["e", 0]}) | nodes(
        e=("CLIPTextEncodeFlux", {"clip": ["1", 1], "clip_l": "cat", "t5xxl": "a grey cat", "guidance": 3.5})
    )
    bindings = found(graph)
    assert places(bindings)["prompt"] == (("e", "t5xxl"), ("e", "clip_l"))
    assert any("different texts" in note for note in bindings.notes)


def test_one_node_may_encode_both_texts() -> None:
    graph = sampler_graph(n6={"positive": ["e", 0], "negative": ["e", 1], "latent_image": ["e", 2]}) | nodes(
        e=(
            "TextEncodeMageFlowEdit",
            {
                "clip": ["1", 1],
                "prompt": "a cat",
                "negative_prompt": "blur",
                "width": 512,
                "height": 256,
                "batch_size": 1,
            },
        )
    )
    fields = places(found(graph))
    assert fields["prompt"] == (("e", "prompt"),)
    assert fields["negative_prompt"] == (("e", "negative_prompt"),)
    assert fields["width"] == (("e", "width"),)


# --- sampling ---


def test_guidance_is_the_cfg_of_a_distilled_model() -> None:
    graph = sampler_graph(n6={"cfg": 1, "positive": ["g", 0]}) | nodes(
        g=("FluxGuidance", {"conditioning": ["3", 0], "guidance": 3.5})
    )
    bindings = found(graph)
    assert bindings.fields["cfg"].places == (("g", "guidance"),)
    assert bindings.fields["cfg"].value == 3.5


def test_of_samplers_in_a_row_the_first_decides() -> None:
    values = {"add_noise": "enable", "steps": 25, "cfg": 8, "sampler_name": "euler", "scheduler": "normal"}
    links = {"model": ["1", 0], "positive": ["3", 0], "negative": ["4", 0]}
    graph = sampler_graph(n7={"samples": ["b", 0]}) | nodes(
        a=(
            "KSamplerAdvanced",
            {
                **values,
                **links,
                "noise_seed": 9,
                "start_at_step": 0,
                "end_at_step": 20,
                "latent_image": ["5", 0],
            },
        ),
        b=(
            "KSamplerAdvanced",
            {
                **values,
                **links,
                "noise_seed": 0,
                "start_at_step": 20,
                "end_at_step": 10000,
                "latent_image": ["a", 0],
            },
        ),
    )
    del graph["6"]
    bindings = found(graph)
    assert bindings.fields["seed"].places == (("a", "noise_seed"),)
    assert "steps" not in bindings.fields
    assert any("share the steps" in note for note in bindings.notes)


def test_a_sampler_name_that_its_node_does_not_have_stays_as_it_is() -> None:
    assert "sampler" not in found(sampler_graph(n6={"sampler_name": "of_a_custom_node"})).fields


# --- size ---


def test_a_computed_size_is_replaced_where_it_arrives() -> None:
    graph = sampler_graph(n5={"width": ["r", 0], "height": ["m", 1]}) | nodes(
        r=("ResolutionSelector", {"aspect_ratio": "16:9 (Widescreen)", "megapixels": 1.0, "multiple": 8}),
        m=("ComfyMathExpression", {"expression": "max(((a + 15) // 16) * 16, 256)", "values.a": ["r", 1]}),
    )
    bindings = found(graph)
    assert (bindings.fields["width"].value, bindings.fields["height"].value) == (1368, 768)
    assert bindings.fields["width"].places == (("5", "width"),)
    assert bindings.size.origin == "r"


@pytest.mark.parametrize(
    "expression", ["a ** 9999", "__import__('os')", "a +", "a / 0", "b", "(" * 300 + "a" + ")" * 300]
)
def test_a_size_that_cannot_be_computed_is_left_alone(expression: str) -> None:
    graph = sampler_graph(n5={"width": ["m", 1]}) | nodes(
        p=("PrimitiveInt", {"value": 512}),
        m=("ComfyMathExpression", {"expression": expression, "values.a": ["p", 0]}),
    )
    assert "width" not in found(graph).fields


def edit_graph(**sampler: Any) -> dict[str, Any]:
    """Redraws a picture that is scaled to one megapixel."""
    return sampler_graph(n6={"latent_image": ["e", 0], **sampler}) | nodes(
        i=("LoadImage", {"image": "cat.png"}),
        s=("ImageScaleToTotalPixels", {"image": ["i", 0], "upscale_method": "area", "megapixels": 1.0}),
        e=("VAEEncode", {"pixels": ["s", 0], "vae": ["1", 2]}),
    )


def test_a_workflow_with_a_picture_edits_and_takes_its_size_from_the_picture() -> None:
    bindings = found(edit_graph(denoise=0.6))
    assert bindings.tasks == ("edit",)
    assert bindings.images == (("i", "image"),)
    assert bindings.size.from_picture
    assert "width" not in bindings.fields
    assert bindings.fields["strength"].value == 0.6


def test_the_strength_of_a_full_redraw_is_no_field() -> None:
    assert "strength" not in found(edit_graph()).fields


def test_the_mask_of_the_picture_makes_it_inpainting() -> None:
    graph = edit_graph(latent_image=["n", 0]) | nodes(
        n=("SetLatentNoiseMask", {"samples": ["e", 0], "mask": ["i", 1]})
    )
    bindings = found(graph)
    assert (bindings.tasks, bindings.mask_from) == (("inpaint",), "i")


def test_a_picture_that_is_only_a_mask_is_the_mask() -> None:
    graph = edit_graph(latent_image=["n", 0]) | nodes(
        m=("LoadImageMask", {"image": "mask.png", "channel": "alpha"}),
        n=("SetLatentNoiseMask", {"samples": ["e", 0], "mask": ["m", 0]}),
    )
    bindings = found(graph)
    assert (bindings.tasks, bindings.images) == (("inpaint",), (("i", "image"),))
    assert (bindings.mask_file, bindings.mask_from) == (("m", "image"), None)
    assert bindings.changed == {("m", "channel"): "red"}
    assert any("the channel of node m becomes red" in note for note in bindings.notes)
    graph |= nodes(
        o=("LoadImageMask", {"image": "other.png", "channel": "red"}),
        n=("SetLatentNoiseMask", {"samples": ["k", 0], "mask": ["m", 0]}),
        k=("SetLatentNoiseMask", {"samples": ["e", 0], "mask": ["o", 0]}),
    )
    with pytest.raises(WorkflowNotImportable, match="loads 2 masks"):
        found(graph)


def test_a_workflow_without_a_prompt_needs_only_the_picture() -> None:
    graph = nodes(
        i=("LoadImage", {"image": "cat.png"}),
        s=("ImageScaleBy", {"image": ["i", 0], "upscale_method": "area", "scale_by": 2.0}),
        p=("PreviewImage", {"images": ["s", 0]}),
    )
    bindings = found(graph)
    assert (bindings.tasks, bindings.output) == (("vary",), "p")


def test_a_picture_behind_a_switch_that_is_off_is_not_taken() -> None:
    graph = edit_graph() | nodes(
        off=("LoadImage", {"image": "dog.png"}),
        w=("ComfySwitchNode", {"switch": False, "on_false": ["i", 0], "on_true": ["off", 0]}),
    )
    graph["s"]["inputs"]["image"] = ["w", 0]
    bindings = found(graph)
    assert bindings.images == (("i", "image"),)
    assert any("Node off loads a picture that has no effect" in note for note in bindings.notes)


def test_a_choice_beside_the_files_is_no_file() -> None:
    graph = sampler_graph(n7={"vae": ["v", 0]}) | nodes(v=("VAELoader", {"vae_name": "pixel_space"}))
    assert ("v", "vae_name") not in found(graph).files


# --- outputs and choices ---


def test_a_node_that_saves_is_the_answer_rather_than_a_preview() -> None:
    graph = sampler_graph() | nodes(a=("PreviewImage", {"images": ["7", 0]}))
    assert found(graph).output == "8"


def test_of_several_nodes_that_save_one_is_assumed_and_that_is_said() -> None:
    graph = sampler_graph() | nodes(n=("SaveImage", {"images": ["7", 0], "filename_prefix": "second"}))
    bindings = found(graph)
    assert bindings.output == "8"
    assert [assumption.option for assumption in bindings.assumptions] == ["--output NODE"]
    assert found(graph, output="n").output == "n"


@pytest.mark.parametrize(
    ("node_class", "inputs", "reason"),
    [
        ("SaveVideo", {"video": ["7", 0], "filename_prefix": "x"}, "makes a video"),
        ("SaveAudio", {"audio": ["7", 0], "filename_prefix": "x"}, "makes sound"),
        ("ImageInvert", {"image": ["7", 0]}, "delivers no picture"),
    ],
)
def test_a_workflow_without_pictures_is_refused_by_what_it_makes(
    node_class: str, inputs: dict[str, Any], reason: str
) -> None:
    graph = sampler_graph() | nodes(v=(node_class, inputs), p=("PreviewImage", {"images": ["7", 0]}))
    del graph["8"]
    if node_class == "ImageInvert":
        del graph["p"]
    with pytest.raises(WorkflowNotImportable, match=reason):
        found(graph)


def test_a_workflow_without_a_prompt_and_a_picture_is_refused_with_the_option() -> None:
    graph = sampler_graph(n6={"positive": ["z", 0]}) | nodes(
        z=("ConditioningZeroOut", {"conditioning": ["4", 0]})
    )
    with pytest.raises(WorkflowNotImportable, match=r"--prompt NODE\.INPUT"):
        found(graph)
    assert places(found(graph, places={"prompt": ("4", "text")}))["prompt"] == (("4", "text"),)


def test_any_input_can_become_a_field() -> None:
    bindings = found(sampler_graph(), exposed={"lora_strength": ("2", "strength_model")})
    assert bindings.fields["lora_strength"].value == 0.5


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (("99", "text"), "no node 99"),
        (("3", "txt"), "no input txt, only text, clip"),
        (("6", "positive"), "computes this value"),
    ],
)
def test_a_place_that_does_not_exist_is_refused(place: tuple[str, str], reason: str) -> None:
    with pytest.raises(WorkflowNotImportable, match=reason):
        found(sampler_graph(), places={"prompt": place})


# --- neither ids, titles nor the order of the file decide ---


def _renamed_and_shuffled(graph: dict[str, Any], seed: int) -> tuple[dict[str, Any], dict[str, str]]:
    chance = random.Random(seed)
    ids = {node: f"node {chance.random()}" for node in graph}
    nodes = list(graph)
    chance.shuffle(nodes)
    renamed: dict[str, Any] = {}
    for node in nodes:
        inputs = {
            name: [ids[value[0]], value[1]] if isinstance(value, list) else value
            for name, value in graph[node]["inputs"].items()
        }
        renamed[ids[node]] = {"class_type": graph[node]["class_type"], "inputs": inputs}
    return renamed, ids


@pytest.mark.parametrize("seed", range(8))
def test_other_ids_and_another_order_of_the_nodes_give_the_same_template_and_entries(seed: int) -> None:
    graph = sampler_graph(n3={"text": ["text", 0]}, n8={"images": ["stitched", 0]})
    for name, picture, side in (("a", "one.png", "right"), ("b", "two.png", "left")):
        graph[name] = {"class_type": "LoadImage", "inputs": {"image": picture}}
        graph[f"look at {name}"] = {"class_type": "PreviewImage", "inputs": {"images": [name, 0]}}
        graph[f"saved {name}"] = {
            "class_type": "SaveImage",
            "inputs": {"filename_prefix": side, "images": [name, 0]},
        }
    graph["text"] = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "a cat"}}
    stitched = {"direction": "right", "match_image_size": True, "spacing_width": 0, "spacing_color": "white"}
    graph["both"] = {
        "class_type": "ImageStitch",
        "inputs": {"image1": ["b", 0], "image2": ["a", 0], **stitched},
    }
    graph["stitched"] = {
        "class_type": "ImageStitch",
        "inputs": {"image1": ["7", 0], "image2": ["both", 0], **stitched},
    }

    def imported(nodes: dict[str, Any]) -> Imported:
        workflow = Workflow(nodes, "API export")
        return import_workflow(workflow, signatures(), name="m", title="M", choices=Choices())

    renamed, ids = _renamed_and_shuffled(graph, seed)
    before, after = imported(graph), imported(renamed)
    assert before.bindings.images == (("b", "image"), ("a", "image"))
    assert after.bindings.images == tuple((ids[node], name) for node, name in before.bindings.images)
    assert (after.template, after.entries) == (before.template, before.entries)
