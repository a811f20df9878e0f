"""Adds the entries of the owner's folder to those of catalogue.yaml.

1. An entry that is not valid, or that needs one that is not, is left out. All others are used.
2. A name (id or alias) of the owner's is not one of catalogue.yaml's any more, whatever an update brings: a model or LoRA
   with this id gives way, an alias is taken from its model.
3. Between two files of the owner's, the first in the order of their names has the name.
4. Workflows and templates of the owner's are used by the owner's entries only; those that catalogue.yaml and its templates
   have under the same names stay as they are for its own models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

from compiler.catalogue import SHIPPED_PREFIX, Catalogue, Lora, Model, OwnFileNote, Workflow
from compiler.catalogue_checks import lora_errors, model_errors, workflow_errors
from compiler.catalogue_file import merged_facts, new_lora, new_model, new_workflow
from compiler.named_entries import NamedEntries
from compiler.node_records import with_facts
from compiler.own_files import OwnFile, read_own_files
from compiler.render import TemplateRenderer
from compiler.signatures import parse_signatures
from compiler.sources import TEMPLATE_SUFFIX, Sources, classes_in, printable
from schemas import LocatedError, read_yaml

_Named = TypeVar("_Named", Model, Lora)


def with_own_entries(catalogue: Catalogue, sources: Sources) -> Catalogue:
    """`catalogue`, which was parsed from catalogue.yaml, with the entries of the owner's folder; `own_faults` and
    `own_overrides` say what is not used and what was replaced."""
    if not sources.own_entries and not sources.own_unreadable:
        return catalogue
    return _Merge(catalogue, sources).merged()


class _Names:
    """The names of the owner's models or LoRAs, in upper or lower case, each with the file and the entry that has it."""

    def __init__(self) -> None:
        self._owners: dict[str, tuple[OwnFile, tuple[str | int, ...]]] = {}

    def take(self, name: str, file: OwnFile, path: tuple[str | int, ...]) -> LocatedError | None:
        """An error if another entry has the name already."""
        other, its_path = self._owners.setdefault(name.casefold(), (file, path))
        if other is file and its_path[:2] == path[:2]:
            return None
        place = "this file" if other is file else other.name
        return (
            path,
            f"the name {name!r} is already used by {its_path[0]}.{its_path[1]} in {place}",
        )

    def owner(self, name: str) -> tuple[OwnFile, tuple[str | int, ...]] | None:
        """Who has it; None if nobody has."""
        return self._owners.get(name.casefold())


