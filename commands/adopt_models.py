"""What easel adopt-models does: finds files, recognizes them, proves and writes entries for those that are new."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from atomic_file import create_atomic
from commands.context import services
from compiler import Catalogue, Licence, Model, load_catalogue, read_sources
from compiler.catalogue import File
from engine import Engine
from errors import InvalidValue, StoreUnwritable
from generation import listed_choices
from importer.adopted_entries import adopted_lora, adopted_model, free_name, main_role, takes_loras
from importer.write_entries import entries_text
from schemas import load_yaml
from schemas.modeline import modeline
from weights import (
    FoundFile,
    HeaderInvalid,
    Identity,
    Scan,
    identify,
    identify_by_metadata,
    read_header,
    scan_models,
)

_FOLDER_OF = {"checkpoint": "checkpoints", "diffusion_model": "diffusion_models", "lora": "loras"}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class AdoptOptions:
    """What the command line says; see `adopt_command.py`."""

    models_dir: Path | None
    is_hashed: bool
    is_agreed: bool
    dry_run: bool
    as_json: bool


@dataclass(frozen=True)
class _New:
    """An entry to be written. `like`: the model of the catalogue that it is drawn like; empty for a LoRA."""

    id: str
    section: str
    file: str
    family: str
    like: str
    remark: str
    missing: tuple[str, ...]
    entry: Mapping[str, Any]


@dataclass(frozen=True)
class _NotUsed:
    file: str
    why: str


def run(options: AdoptOptions) -> None:
    """Raises InvalidValue, StoreUnwritable."""
    scan, identify_file = _look(options)
    own_files = read_sources(services().source_paths).own_entries
    adoption = _Adoption(services().catalogue(), scan.files, identify_file, options.is_hashed, own_files)
    new, refused = _proved(adoption.new)
    not_used = [*adoption.not_used, *refused, *(_NotUsed(*_split(text)) for text in scan.unreadable)]
    if options.as_json:
        click.echo(json.dumps(_as_json(adoption, new, not_used), indent=2, ensure_ascii=False))
    else:
        _show(adoption, new, not_used)
    if options.dry_run or not new:
        return
    folder = services().source_paths.own_folder
    if not options.is_agreed and not click.confirm(f"Write {len(new)} entries to {folder}?", err=True):
        sys.exit(2)
    assert folder is not None
    written = sum(_write(folder, each) for each in new)
    click.secho(
        f"{written} entries written to {folder}; requests can use them from now on.", err=True, fg="green"
    )


_Identify = Callable[[FoundFile], Identity]
"""Raises HeaderInvalid, OSError"""


def _look(options: AdoptOptions) -> tuple[Scan, _Identify]:
    """The files in the folder that is named or, without one, of the connected ComfyUI. Raises InvalidValue,
    EngineUnreachable."""
    root = options.models_dir or services().models_dir
    if root is not None:
        if not root.is_dir():
            raise InvalidValue(f"{root} is no folder; correct engine.models_dir.", param="models-dir")
        extra = services().model_folders(root).extra
        return scan_models(root, extra), lambda file: identify(read_header(file.path), file.name)
    engine = services().engine_selector.comfyui()
    if engine is None or engine.is_sketch or options.is_hashed:
        raise InvalidValue(
            "Say where ComfyUI's folder models is: --models-dir FOLDER, or the setting engine.models_dir. If it is on "
            "another machine, set engine.url: names of files and metadata are then read from there, without --hash.",
            param="models-dir",
        )
    click.echo(
        f"{engine.url} is asked, because engine.models_dir is not set: it tells names and metadata only.",
        err=True,
    )

    def identify_file(file: FoundFile) -> Identity:
        metadata = engine.file_metadata(file.folder, file.path.as_posix()) if file.is_safetensors else {}
        texts = {key: value for key, value in metadata.items() if isinstance(value, str)}
        return identify_by_metadata(texts, file.folder, file.name)

    return Scan(list(_listed(engine))), identify_file


_LOADERS = {
    "CheckpointLoaderSimple": ("checkpoints", "ckpt_name"),
    "UNETLoader": ("diffusion_models", "unet_name"),
    "LoraLoader": ("loras", "lora_name"),
    "CLIPLoader": ("text_encoders", "clip_name"),
    "VAELoader": ("vae", "vae_name"),
}


def _listed(engine: Engine) -> Iterator[FoundFile]:
    """The files that the engine lists; `path` is its own spelling of the name."""
    entries = engine.signatures(_LOADERS, fresh=True)
    for node, (folder, key) in _LOADERS.items():
        names = [
            name for name in listed_choices(entries.get(node), key) if name.isprintable() and "." in name
        ]
        yield from one_of_each(FoundFile(folder, name.replace("\\", "/"), Path(name), 0) for name in names)


def one_of_each(files: Iterable[FoundFile]) -> list[FoundFile]:
    """Of files with the same name the one that is least deep: ComfyUI follows a link to a folder above it forty times."""
    found: dict[str, FoundFile] = {}
    for file in sorted(files, key=lambda file: (file.name.count("/"), file.name)):
        found.setdefault(_base(file.name), file)
    return sorted(found.values(), key=lambda file: file.name)


class _Adoption:
    """What is made of `files`. `ready`: ids of models of the catalogue all of whose files are there."""

    def __init__(
        self,
        catalogue: Catalogue,
        files: list[FoundFile],
        identify_file: _Identify,
        is_hashed: bool,
        own_files: Iterable[str],
    ) -> None:
        """`own_files`: names of files in the owner's folder, which stay as they are"""
        self._catalogue, self._identify, self._is_hashed = catalogue, identify_file, is_hashed
        self._present = {(file.folder, _base(file.name)) for file in files}
        self._known = {(folder, _base(name)) for folder, names in catalogue.files.items() for name in names}
        self._examples = load_yaml("adopted_families")
        self._encoders = load_yaml("adopted_text_encoders")
        self._taken = {
            *(name.casefold() for model in catalogue.models.values() for name in model.names),
            *(name.casefold() for name in catalogue.loras),
            *(name.removesuffix(".yaml").casefold() for name in own_files),
        }
        self._by_size = {
            file.size: (model, role, file)
            for model in reversed(list(catalogue.models.values()))
            for role, file in model.files.items()
            if file.size is not None and file.sha256 is not None
        }
        self.ready = [
            model.id
            for model in catalogue.models.values()
            if model.files and all(map(self._is_present, model.files.values()))
        ]
        self.new: list[_New] = []
        self.not_used: list[_NotUsed] = []
        self.known = 0
        self.companions = 0
        self._stand_ins: dict[tuple[str, str], tuple[File, str]] = {}
        """folder and name of a file of the catalogue -> the file that is there instead, and what tells so"""
        # What models need comes before them.
        for file in sorted(files, key=lambda file: file.folder in _FOLDER_OF.values()):
            self._add(file)

    def _is_present(self, file: File) -> bool:
        return (file.folder, _base(file.name)) in self._present

    def _add(self, file: FoundFile) -> None:
        if (file.folder, _base(file.name)) in self._known:
            self.known += 1
            return
        if self._is_hashed and self._add_by_hash(file):
            return
        if not file.is_safetensors:
            self._skip(file, "it is no safetensors file, and such files are not opened")
            return
        try:
            identity = self._identify(file)
        except HeaderInvalid as error:
            self._skip(file, str(error))
        except OSError as error:
            self._skip(file, f"it cannot be read: {error.strerror}")
        else:
            self._add_identified(file, identity)

    def _add_identified(self, file: FoundFile, identity: Identity) -> None:
        if identity.kind in ("vae", "text_encoder"):
            self.companions += 1
            for name in self._encoders.get(identity.variant, ()):
                found = File(file.name, file.folder), f"by its tensors it is {identity.variant}"
                self._stand_ins.setdefault((file.folder, name), found)
            return
        if identity.unsupported:
            self._skip(file, f"{identity.family or identity.kind}: {identity.unsupported}")
        elif identity.kind == "unknown" or not identity.family:
            self._skip(file, "nothing tells that it is of a family that is known here")
        elif _FOLDER_OF[identity.kind] != file.folder:
            self._skip(
                file,
                f"it is a {identity.kind.replace('_', ' ')} of {identity.family}, which ComfyUI looks for in "
                f"{_FOLDER_OF[identity.kind]}: move it there",
            )
        elif identity.kind == "lora":
            self._add_lora(file, identity.family)
        else:
            variants = self._examples[identity.kind].get(identity.family, {})
            example = self._catalogue.models.get(variants.get(identity.variant, ""))
            if example is None:
                self._skip(
                    file, f"no workflow here draws a {identity.kind.replace('_', ' ')} of {identity.family}"
                )
            else:
                self._add_model(file, example, identity.open)

    def _add_lora(self, file: FoundFile, family: str) -> None:
        if not takes_loras(family, self._catalogue):
            self._skip(file, f"the workflows of {family} take no LoRAs")
            return
        name, stem = self._name(file)
        entry = adopted_lora(title=stem, family=family, name=file.name)
        self.new.append(_New(name, "loras", _place(file), family, "", "", (), entry))

    def _add_model(
        self, file: FoundFile, example: Model, remark: str, licence: Licence | None = None
    ) -> None:
        name, stem = self._name(file)
        role = main_role(example)
        entry = adopted_model(
            example,
            self._catalogue,
            title=stem,
            file=File(file.name, example.files[role].folder),
            is_present=self._is_present,
            stand_in=self._stand_in,
            licence=licence,
        )
        remarks = [remark] if remark else []
        for each in entry["files"].values():
            for found, why in self._stand_ins.values():
                if (each["folder"], each["name"]) == (found.folder, found.name):
                    remarks.append(f"uses {found.folder}/{found.name}: {why}")
        missing = tuple(
            f"{each['folder']}/{each['name']}"
            for key, each in entry["files"].items()
            if key != role and (each["folder"], _base(each["name"])) not in self._present
        )
        self.new.append(
            _New(
                name,
                "models",
                _place(file),
                example.family,
                example.id,
                "; ".join(dict.fromkeys(remarks)),
                missing,
                entry,
            )
        )

    def _add_by_hash(self, file: FoundFile) -> bool:
        """Whether it is a file of the catalogue under another name; only files of the same size are read."""
        known = self._by_size.get(file.size)
        if known is None or known[2].folder != file.folder:
            return False
        model, role, original = known
        try:
            if _sha256(file.path) != original.sha256:
                return False
        except OSError:
            return False
        if role == main_role(model):
            self._add_model(file, model, f"it is {original.name} under another name", model.licence)
        else:
            found = replace(original, name=file.name), f"it is {original.name} under another name"
            self._stand_ins[(original.folder, original.name)] = found
            self.companions += 1
        return True

    def _stand_in(self, file: File) -> File | None:
        """The file that is there instead of `file` of the catalogue, under another name."""
        found = self._stand_ins.get((file.folder, file.name))
        return found[0] if found else None

    def _name(self, file: FoundFile) -> tuple[str, str]:
        stem = _base(file.name).rpartition(".")[0]
        name = free_name(stem, self._taken)
        self._taken.add(name.casefold())
        return name, stem

    def _skip(self, file: FoundFile, why: str) -> None:
        self.not_used.append(_NotUsed(_place(file), why))


