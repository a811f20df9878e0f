"""What may be written in catalogue.yaml, and what its faults are called."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from compiler import Size, Sources, compile_workflow
from compiler.catalogue_file import parse_catalogue
from errors import CatalogueInvalid
from tests.compiler.worlds import SOURCES, asked, loaded, with_document


def edited(was: str, becomes: str) -> Sources:
    assert SOURCES.catalogue.count(was) >= 1
    return replace(SOURCES, catalogue=SOURCES.catalogue.replace(was, becomes, 1))


def error_of(sources: Sources) -> str:
    with pytest.raises(CatalogueInvalid) as caught:
        loaded(sources)
    return caught.value.message


@pytest.mark.parametrize(
    ("was", "becomes", "path", "words"),
    [
        ("min_vram_gb: 8", "min_vram_gb: eight", "models.sdxl-turbo.min_vram_gb", '"eight" is not allowed; it must be a number'),
        ("disk_gb: 6.94", "disc_gb: 6.94", "models.sdxl-turbo", "disc_gb"),
        ("workflow: sdxl_turbo_simple", "workflow: nope", "models.sdxl-turbo.workflow", "there is"),
        ("default_model: sdxl-turbo", "default_model: nope", "default_model", "is not a model"),
        ("min: 256x256", "min: 256", "models.sdxl-turbo.size.min", "it must be WIDTHxHEIGHT"),
        ("suggested: [512x512]", "suggested: [4096x4096]", "models.sdxl-turbo.size.suggested", "outside"),
        ("default: 512x512", "default: 513x512", "models.sdxl-turbo.size.default", "outside"),
        ("limits: {n: 10, batch: 4}", "limits: {n: 0}", "models.sdxl-turbo.limits.n", "it must be a whole number from 1 to 100"),
        ("limits: {n: 10, batch: 4}", "defaults: {stps: 2}", "models.sdxl-turbo.defaults.stps", "no input 'stps'"),
        ("limits: {n: 10, batch: 4}", "defaults: {steps: 99}", "models.sdxl-turbo.defaults.steps", "from 1 to 10"),
        ("name: sd_xl_turbo_1.0_fp16.safetensors", "name: ../../etc/passwd", "files.checkpoint.name", "not allowed"),
        ("name: sd_xl_turbo_1.0_fp16.safetensors", "name: /etc/passwd", "files.checkpoint.name", "it must be the name of a file"),
        ("sha256: e869", "sha256: E869", "files.checkpoint.sha256", "64 lower-case hexadecimal digits"),
        ("x-choices: KSamplerSelect.sampler_name", "x-choices: KSamplerSelect.nope", "inputs.sampler.x-choices", "nodes.json"),
        ("default: euler_ancestral", "default: nope", "inputs.sampler.default", "it must be one of "),
        ("x-unused-when: {cfg: 1.0}", "x-unused-when: {cgf: 1.0}", "negative_prompt.x-unused-when", "not an input"),
        ("aliases: [sd-1.5,", "aliases: [SDXL-Turbo,", "models.sd-1.5-pruned-emaonly.aliases.0", "already belongs to 'sdxl-turbo'"),
        ("title: SDXL Turbo, its own schedule", "title: x\n    template: gone.json.j2", "workflows.sdxl_turbo_simple.template", "there is no gone.json.j2"),
    ],
)  # fmt: skip
def test_an_error_is_told_with_file_line_and_path(was: str, becomes: str, path: str, words: str) -> None:
    sources = edited(was, becomes)
    message = error_of(sources)
    assert path in message
    assert words in message
    first = message.splitlines()[0]
    assert first.startswith("catalogue.yaml:")
    line = int(first.split(":")[1])
    # The line named is the changed one, or that of the entry which holds it.
    changed = sources.catalogue[: sources.catalogue.index(becomes)].count("\n") + 1
    assert abs(line - changed) <= 2 or "limits" in becomes or "template" in becomes or path.count(".") <= 1


def test_every_error_is_told_at_once() -> None:
    sources = edited("min_vram_gb: 8", "min_vram_gb: eight")
    sources = replace(sources, catalogue=sources.catalogue.replace("min_vram_gb: 4", "min_vram_gb: four", 1))
    assert len(error_of(sources).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "catalogue.yaml:2"),
        ("- 1\n- 2\n", "it must be a mapping"),
        ("", "it must be a mapping"),
        ("default_model: a\ndefault_model: b\n", "given twice"),
        ("a: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
    ],
)
def test_what_is_not_a_catalogue_is_refused(text: str, words: str) -> None:
    assert words in error_of(replace(SOURCES, catalogue=text))


def test_a_model_id_given_twice_is_refused() -> None:
    assert "given twice" in error_of(edited("  flux-schnell-fp8:", "  flux-schnell:"))


def test_an_input_without_any_default_must_get_one_from_the_model() -> None:
    def change(document: Any) -> None:
        del document["workflows"]["sd15_simple"]["inputs"]["steps"]["default"]

    assert "has no default" in error_of(with_document(change))

    def mended(document: Any) -> None:
        change(document)
        document["models"]["sd-1.5-pruned-emaonly"]["defaults"] = {"steps": 12}

    catalogue = loaded(with_document(mended))
    plan = compile_workflow(asked(model="sd-1.5"), catalogue).plan
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


def test_a_fifth_model_and_a_new_workflow_are_added_by_yaml_and_jinja_alone() -> None:
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
    catalogue = loaded(replace(sources, templates=templates))
    assert len(catalogue.models) == 5
    compiled = compile_workflow(
        asked("a dog", model="My-Flux", inputs={"guidance": 4.0}, size=Size(512, 512)), catalogue
    )
    (graph,) = compiled.graphs
    assert graph.nodes["guided"]["inputs"]["guidance"] == 4.0
    assert graph.nodes["text"]["inputs"]["text"] == "a photo of a dog"


def test_the_texts_survive_being_kept() -> None:
    assert Sources.load(SOURCES.dump()) == SOURCES
    assert parse_catalogue(Sources.load(SOURCES.dump())).models == parse_catalogue(SOURCES).models
