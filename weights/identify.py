"""What a file of weights is, from the names and shapes of its tensors. Pure. Each family has tensors that no other has; what
tensors do not tell, such as whether SDXL is Turbo, is taken from the name of the file or left open, and said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from weights.header import Header

Kind = Literal["checkpoint", "diffusion_model", "lora", "text_encoder", "vae", "controlnet", "unknown"]
Tensors = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Identity:
    """`family`: as the catalogue names it; empty if it is not known. `variant`: which workflow of the family draws it, such
    as `dev`, or which text encoder it is; empty if there is only one. `open`: what the tensors do not tell. `unsupported`:
    why no workflow draws it."""

    kind: Kind
    family: str = ""
    variant: str = ""
    open: str = ""
    unsupported: str = ""


_CHECKPOINT_PREFIX = "model.diffusion_model."
_OTHER_PARTS = ("first_stage_model.", "vae.", "cond_stage_model.", "conditioner.", "text_encoders.")


def identify(header: Header, name: str) -> Identity:
    """What the file `name` with this head is."""
    tensors = header.tensors
    if any(".lora_down." in key or ".lora_A." in key or key.endswith(".lora_up.weight") for key in tensors):
        return Identity("lora", _lora_family(header))
    if _text_encoder(tensors):
        return Identity("text_encoder", variant=_encoder_variant(tensors))
    if _is_vae(tensors):
        return Identity("vae")
    prefix = _prefix(tensors)
    model = {key.removeprefix(prefix): shape for key, shape in tensors.items() if key.startswith(prefix)}
    if prefix != _CHECKPOINT_PREFIX and any(key.startswith(("zero_convs.", "controlnet_")) for key in model):
        return Identity("controlnet", unsupported="a ControlNet needs a workflow that uses it")
    is_whole = prefix == _CHECKPOINT_PREFIX and any(key.startswith(_OTHER_PARTS) for key in tensors)
    kind: Kind = "checkpoint" if is_whole else "diffusion_model"
    for family in _FAMILIES:
        if (found := family(model, name.casefold())) is not None:
            variant = found.variant
            if found.family == "SD 3" and is_whole and not _has(tensors, "text_encoders."):
                variant = "without-text-encoders"
            return Identity(kind, found.family, variant, found.open, found.unsupported)
    return Identity("checkpoint" if is_whole else "unknown")


def _prefix(tensors: Tensors) -> str:
    for prefix in (_CHECKPOINT_PREFIX, "diffusion_model.", "net."):
        if any(key.startswith(prefix) for key in tensors):
            return prefix
    return ""


@dataclass(frozen=True)
class _Found:
    family: str
    variant: str = ""
    open: str = ""
    unsupported: str = ""


def _side(tensors: Tensors, name: str, index: int) -> int:
    """The size of one side of a tensor; 0 if there is none."""
    shape = tensors.get(name, ())
    return shape[index] if index < len(shape) else 0


def _has(tensors: Tensors, start: str) -> bool:
    return any(key.startswith(start) for key in tensors)


def _unet(model: Tensors, name: str) -> _Found | None:
    """Stable Diffusion 1.x, 2.x and XL: how wide the text is tells them apart."""
    channels = _side(model, "input_blocks.0.0.weight", 1)
    if not channels:
        return None
    texts = [
        shape[1] for key, shape in model.items() if key.endswith(".attn2.to_k.weight") and len(shape) == 2
    ]
    if not texts:
        return None
    family = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "SDXL refiner"}.get(texts[0], "")
    if family == "SDXL refiner":
        return _Found("SDXL", unsupported="the SDXL refiner draws only the last steps of another model")
    if not family:
        return None
    if channels == 9:
        if family == "SD 1.x":
            return _Found(family, "inpaint")
        return _Found(family, unsupported="no workflow here draws inpainting models of this family")
    if channels != 4:
        return _Found(family, unsupported=f"its input has {channels} channels, which no workflow here has")
    if family == "SDXL":
        variant = "turbo" if "turbo" in name else "lightning" if "lightning" in name else ""
        return _Found(family, variant, "base, Turbo and Lightning have the same tensors")
    if family == "SD 2.x":
        return _Found(family, "turbo" if "turbo" in name else "", "2.x and SD Turbo have the same tensors")
    return _Found(family)


def _sd3(model: Tensors, name: str) -> _Found | None:
    return _Found("SD 3") if "joint_blocks.0.context_block.attn.qkv.weight" in model else None


def _flux(model: Tensors, name: str) -> _Found | None:
    if not _has(model, "double_blocks.0.img_attn.norm.key_norm.") or _has(
        model, "txt_in.individual_token_refiner."
    ):
        return None
    if "double_stream_modulation_img.lin.weight" in model:
        if _has(model, "guidance_in."):
            return _Found("FLUX.2", "dev")
        size = {7680: "klein-4b", 12288: "klein-9b"}.get(_side(model, "txt_in.weight", 1))
        if size is None:
            return _Found("FLUX.2", unsupported="its text encoder is not known")
        variant = f"{size}-base" if "base" in name else size
        return _Found("FLUX.2", variant, "klein and klein base have the same tensors")
    if _has(model, "distilled_guidance_layer."):
        if _has(model, "nerf_blocks."):
            return _Found("Chroma", unsupported="no workflow here draws Chroma Radiance")
        return _Found("Chroma")
    if "double_blocks.0.img_mlp.gate_proj.weight" in model:
        return _Found("Ovis-Image")
    if _side(model, "txt_in.weight", 1) == 3584 and not _has(model, "vector_in."):
        return _Found("LongCat-Image")
    channels = _side(model, "img_in.weight", 1)
    if channels == 384:
        return _Found("FLUX.1", "fill")
    if channels != 64:
        return _Found("FLUX.1", unsupported=f"its input has {channels} channels, which no workflow here has")
    if not _has(model, "guidance_in."):
        return _Found("FLUX.1", "schnell")
    variant = "kontext" if "kontext" in name else "dev"
    return _Found("FLUX.1", variant, "dev, Krea and Kontext have the same tensors")


def _lumina(model: Tensors, name: str) -> _Found | None:
    if "noise_refiner.0.attention.k_norm.weight" not in model:
        return None
    width = _side(model, "cap_embedder.1.weight", 0)
    if width == 2304:
        return _Found("NewBie" if _has(model, "clip_text_pooled_proj.") else "Lumina 2")
    if width != 3840:
        return None
    if _has(model, "dec_net."):
        return _Found("Z-Image", unsupported="no workflow here draws the form that has no VAE")
    return _Found(
        "Z-Image", "turbo" if "turbo" in name else "base", "Z-Image and Turbo have the same tensors"
    )


def _qwen(model: Tensors, name: str) -> _Found | None:
    if _side(model, "txt_norm.weight", 0) != 3584 or not _has(model, "transformer_blocks.0."):
        return None
    if "time_text_embed.addition_t_embedding.weight" in model:
        return _Found("Qwen-Image", unsupported="no workflow here draws Qwen-Image-Layered")
    if "__index_timestep_zero__" in model:
        return _Found("Qwen-Image-Edit", "2511")
    told = "Qwen-Image and the older Qwen-Image-Edit have the same tensors"
    if "2511" in name and "edit" in name:
        return _Found("Qwen-Image-Edit", "2511", told)
    return _Found("Qwen-Image-Edit", "2509", told) if "edit" in name else _Found("Qwen-Image", "", told)


def _by_tensor(tensor: str, family: str, unsupported: str = "") -> Callable[[Tensors, str], _Found | None]:
    def find(model: Tensors, name: str) -> _Found | None:
        return _Found(family, unsupported=unsupported) if tensor in model else None

    return find


def _hidream(model: Tensors, name: str) -> _Found | None:
    if "caption_projection.0.linear.weight" not in model:
        return None
    variant = next((each for each in ("fast", "dev") if each in name), "full")
    return _Found("HiDream", variant, "full, dev and fast have the same tensors")


def _kandinsky(model: Tensors, name: str) -> _Found | None:
    if "visual_transformer_blocks.0.cross_attention.key_norm.weight" not in model:
        return None
    if _side(model, "visual_embeddings.in_layer.bias", 0) == 2560:
        return _Found("Kandinsky")
    return _Found("Kandinsky", unsupported="it draws video")


_FAMILIES: tuple[Callable[[Tensors, str], _Found | None], ...] = (
    _unet,
    _sd3,
    _flux,
    _lumina,
    _qwen,
    _hidream,
    _kandinsky,
    _by_tensor("txtfusion.projector.weight", "Krea 2"),
    _by_tensor("t_block.1.weight", "PixArt", "no workflow here draws PixArt"),
    _by_tensor("llm_adapter.blocks.0.cross_attn.q_proj.weight", "Anima"),
    _by_tensor("double_stream_layers.0.img_instruct_attn.processor.img_to_q.weight", "Boogu Image"),
    _by_tensor("time_caption_embed.timestep_embedder.linear_1.bias", "OmniGen2"),
    _by_tensor("head.modulation", "Wan", "it draws video"),
)


# --- the other kinds ------------------------------------------------------------------------------------

_ARCHITECTURES = {
    "stable-diffusion-v1": "SD 1.x",
    "sd_v1": "SD 1.x",
    "stable-diffusion-v2": "SD 2.x",
    "sd_v2": "SD 2.x",
    "stable-diffusion-xl": "SDXL",
    "sdxl": "SDXL",
    "stable-diffusion-3": "SD 3",
    "flux-1": "FLUX.1",
    "flux1": "FLUX.1",
    "qwen-image-edit": "Qwen-Image-Edit",
    "qwen-image": "Qwen-Image",
    "z-image": "Z-Image",
}
"""How metadata begins that names a model -> the family"""


def family_of_metadata(metadata: Mapping[str, str]) -> str:
    """The family that metadata of a LoRA or checkpoint names; empty if it names none."""
    for key in ("modelspec.architecture", "ss_base_model_version"):
        value = metadata.get(key, "").casefold()
        for start, family in _ARCHITECTURES.items():
            if value.startswith(start):
                return family
    return ""


def _lora_family(header: Header) -> str:
    if family := family_of_metadata(header.metadata):
        return family
    tensors = header.tensors
    down = {key: shape for key, shape in tensors.items() if "lora_down" in key or ".lora_A." in key}
    for key, shape in down.items():
        if "attn2_to_k" in key or "attn2.to_k" in key:
            width = shape[1] if len(shape) > 1 else 0
            return {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}.get(width, "")
    widths = {shape[1] for shape in down.values() if len(shape) > 1}
    if any("single_transformer_blocks" in key or "double_blocks" in key for key in down):
        return "FLUX.2" if 6144 in widths and 3072 not in widths else "FLUX.1" if 3072 in widths else ""
    if any("add_q_proj" in key or "img_mlp" in key for key in down) and 3072 in widths:
        return "Qwen-Image"
    if any("layers" in key and "attention" in key for key in down) and 3840 in widths:
        return "Z-Image"
    return ""


def _text_encoder(tensors: Tensors) -> bool:
    return any(
        name in tensors
        for name in (
            "text_model.encoder.layers.0.mlp.fc1.weight",
            "encoder.block.0.layer.0.SelfAttention.k.weight",
            "model.layers.0.post_attention_layernorm.weight",
            "model.encoder.layers.0.mixer.Wqkv.weight",
            "layers.0.self_attn.sinks",
        )
    )


def _encoder_variant(tensors: Tensors) -> str:
    """Which text encoder it is, if its shapes tell: those of T5 decide by the width, those of CLIP too."""
    clip = {768: "clip_l", 1280: "clip_g"}.get(
        _side(tensors, "text_model.encoder.layers.0.mlp.fc1.weight", 1)
    )
    if clip is not None:
        layers = {"clip_l": 12, "clip_g": 32}[clip]
        last = f"text_model.encoder.layers.{layers - 1}.mlp.fc1.weight"
        return (
            clip
            if last in tensors and f"text_model.encoder.layers.{layers}.mlp.fc1.weight" not in tensors
            else ""
        )
    is_t5 = "encoder.block.23.layer.0.SelfAttention.k.weight" in tensors
    return (
        "t5xxl"
        if is_t5 and _side(tensors, "encoder.block.0.layer.0.SelfAttention.k.weight", 1) == 4096
        else ""
    )


def _is_vae(tensors: Tensors) -> bool:
    names = (
        "decoder.conv_in.weight",
        "decoder.conv1.weight",
        "taesd_decoder.1.weight",
        "decoder.middle.0.residual.0.gamma",
    )
    return any(name in tensors for name in names) and not _has(tensors, _CHECKPOINT_PREFIX)


_KINDS: Mapping[str, Kind] = {
    "checkpoints": "checkpoint",
    "diffusion_models": "diffusion_model",
    "loras": "lora",
    "text_encoders": "text_encoder",
    "vae": "vae",
}


def identify_by_metadata(metadata: Mapping[str, str], folder: str, name: str) -> Identity:
    """What a file is whose tensors cannot be seen: its folder tells the kind, its metadata the family."""
    kind, family = _KINDS.get(folder, "unknown"), family_of_metadata(metadata)
    said = f"{metadata.get('modelspec.architecture', '')} {name}".casefold()
    if kind in ("lora", "text_encoder", "vae") or not family:
        return Identity(kind, family)
    for word, why in (
        ("refiner", "the SDXL refiner draws only the last steps"),
        ("inpaint", "it is for inpainting"),
    ):
        if word in said and family != "SD 1.x":
            return Identity(kind, family, unsupported=why)
    variants = _VARIANTS.get(family, ("",))
    variant = next((each for each in variants[:-1] if each in said), variants[-1])
    return Identity(kind, family, variant, "only its metadata and its name tell what it is")


_VARIANTS = {
    "SD 1.x": ("inpaint", ""),
    "SD 2.x": ("turbo", ""),
    "SDXL": ("turbo", "lightning", ""),
    "FLUX.1": ("schnell", "kontext", "fill", "dev"),
    "Qwen-Image-Edit": ("2511", "2509"),
    "Z-Image": ("turbo", "base"),
}
"""Words for the variants of a family; the last one is meant without a word"""