def _proved(new: list[_New]) -> tuple[list[_New], list[_NotUsed]]:
    """Those that the catalogue would serve, and the others."""
    if not new:
        return [], []
    sources = read_sources(services().source_paths)
    texts = {f"{_stem(each)}.yaml": _text(each) for each in new}
    sources = replace(sources, own_entries={**texts, **sources.own_entries})
    models = {each.id for each in new if each.section == "models"}
    catalogue = load_catalogue(sources, proved=models)
    served = {
        *(name for name in models & set(catalogue.models) if name not in catalogue.undrawable),
        *(each.id for each in new if each.section == "loras" and each.id in catalogue.loras),
    }
    refused = [_NotUsed(each.file, _fault(each, catalogue)) for each in new if each.id not in served]
    return [each for each in new if each.id in served], refused


def _fault(each: _New, catalogue: Catalogue) -> str:
    faults = [text for texts in catalogue.undrawable.get(each.id, {}).values() for text in texts]
    notes = [str(note) for note in catalogue.own_faults if f"{_stem(each)}.yaml" in note.file]
    return next(iter([*faults, *notes]), "the catalogue would not serve it")


def _text(each: _New) -> str:
    comment = f"Made by easel adopt-models of {each.file}."
    return entries_text({each.section: {each.id: each.entry}}, comment)


