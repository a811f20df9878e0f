"""Files of weights are found and recognized from their heads, whatever else lies in the folder."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from schemas import load_yaml
from tests.weights.heads import CHECKPOINT_PARTS, FLUX, FLUX2, QWEN, UNET, write_weights
from weights import Header, HeaderInvalid, identify, identify_by_metadata, read_header, scan_models

GUIDANCE = {"guidance_in.in_layer.weight": (3072, 256)}
LUMINA = {"noise_refiner.0.attention.k_norm.weight": (128,)}


def checkpoint(model: Mapping[str, tuple[int, ...]], *parts: str) -> dict[str, tuple[int, ...]]:
    whole = {f"model.diffusion_model.{name}": shape for name, shape in model.items()}
    return {**whole, **{f"{part}weight": (1,) for part in parts or CHECKPOINT_PARTS}}


@pytest.mark.parametrize(
    ("tensors", "name", "expected"),
    [
        (checkpoint(UNET(768)), "x", ("checkpoint", "SD 1.x", "")),
        (checkpoint(UNET(768, channels=9)), "x", ("checkpoint", "SD 1.x", "inpaint")),
        (checkpoint(UNET(1024)), "x", ("checkpoint", "SD 2.x", "")),
        (checkpoint(UNET(2048)), "x", ("checkpoint", "SDXL", "")),
        (checkpoint(UNET(2048)), "myTurboMix", ("checkpoint", "SDXL", "turbo")),
        (checkpoint({"joint_blocks.0.context_block.attn.qkv.weight": (1, 1)}), "x",
         ("checkpoint", "SD 3", "without-text-encoders")),
        (checkpoint({"joint_blocks.0.context_block.attn.qkv.weight": (1, 1)}, "text_encoders."), "x",
         ("checkpoint", "SD 3", "")),
        (FLUX(), "x", ("diffusion_model", "FLUX.1", "schnell")),
        ({**FLUX(), **GUIDANCE}, "x", ("diffusion_model", "FLUX.1", "dev")),
        ({**FLUX(384), **GUIDANCE}, "x", ("diffusion_model", "FLUX.1", "fill")),
        (checkpoint({**FLUX(), **GUIDANCE}), "x", ("checkpoint", "FLUX.1", "dev")),
        ({**FLUX(), "distilled_guidance_layer.norms.0.scale": (5120,)}, "x", ("diffusion_model", "Chroma", "")),
        ({**FLUX2(15360), **GUIDANCE}, "x", ("diffusion_model", "FLUX.2", "dev")),
        (FLUX2(7680), "x", ("diffusion_model", "FLUX.2", "klein-4b")),
        (FLUX2(12288), "x-base", ("diffusion_model", "FLUX.2", "klein-9b-base")),
        (QWEN, "x", ("diffusion_model", "Qwen-Image", "")),
        ({**QWEN, "__index_timestep_zero__": (0,)}, "x", ("diffusion_model", "Qwen-Image-Edit", "2511")),
        ({**LUMINA, "cap_embedder.1.weight": (3840, 2560)}, "x", ("diffusion_model", "Z-Image", "base")),
        ({**LUMINA, "cap_embedder.1.weight": (2304, 2304)}, "x", ("diffusion_model", "Lumina 2", "")),
        ({"caption_projection.0.linear.weight": (1, 1)}, "x-dev", ("diffusion_model", "HiDream", "dev")),
        ({"t_block.1.weight": (1, 1)}, "x", ("diffusion_model", "PixArt", "")),
        ({"taesd_decoder.1.weight": (64, 4, 3, 3)}, "x", ("vae", "", "")),
        ({"encoder.block.0.layer.0.SelfAttention.k.weight": (1, 1)}, "x", ("text_encoder", "", "")),
        ({"lora_unet_down_attn2_to_k.lora_down.weight": (4, 2048)}, "x", ("lora", "SDXL", "")),
        ({"a.single_transformer_blocks.0.lora_A.weight": (4, 3072)}, "x", ("lora", "FLUX.1", "")),
        ({"anything": (1,)}, "x", ("unknown", "", "")),
    ],
)  # fmt: skip
def test_tensors_tell_what_a_file_is(
    tensors: Mapping[str, tuple[int, ...]], name: str, expected: tuple[str, str, str]
) -> None:
    found = identify(Header(tensors), name)
    assert (found.kind, found.family, found.variant) == expected


def test_metadata_tells_the_family_of_a_lora() -> None:
    header = Header({"x.lora_down.weight": (1, 1)}, {"ss_base_model_version": "sdxl_base_v1-0"})
    assert identify(header, "x").family == "SDXL"


def test_families_without_a_workflow_say_so() -> None:
    for tensors in (
        checkpoint(UNET(1280)),
        checkpoint(UNET(2048, channels=9)),
        FLUX(128),
        {"head.modulation": (1,)},
    ):
        assert identify(Header(tensors), "x").unsupported


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2], **changes}}


def raw(content: bytes, length: int | None = None, data: bytes = b"\0\0") -> bytes:
    return struct.pack("<Q", len(content) if length is None else length) + content + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        raw(b"{}"),
        raw(b"[]"),
        raw(b"null"),
        raw(b"{" * 100_000),
        raw(b"\xff\xfe"),
        raw(b'{"a": 1}'),
        raw(b'{"__metadata__": 7, "a": 1}'),
        raw(json.dumps(entry(shape=[-1])).encode()),
        raw(json.dumps(entry(shape="1")).encode()),
        raw(json.dumps(entry(shape=[True])).encode()),
        raw(json.dumps(entry(shape=[1e400])).encode()),
        raw(json.dumps(entry(shape=[1] * 1000)).encode()),
        raw(json.dumps(entry(data_offsets=[2, 0])).encode()),
        raw(json.dumps(entry(data_offsets=[0, 10**30])).encode()),
        raw(json.dumps(entry()).encode(), data=b"\0"),
        raw(b"{}", length=2**63),
        raw(b"{}", length=1000),
        b"PK\x03\x04" + b"\0" * 100,
        b"\x80\x02cos\nsystem\nq\x00." * 5,
    ],
)
def test_nonsense_and_truncated_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(HeaderInvalid):
        read_header(tmp_path / "x.safetensors")


def test_a_head_of_100_mb_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_000))
        file.truncate(200_000_000)
    with pytest.raises(HeaderInvalid, match="at most 32000000"):
        read_header(path)


def test_a_pipe_is_refused_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(HeaderInvalid):
        read_header(tmp_path / "x.safetensors")
    (tmp_path / "checkpoints").mkdir()
    os.rename(tmp_path / "x.safetensors", tmp_path / "checkpoints/x.safetensors")
    assert scan_models(tmp_path).files == []


def test_a_scan_survives_loops_dead_links_odd_names_and_unreadable_folders(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    write_weights(folder / "sub/näme (1).safetensors", UNET(768))
    (folder / "loop").symlink_to(folder)
    (folder / "sub/up").symlink_to(tmp_path)
    (folder / "dead.safetensors").symlink_to(tmp_path / "gone")
    (folder / "notes.txt").write_text("")
    (folder / os.fsdecode(b"bad\xff.safetensors")).write_bytes(b"")
    (folder / "new\nline.safetensors").write_bytes(b"")
    write_weights(tmp_path / "unet/x.safetensors", FLUX())
    scan = scan_models(tmp_path)
    names = {(file.folder, file.name) for file in scan.files}
    assert ("checkpoints", "sub/näme (1).safetensors") in names
    assert ("diffusion_models", "x.safetensors") in names
    assert len(scan.unreadable) == 2
    assert all(text.isprintable() for text in scan.unreadable)


def test_a_thousand_files_of_seven_gigabytes_take_seconds(tmp_path: Path) -> None:
    for number in range(1000):
        write_weights(
            tmp_path / f"checkpoints/{number}.safetensors", checkpoint(UNET(2048)), size=7_000_000_000
        )
    started = time.monotonic()
    scan = scan_models(tmp_path)
    families = {identify(read_header(file.path), file.name).family for file in scan.files}
    assert (len(scan.files), families) == (1000, {"SDXL"})
    assert time.monotonic() - started < 10


def test_every_variant_that_can_be_recognized_has_a_model_or_none_of_its_family_has() -> None:
    from compiler import SourcePaths, read_sources
    from compiler.catalogue_file import parse_catalogue
    from tests.conftest import NODES, ROOT

    paths = SourcePaths(ROOT / "catalogue.yaml", ROOT / "templates_wf", NODES.parent)
    models = parse_catalogue(read_sources(paths)).models
    for kind, families in load_yaml("adopted_families").items():
        for family, variants in families.items():
            for variant, name in variants.items():
                assert models[name].family == family, (family, variant)
                assert kind in models[name].files, (family, variant)


@pytest.mark.parametrize(
    ("metadata", "folder", "name", "expected"),
    [
        ("stable-diffusion-xl-v1-base", "checkpoints", "x", ("checkpoint", "SDXL", "")),
        ("stable-diffusion-xl-v1-base", "checkpoints", "x-turbo", ("checkpoint", "SDXL", "turbo")),
        ("flux-1-schnell", "diffusion_models", "x", ("diffusion_model", "FLUX.1", "schnell")),
        ("stable-diffusion-xl-v1-base/lora", "loras", "x", ("lora", "SDXL", "")),
        ("", "checkpoints", "x", ("checkpoint", "", "")),
    ],
)
def test_metadata_alone_tells_the_family_of_some_files(
    metadata: str, folder: str, name: str, expected: tuple[str, str, str]
) -> None:
    found = identify_by_metadata({"modelspec.architecture": metadata}, folder, name)
    assert (found.kind, found.family, found.variant) == expected
