"""The frozen models that trained weights belong to, as a card names them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from visllama.evaluation.metrics_file import mapping
from visllama.inference.hub import is_repository
from visllama.markdown import escape, table
from visllama.model.locate import SHIPPED_PREFIX
from visllama.release.licences import Terms, find_terms
from visllama.release.run_facts import RunFacts

ROLES = {"vision_encoder": "vision encoder", "language_model": "language model"}


class BaseModel(NamedTuple):
    """A base model.

    Attributes:
        role: What it is in the model: "vision encoder" or "language model".
        name: Its id on the hub, `visllama:NAME`, or the name of its folder.
        revision: The commit of the hub that was taken; empty where none was named.
        kind: Its class's name.
        is_on_hub: Whether the name is an id on the hub.
    """

    role: str
    name: str
    revision: str
    kind: str
    is_on_hub: bool

    @property
    def terms(self) -> Terms | None:
        """Return its licence; None where it is not known here."""
        return find_terms(self.name) if self.is_on_hub or self.is_shipped else None

    @property
    def is_shipped(self) -> bool:
        """Return whether it comes with the package: it is of the embedded world."""
        return self.name.startswith(SHIPPED_PREFIX)

    @property
    def told(self) -> str:
        """Return its name as Markdown, with a link where it is on the hub."""
        if self.is_on_hub:
            return f"[{escape(self.name)}](https://huggingface.co/{self.name})"
        return escape(self.name) if self.is_shipped else f"{escape(self.name)} (a folder of the trainer's)"


def base_models(facts: RunFacts, named: Mapping[str, str | None]) -> list[BaseModel]:
    """Return the vision encoder and the language model.

    Args:
        facts: Of the weights.
        named: The hub's id of `vision_encoder` or `language_model`, where it is better known than by the weights.
    """
    return [_base_model(facts, part, named.get(part)) for part in ROLES]


def _base_model(facts: RunFacts, part: str, named: str | None) -> BaseModel:
    described = mapping(facts.description, "parts", part)
    arguments = mapping(described, "arguments")
    path, revision = named or arguments.get("path"), "" if named else arguments.get("revision")
    path = path if isinstance(path, str) else ""
    is_on_hub = is_repository(path) and not Path(path).is_dir()
    name = path if is_on_hub or path.startswith(SHIPPED_PREFIX) else Path(path).name or str(described.get("kind"))
    commit = revision if isinstance(revision, str) else ""
    return BaseModel(ROLES[part], name, commit, str(described.get("kind")), is_on_hub)


def base_models_section(models: list[BaseModel]) -> str:
    """Return a table of the base models with their terms."""
    rows = []
    for model in models:
        terms = model.terms
        if terms is not None:
            licence = f"[{terms.name}]({terms.link})" + (f": {terms.told}" if terms.told else "")
        elif model.is_on_hub:
            licence = "see its page"
        else:
            licence = "not known"
        revision = f", commit {escape(model.revision)}" if model.revision else ""
        rows.append([model.role, f"{model.told}{revision}", licence])
    return table(["", "model", "licence"], rows)