def _write(folder: Path, each: _New) -> bool:
    """False if there is a file of this name already, which stays as it is. Raises StoreUnwritable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        create_atomic(folder / f"{_stem(each)}.yaml", f"{modeline(folder)}\n{_text(each)}".encode())
    except FileExistsError:
        click.echo(f"{folder / _stem(each)}.yaml exists already; {each.id} is not written.", err=True)
        return False
    except OSError as error:
        raise StoreUnwritable(f"{folder} cannot be written: {error.strerror}.") from error
    return True


def _show(adoption: _Adoption, new: Iterable[_New], not_used: Iterable[_NotUsed]) -> None:
    click.echo(
        f"{adoption.known} files are in the catalogue already; all files are there for {len(adoption.ready)} of its "
        f"models: {', '.join(adoption.ready) or 'none'}."
    )
    if adoption.companions:
        click.echo(
            f"{adoption.companions} other files are text encoders and VAEs; new models use those that are known."
        )
    for each in new:
        like = f", drawn like {each.like}" if each.like else ""
        click.echo(f"{click.style('new', fg='green')}  {each.id}: {each.file} ({each.family}{like})")
        if each.remark:
            click.echo(f"     {each.remark}")
        for name in each.missing:
            click.echo(click.style(f"     needs {name}, which is not there", fg="yellow"))
    for other in not_used:
        click.echo(f"{click.style('not', fg='yellow')}  {other.file}: {other.why}")


def _as_json(adoption: _Adoption, new: Iterable[_New], not_used: Iterable[_NotUsed]) -> dict[str, Any]:
    return {
        "known": adoption.known,
        "ready": adoption.ready,
        "companions": adoption.companions,
        "new": [asdict(each) for each in new],
        "not_used": [asdict(each) for each in not_used],
    }


def _stem(each: _New) -> str:
    return each.id.lower()


def _place(file: FoundFile) -> str:
    return f"{file.folder}/{file.name}"


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _split(text: str) -> tuple[str, str]:
    place, _, why = text.rpartition(": ")
    return place, why


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