class _Merge:
    def __init__(self, catalogue: Catalogue, sources: Sources) -> None:
        self._shipped, self._sources = catalogue, sources
        self._files = read_own_files(sources)
        self._model_names, self._lora_names = _Names(), _Names()
        own = [*sources.own_templates, *filter(_is_template, sources.own_unreadable)]
        self._template_keys = {name: f"{sources.own_folder}/{name}" for name in own}
        """name of a template of the owner's -> its name in the catalogue"""

    def merged(self) -> Catalogue:
        catalogue = self._with_own_templates(self._with_own_facts(self._shipped))
        workflows = self._workflows(catalogue)
        models = self._models({**catalogue.workflows, **workflows})
        loras = self._loras({**catalogue.models, **models}, {**catalogue.workflows, **workflows})
        models = {
            name: self._with_loras(model, loras, catalogue, workflows) for name, model in models.items()
        }
        return replace(
            catalogue,
            workflows={**self._shipped_workflows(workflows), **workflows},
            models={**self._shipped_models(workflows), **models},
            loras={**self._without_taken(catalogue.loras, self._lora_names, "LoRA"), **loras},
            default_model=self._default_model(),
            own_faults=tuple(self._faults()),
            own_overrides=tuple(note for file in self._files for note in file.located_overrides()),
        )

    def _faults(self) -> Iterator[OwnFileNote]:
        folder = self._sources.own_folder
        for name, why in self._sources.own_unreadable.items():
            yield OwnFileNote(f"{folder}/{printable(name)}" if name else folder, why)
        for file in self._files:
            yield from file.faults()

    # --- templates and nodes -----------------------------------------------------------------------

    def _with_own_templates(self, catalogue: Catalogue) -> Catalogue:
        own = {self._template_keys[name]: text for name, text in self._sources.own_templates.items()}
        unreadable = {
            key for name, key in self._template_keys.items() if name in self._sources.own_unreadable
        }
        return replace(catalogue, renderer=TemplateRenderer({**self._sources.templates, **own}, unreadable))

    def _with_own_facts(self, catalogue: Catalogue) -> Catalogue:
        own: dict[str, dict[str, Any]] = {}
        for file in self._files:
            for name, facts in file.entries("nodes").items():
                if errors := list(self._fact_errors(name, facts, own.get(name, {}))):
                    file.errors += errors
                else:
                    own[name] = _joined(own.get(name, {}), facts)
        known = {name: catalogue.nodes["nodes"][name] for name in own if name in catalogue.nodes["nodes"]}
        if not known:
            return catalogue
        # The workflows of catalogue.yaml keep the choices that they refer to.
        changed = with_facts(known, own, keeps_choices=True)
        return replace(
            catalogue,
            nodes={**catalogue.nodes, "nodes": {**catalogue.nodes["nodes"], **changed}},
            signatures={**catalogue.signatures, **parse_signatures({"nodes": changed})},
        )

    def _fact_errors(
        self, name: str, facts: Mapping[str, Any], earlier: Mapping[str, Any]
    ) -> Iterator[LocatedError]:
        """Facts of several files are joined, unless they name two folders for an input."""
        for key, folder in facts.get("files", {}).items():
            path = ("nodes", name, "files", key)
            if earlier.get("files", {}).get(key, folder) != folder:
                text = f"a file before this one names the folder {earlier['files'][key]} for this input"
                yield path, text
            elif name in self._shipped_classes and self._known_folders(name).get(key) != folder:
                yield (
                    path,
                    "the workflows of catalogue.yaml use this node, and a file of your own folder must not change "
                    "where its files are; write it under `nodes:` in catalogue.yaml",
                )

    def _known_folders(self, name: str) -> Mapping[str, Any]:
        return dict(self._known_facts.get(name, {}).get("files", {}))

    @cached_property
    def _known_facts(self) -> Mapping[str, Any]:
        shipped = read_yaml(self._sources.catalogue, repeated_sections=True).get("nodes", {})
        return merged_facts(read_yaml(self._sources.node_facts), shipped)

    @cached_property
    def _shipped_classes(self) -> set[str]:
        in_templates = {name for text in self._sources.templates.values() for name in classes_in(text)}
        inputs = [rule for workflow in self._shipped.workflows.values() for rule in workflow.inputs.values()]
        return in_templates | {rule.choices_from.partition(".")[0] for rule in inputs}

    # --- the owner's entries -----------------------------------------------------------------------

    def _workflows(self, catalogue: Catalogue) -> dict[str, Workflow]:
        found: dict[str, Workflow] = {}
        templates = {**self._sources.templates, **dict.fromkeys(self._template_keys, "")}
        for file in self._files:
            for name, entry in file.entries("workflows").items():
                if name in found:
                    text = f"{found[name].file} has a workflow of this id already; choose another id"
                    file.errors.append((("workflows", name), text))
                    continue
                workflow = new_workflow(name, entry, catalogue.signatures, templates, file.name)
                if errors := list(workflow_errors(workflow, file.sections, catalogue.signatures)):
                    file.errors += errors
                else:
                    found[name] = self._with_own_template(workflow)
        return found

    def _with_own_template(self, workflow: Workflow) -> Workflow:
        name = workflow.template
        if name not in self._template_keys:
            return workflow
        key = self._template_keys[name]
        why = self._sources.own_unreadable.get(name)
        faults = (f"the template {key} {why}",) if why else ()
        return replace(workflow, template=key, faults=(*workflow.faults, *faults))

    def _models(self, workflows: Mapping[str, Workflow]) -> dict[str, Model]:
        found: dict[str, Model] = {}
        for file in self._files:
            models = [
                model
                for name, entry in file.entries("models").items()
                if (model := self._model(name, entry, file, workflows)) is not None
                and not self._is_taken(self._model_names, name, file, "models")
            ]
            found |= {model.id: self._with_free_aliases(model, file) for model in models}
        return found

    def _model(
        self, name: str, entry: Mapping[str, Any], file: OwnFile, workflows: Mapping[str, Workflow]
    ) -> Model | None:
        """None, and an error of the file, if it is not valid."""
        named = NamedEntries.of(file.sections).before(self._shipped.named)
        if errors := list(named.errors("models", name, entry)):
            file.errors += errors
            return None
        model = new_model(name, named.expanded(entry), workflows)
        for workflow in dict.fromkeys(model.workflows.values()):
            if declaring := self._refused_in(workflow, file, workflows):
                text = f"the workflow {workflow!r} in {declaring.name} is not used, because it has a fault"
                file.errors.append((("models", name, "workflow"), text))
                return None
        errors = list(model_errors(model, workflows))
        file.errors += errors
        return None if errors else model

    def _refused_in(self, workflow: str, file: OwnFile, workflows: Mapping[str, Workflow]) -> OwnFile | None:
        """The file in which a model of `file` would find `workflow`, if that is not used. The model must not draw with one
        of the same id from elsewhere."""
        used = workflows.get(workflow)
        if workflow in file.workflow_ids:
            return None if used is not None and used.file == file.name else file
        declaring = [other for other in self._files if workflow in other.workflow_ids]
        is_used = any(used is not None and used.file == other.name for other in declaring)
        return None if is_used or not declaring else declaring[0]

    def _is_taken(self, names: _Names, name: str, file: OwnFile, section: str) -> bool:
        error = names.take(name, file, (section, name))
        if error:
            file.errors.append(error)
        return error is not None

    def _with_free_aliases(self, model: Model, file: OwnFile) -> Model:
        aliases = []
        for index, alias in enumerate(model.aliases):
            if error := self._model_names.take(alias, file, ("models", model.id, "aliases", index)):
                file.errors.append(error)
            else:
                aliases.append(alias)
        return replace(model, aliases=tuple(aliases))

    def _loras(self, models: Mapping[str, Model], workflows: Mapping[str, Workflow]) -> dict[str, Lora]:
        found: dict[str, Lora] = {}
        for file in self._files:
            named = NamedEntries.of(file.sections).before(self._shipped.named)
            entries = file.entries("loras")
            unknown = [
                error for name, entry in entries.items() for error in named.errors("loras", name, entry)
            ]
            file.errors += unknown
            wrong = {path[1] for path, _ in unknown}
            loras = {
                name: new_lora(name, named.expanded(entry))
                for name, entry in entries.items()
                if name not in wrong
            }
            errors = list(lora_errors(loras, models, workflows)) if loras else []
            file.errors += errors
            wrong = {path[1] for path, _ in errors}
            found |= {
                name: lora
                for name, lora in loras.items()
                if name not in wrong and not self._is_taken(self._lora_names, name, file, "loras")
            }
        return found

    def _with_loras(
        self,
        model: Model,
        own: Mapping[str, Lora],
        catalogue: Catalogue,
        workflows: Mapping[str, Workflow],
    ) -> Model:
        """`model` with `takes_loras` set."""
        if any(model.family in lora.families for lora in own.values()):
            return model
        if not any(model.family in lora.families for lora in catalogue.loras.values()):
            return model
        templates = {workflows[name].template for name in model.workflows.values() if name in workflows}
        takes = all(
            any("loras" in text for _, text in catalogue.renderer.content(template)) for template in templates
        )
        return replace(model, takes_loras=takes)

    # --- what catalogue.yaml keeps -----------------------------------------------------------------

    def _shipped_workflows(self, own: Mapping[str, Workflow]) -> dict[str, Workflow]:
        return {
            (new := _displaced(name, own)): replace(workflow, id=new)
            for name, workflow in self._shipped.workflows.items()
        }

    def _shipped_models(self, own: Mapping[str, Workflow]) -> dict[str, Model]:
        kept = self._without_taken(self._shipped.models, self._model_names, "model")
        return {
            name: replace(
                model,
                aliases=tuple(alias for alias in model.aliases if not self._gives_way(alias, model)),
                workflows={task: _displaced(workflow, own) for task, workflow in model.workflows.items()},
            )
            for name, model in kept.items()
        }

    def _without_taken(self, shipped: Mapping[str, _Named], names: _Names, kind: str) -> dict[str, _Named]:
        kept = {}
        for name, entry in shipped.items():
            if owner := names.owner(name):
                file, path = owner
                file.overrides.append((path, f"replaces the {kind} {name} of catalogue.yaml"))
            else:
                kept[name] = entry
        return kept

    def _gives_way(self, alias: str, model: Model) -> bool:
        """Whether an entry of the owner's has this alias of a model in catalogue.yaml."""
        owner = self._model_names.owner(alias)
        if owner:
            file, path = owner
            file.overrides.append((path, f"{alias} is not an alias of {model.id} in catalogue.yaml any more"))
        return owner is not None

    def _default_model(self) -> str:
        owner = self._model_names.owner(self._shipped.default_model)
        return str(owner[1][1]) if owner else self._shipped.default_model


def _joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of two files about one node."""
    any_value = dict.fromkeys((*first.get("any_value", ()), *second.get("any_value", ())))
    return {
        "files": {**first.get("files", {}), **second.get("files", {})},
        "any_value": list(any_value),
        "more_inputs": first.get("more_inputs", False) or second.get("more_inputs", False),
    }


def _is_template(name: str) -> bool:
    return name.endswith(TEMPLATE_SUFFIX)


def _displaced(workflow: str, own: Mapping[str, Workflow]) -> str:
    """The id of a workflow of catalogue.yaml beside those of the owner's."""
    return f"{SHIPPED_PREFIX}{workflow}" if workflow in own else workflow
