"""What catalogue.yaml may contain, and how its errors are reported."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from compiler import Size, Sources, compile_workflow, load_catalogue
from compiler.catalogue_file import parse_catalogue
from compiler.node_records import node_record, without_files
from errors import CatalogueInvalid, ModelNotDrawable
from schemas import located_errors, read_yaml
from tests.compiler.catalogues import CATALOGUE, SOURCES, image_request, with_document


def edited(old: str, new: str) -> Sources:
    assert old in SOURCES.catalogue
    return replace(SOURCES, catalogue=SOURCES.catalogue.replace(old, new, 1))


def error_of(sources: Sources) -> str:
    with pytest.raises(CatalogueInvalid) as caught:
        load_catalogue(sources)
    return caught.value.message


@pytest.mark.parametrize(
    ("old", "new", "path", "expected"),
    [
        ("min_vram_gb: 8", "min_vram_gb: eight", "models.sdxl-turbo.min_vram_gb", '"eight" is not allowed; it must be a number'),
        ("disk_gb: 6.94", "disc_gb: 6.94", "models.sdxl-turbo", "disc_gb"),
        ("workflow: sdxl_turbo_simple", "workflow: nope", "models.sdxl-turbo.workflow", "there is no workflow 'nope'; available: "),
        ("default_model: sdxl-turbo", "default_model: nope", "default_model", "there is no model 'nope'"),
        ("min: 256x256", "min: 256", "models.sdxl-turbo.size.min", "it must be WIDTHxHEIGHT"),
        ("suggested: [512x512]", "suggested: [4096x4096]", "models.sdxl-turbo.size.suggested", "is larger than 1024x1024"),
        ("default: 512x512", "default: 513x512", "models.sdxl-turbo.size.default", "not multiples of 8"),
        ("limits: {n: 10, batch: 4}", "limits: {n: 0}", "models.sdxl-turbo.limits.n", "it must be a whole number from 1 to 100"),
        ("limits: {n: 10, batch: 4}", "defaults: {stps: 2}", "models.sdxl-turbo.defaults.stps", "no input 'stps'"),
        ("limits: {n: 10, batch: 4}", "defaults: {steps: 99}", "models.sdxl-turbo.defaults.steps", "from 1 to 10"),
        ("name: sd_xl_turbo_1.0_fp16.safetensors", "name: ../../etc/passwd", "files.checkpoint.name", "not allowed"),
        ("name: sd_xl_turbo_1.0_fp16.safetensors", "name: /etc/passwd", "files.checkpoint.name", "it must be a path relative to its folder"),
        ("sha256: e869", "sha256: E869", "files.checkpoint.sha256", "64 lower-case hexadecimal digits"),
        ("x-choices: KSamplerSelect.sampler_name", "x-choices: KSamplerSelect.nope", "inputs.sampler.x-choices", "the node KSamplerSelect has no input 'nope' with choices; it has sampler_name. If your ComfyUI has another version of this node, `easel snapshot-nodes URL` learns it"),
        ("default: euler_ancestral", "default: nope", "inputs.sampler.default", "it must be one of "),
        ("x-unused-when: {cfg: 1.0}", "x-unused-when: {cgf: 1.0}", "negative_prompt.x-unused-when", "not an input"),
        ("aliases: [sd-1.5,", "aliases: [SDXL-Turbo,", "models.sd-1.5-pruned-emaonly.aliases.0", "already used by 'sdxl-turbo'"),
    ],
)  # fmt: skip
def test_an_error_is_reported_with_file_line_and_path(old: str, new: str, path: str, expected: str) -> None:
    sources = edited(old, new)
    message = error_of(sources)
    assert path in message
    assert expected in message
    first = message.splitlines()[0]
    assert first.startswith("catalogue.yaml:")
    line = int(first.split(":")[1])
    # The reported line is the changed one, or that of the entry that contains it.
    changed = sources.catalogue[: sources.catalogue.index(new)].count("\n") + 1
    assert abs(line - changed) <= 2 or "limits" in new or path.count(".") <= 1


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "title: SDXL Turbo, its own schedule",
            "title: x\n    template: sdxl_turbo.json.j2",
            "there is no template sdxl_turbo.json.j2; add the file to the folder of the templates, or write "
            "`template: sdxl_turbo_simple.json.j2` under workflows.sdxl_turbo_simple in catalogue.yaml",
        ),
        (
            "title: SDXL Turbo, its own schedule",
            "title: x\n    template: 123.json.j2",
            "or write `template: FILE`, one of flux_",
        ),
        (
            "x-choices: KSamplerSelect.sampler_name",
            "x-choices: My Sampler.sampler_name",
            "inputs.sampler.x-choices: Easel does not know the node My Sampler; "
            "`easel snapshot-nodes URL --node 'My Sampler'` learns it from your ComfyUI",
        ),
        (
            "x-choices: KSamplerSelect.sampler_name",
            "x-choices: KSamplerSelekt.sampler_name",
            "KSamplerSelekt` learns it from your ComfyUI, or write KSamplerSelect in its place",
        ),
    ],
)
def test_a_workflow_without_its_template_or_with_an_unknown_node_only_stops_its_own_models(
    old: str, new: str, expected: str
) -> None:
    catalogue = load_catalogue(edited(old, new))
    assert list(catalogue.undrawable) == ["sdxl-turbo"]
    tasks = catalogue.undrawable["sdxl-turbo"]
    assert set(tasks) == {"generate", "edit", "inpaint", "vary"}
    for (fault,) in tasks.values():
        assert expected in fault
    compile_workflow(image_request(model="sd-1.5"), catalogue)
    with pytest.raises(ModelNotDrawable, match="until its workflow is corrected"):
        compile_workflow(image_request(model="sdxl-turbo"), catalogue)


def test_one_missing_template_of_a_model_with_two_workflows_leaves_its_other_tasks_drawable() -> None:
    def change(document: Any) -> None:
        like = document["workflows"]["sd15_simple"]
        document["workflows"]["gone"] = {**like, "tasks": ["edit"]}
        document["models"]["sd-1.5-pruned-emaonly"]["workflow"] = {"generate": "sd15_simple", "edit": "gone"}

    undrawable = load_catalogue(with_document(change)).undrawable
    assert {model: list(tasks) for model, tasks in undrawable.items()} == {"sd-1.5-pruned-emaonly": ["edit"]}


def test_a_folder_without_templates_is_an_error_of_the_whole_catalogue() -> None:
    assert "the folder of the templates has no file" in error_of(replace(SOURCES, templates={}))


def test_a_learned_node_makes_the_models_with_its_choices_drawable() -> None:
    sources = edited("x-choices: KSamplerSelect.sampler_name", "x-choices: Mine.sampler_name")
    choices = CATALOGUE.signatures["KSamplerSelect"].inputs["sampler_name"].choices
    entry = {"input": {"required": {"sampler_name": [list(choices or ())]}}, "output": ["SAMPLER"]}
    learned = {"versions": {"0.99.0": {"Mine": node_record(entry)}}}
    assert load_catalogue(sources).undrawable
    assert load_catalogue(replace(sources, learned_nodes=json.dumps(learned))).undrawable == {}


def test_all_errors_are_reported_together() -> None:
    sources = edited("min_vram_gb: 8", "min_vram_gb: eight")
    sources = replace(sources, catalogue=sources.catalogue.replace("min_vram_gb: 4", "min_vram_gb: four", 1))
    assert len(error_of(sources).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "catalogue.yaml:2"),
        ("- 1\n- 2\n", "it must be an object"),
        ("", "it must be an object"),
        ("default_model: a\ndefault_model: b\n", "given twice"),
        ("a: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
    ],
)
def test_a_document_that_is_not_a_catalogue_is_refused(text: str, message: str) -> None:
    assert message in error_of(replace(SOURCES, catalogue=text))


@pytest.mark.parametrize("name", ["model", "size", "n", "quality", "negativePrompt", "prompt", "Steps", "_x"])
def test_a_name_that_no_input_can_have_is_refused_with_the_names_that_are_taken(name: str) -> None:
    def change(document: Any) -> None:
        document["workflows"]["sd15_simple"]["inputs"][name] = {"type": "string", "default": ""}

    message = error_of(with_document(change))
    assert f'"{name}" is not allowed; it must be lower-case letters, digits and _, such as' in message
    assert "should not be valid" not in message


@pytest.mark.parametrize("key", ["1.5", "yes", "2024-01-31"])
@pytest.mark.parametrize("old", ["  sdxl-turbo:", "  lcm-sd-1.5:", "      steps:", "{low:"])
def test_a_key_that_is_not_text_is_refused_with_file_line_and_remedy(key: str, old: str) -> None:
    new = old[: len(old) - len(old.lstrip(" {"))] + f"{key}:"
    sources = edited(old, new)
    line = sources.catalogue[: sources.catalogue.index(new)].count("\n") + 1
    message = error_of(sources)
    assert message.startswith(f"catalogue.yaml:{line}: ")
    assert f'write it in quotes: "{key}"' in message


def test_a_missing_key_of_a_model_or_workflow_is_reported_with_an_example_that_is_valid() -> None:
    schema = json.loads(SOURCES.catalogue_schema)
    for kind, entry in (("models", "sdxl-turbo"), ("workflows", "sd15_simple")):
        for key in schema["$defs"][kind.removesuffix("s")]["required"]:

            def remove(document: Any, kind: str = kind, entry: str = entry, key: str = key) -> None:
                del document[kind][entry][key]

            message = error_of(with_document(remove))
            example = re.search(f"{kind}.{entry}: `{key}` is missing; for example `(.*)`", message)
            assert example, message
            properties = schema["$defs"][kind.removesuffix("s")]["properties"]
            rule = {**schema, "properties": properties, "required": [], "type": "object"}
            assert list(located_errors(Draft202012Validator(rule), read_yaml(example[1]))) == []


# --- files and nodes -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SD\\x.safetensors", "SD/x.safetensors", '"SD\\\\x.safetensors"'])
def test_both_slashes_in_a_file_name_mean_a_folder(name: str) -> None:
    catalogue = load_catalogue(edited("name: sd_xl_turbo_1.0_fp16.safetensors", f"name: {name}"))
    assert catalogue.models["sdxl-turbo"].files["checkpoint"].name == "SD/x.safetensors"
    lora = load_catalogue(edited("name: lcm-lora-sdv1-5.safetensors", f"name: {name}")).loras["lcm-sd-1.5"]
    assert lora.file.name == "SD/x.safetensors"


@pytest.mark.parametrize("name", ["..\\x", "a\\..\\x", "\\x", "C:\\x", "c:/x", '"a\\nb"', "a/../x", '""'])
def test_a_file_name_that_leads_out_of_its_folder_is_refused(name: str) -> None:
    assert "files.checkpoint.name" in error_of(
        edited("name: sd_xl_turbo_1.0_fp16.safetensors", f"name: {name}")
    )


@pytest.mark.parametrize("folder", ["LLM", "ultralytics/bbox", "unet_gguf", "SEEDVR2", "a.b-c"])
def test_a_file_may_be_in_any_folder_of_comfyui(folder: str) -> None:
    load_catalogue(edited("folder: checkpoints", f"folder: {folder}"))


@pytest.mark.parametrize("folder", ["../x", "/x", "a//b", "a\\b", '""'])
def test_a_folder_outside_comfyui_is_refused(folder: str) -> None:
    assert "files.checkpoint.folder" in error_of(edited("folder: checkpoints", f"folder: {folder}"))


LOADER = {
    "input": {"required": {"weights": [["a.gguf"]], "mode": [["x"]]}},
    "output": ["MODEL"],
    "output_node": True,
}


def test_the_catalogue_completes_what_comfyui_says_about_custom_nodes() -> None:
    learned = {"versions": {"0.99.0": {"My Loader": without_files(node_record(LOADER))}}}
    facts = "{My Loader: {files: {weights: my_weights}, more_inputs: true, any_value: [mode]}, Unknown: {more_inputs: true}}"
    sources = replace(
        SOURCES, learned_nodes=json.dumps(learned), catalogue=f"{SOURCES.catalogue}\nnodes: {facts}\n"
    )
    signature = load_catalogue(sources).signatures["My Loader"]
    assert (signature.inputs["weights"].folder, signature.more_inputs) == ("my_weights", True)
    assert signature.inputs["mode"].choices is None


def test_facts_of_the_catalogue_are_added_to_the_shipped_ones() -> None:
    sources = replace(
        SOURCES, catalogue=f"{SOURCES.catalogue}\nnodes: {{VAELoader: {{more_inputs: true}}}}\n"
    )
    signature = load_catalogue(sources).signatures["VAELoader"]
    assert (signature.inputs["vae_name"].folder, signature.more_inputs) == ("vae", True)


@pytest.mark.parametrize(
    ("facts", "message"),
    [("{A: {more_input: true}}", "unknown key more_input"), ("{A: true}", "for example more_inputs: true"), ("{1: {more_inputs: true}}", 'in quotes: "1"')],
)  # fmt: skip
def test_wrong_facts_are_refused_with_what_to_write(facts: str, message: str) -> None:
    assert message in error_of(replace(SOURCES, catalogue=f"{SOURCES.catalogue}\nnodes: {facts}\n"))


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"versions": []}', '{"versions": {"1": {"A": {}}}}', '{"versions": {"1": {"A": {"inputs": {"x": {}}, "outputs": []}}}}']
)  # fmt: skip
def test_damaged_learned_nodes_are_refused_with_the_remedy(text: str) -> None:
    assert "Delete it and run `easel snapshot-nodes URL` again" in error_of(
        replace(SOURCES, learned_nodes=text)
    )


def test_a_model_id_given_twice_is_refused() -> None:
    assert "given twice" in error_of(edited("  flux-schnell-fp8:", "  flux-schnell:"))


def test_a_model_must_set_the_default_of_an_input_that_has_none() -> None:
    def remove_default(document: Any) -> None:
        del document["workflows"]["sd15_simple"]["inputs"]["steps"]["default"]

    assert "has no default" in error_of(with_document(remove_default))

    def move_default(document: Any) -> None:
        remove_default(document)
        document["models"]["sd-1.5-pruned-emaonly"]["defaults"] = {"steps": 12}

    catalogue = load_catalogue(with_document(move_default))
    plan = compile_workflow(image_request(model="sd-1.5"), catalogue).plan
    assert (plan.values["steps"].value, plan.values["steps"].origin) == (12, "model")


NEW_WORKFLOW = """{
  "unet": {"class_type": "UNETLoader", "inputs": {"unet_name": {{ files.diffusion_model }}, "weight_dtype": "default"}},
  "clip": {"class_type": "DualCLIPLoader", "inputs": {"clip_name1": {{ files.clip_l }}, "clip_name2": {{ files.t5xxl }}, "type": "flux"}},
  "vae": {"class_type": "VAELoader", "inputs": {"vae_name": {{ files.vae }}}},
  "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": {{ "a photo of " ~ prompt }}}},
  "guided": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["text", 0], "guidance": {{ guidance }}}},
  "guider": {"class_type": "BasicGuider", "inputs": {"model": ["unet", 0], "conditioning": ["guided", 0]}},
  "noise": {"class_type": "RandomNoise", "inputs": {"noise_seed": {{ seed }}}},
  "kind": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": {{ sampler }}}},
  "sigmas": {"class_type": "BasicScheduler", "inputs": {"model": ["unet", 0], "scheduler": "simple", "steps": {{ steps }}, "denoise": 1.0}},
  "latent": {"class_type": "EmptySD3LatentImage", "inputs": {"width": {{ width }}, "height": {{ height }}, "batch_size": {{ batch }}}},
  "sample": {"class_type": "SamplerCustomAdvanced", "inputs": {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["kind", 0], "sigmas": ["sigmas", 0], "latent_image": ["latent", 0]}},
  "decoded": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["vae", 0]}},
  "picture": {"class_type": "SaveImage", "inputs": {"images": ["decoded", 0], "filename_prefix": {{ prefix }}}}
}
"""


def test_a_model_and_a_workflow_can_be_added_with_yaml_and_jinja_only() -> None:
    def change(document: Any) -> None:
        document["workflows"]["flux_dev"] = {
            "title": "FLUX.1 [dev]",
            "tasks": ["generate"],
            "inputs": {
                "steps": {"type": "integer", "minimum": 1, "maximum": 50, "default": 20},
                "guidance": {"type": "number", "minimum": 0, "maximum": 100, "default": 3.5},
                "sampler": {"type": "string", "x-choices": "KSamplerSelect.sampler_name", "default": "euler"},
            },
        }
        document["models"]["flux-dev"] = {
            **document["models"]["flux-schnell"],
            "title": "FLUX.1 [dev]",
            "workflow": "flux_dev",
            "defaults": {"guidance": 3.0},
            "aliases": ["my-flux"],
        }

    sources = with_document(change)
    templates = {**sources.templates, "flux_dev.json.j2": NEW_WORKFLOW}
    catalogue = load_catalogue(replace(sources, templates=templates))
    assert len(catalogue.models) == len(CATALOGUE.models) + 1
    compiled = compile_workflow(
        image_request("a dog", model="My-Flux", inputs={"guidance": 4.0}, size=Size(512, 512)), catalogue
    )
    (graph,) = compiled.graphs
    assert graph.nodes["guided"]["inputs"]["guidance"] == 4.0
    assert graph.nodes["text"]["inputs"]["text"] == "a photo of a dog"


def test_sources_can_be_dumped_and_loaded() -> None:
    assert Sources.load(SOURCES.dump()) == SOURCES
    assert parse_catalogue(Sources.load(SOURCES.dump())).models == parse_catalogue(SOURCES).models


def test_models_with_the_same_sizes_share_them_so_that_large_catalogues_stay_small() -> None:
    catalogue = load_catalogue(SOURCES)
    rules = [model.size for model in catalogue.models.values()]
    sizes = [size for rule in rules for size in (rule.default, rule.min, rule.max, *rule.suggested)]
    assert len({id(size) for size in sizes}) == len(set(sizes)) < len(sizes)
