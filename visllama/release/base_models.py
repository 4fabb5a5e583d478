"""The base models that trained weights belong to, as a card names them."""

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
        role: The part that it plays: "vision encoder" or "language model".
        name: The id on the hub, `visllama:NAME`, or the name of the folder.
        revision: The commit on the hub that was used; empty where the config names none.
        kind: The name of the class.
        is_on_hub: Whether the name is an id on the hub.
    """

    role: str
    name: str
    revision: str
    kind: str
    is_on_hub: bool

    @property
    def terms(self) -> Terms | None:
        """Return the model's terms; None where they are not known here."""
        # A folder may have any name, also one that begins like that of a published model.
        if self.is_on_hub or self.is_shipped:
            return find_terms(self.name)
        return None

    @property
    def is_shipped(self) -> bool:
        """Return whether the model is one of the embedded world, which come with the package."""
        return self.name.startswith(SHIPPED_PREFIX)

    @property
    def markdown(self) -> str:
        """Return the model's name as Markdown, with a link where it is on the hub."""
        if self.is_on_hub:
            return f"[{escape(self.name)}](https://huggingface.co/{self.name})"
        if self.is_shipped:
            return escape(self.name)
        return f"{escape(self.name)} (a folder of the trainer's)"


def base_models(facts: RunFacts, named: Mapping[str, str | None]) -> list[BaseModel]:
    """Return the vision encoder and the language model.

    Args:
        facts: What is known of the weights.
        named: The hub's ids of `vision_encoder` and `language_model` that the user gives, in place of the paths that
            the weights name.
    """
    return [_base_model(facts, part, named.get(part)) for part in ROLES]


def _base_model(facts: RunFacts, part: str, hub_id: str | None) -> BaseModel:
    """Return the base model of a part; its path comes from a file that somebody else may have written."""
    description = mapping(facts.description, "parts", part)
    arguments = mapping(description, "arguments")
    kind = str(description.get("kind"))

    # A commit of the weights' own path says nothing of an id that the user gives.
    path = hub_id or arguments.get("path")
    revision = None if hub_id else arguments.get("revision")
    if not isinstance(path, str):
        path = ""
    if not isinstance(revision, str):
        revision = ""

    # A folder `a/b` here looks like an id on the hub. Of a folder only its name is published.
    is_on_hub = is_repository(path) and not Path(path).is_dir()
    is_shipped = path.startswith(SHIPPED_PREFIX)
    name = path if is_on_hub or is_shipped else Path(path).name
    return BaseModel(ROLES[part], name or kind, revision, kind, is_on_hub)


def base_models_section(models: list[BaseModel]) -> str:
    """Return a table of the base models with their terms."""
    rows = []
    for model in models:
        name = model.markdown
        if model.revision:
            name += f", commit {escape(model.revision)}"
        rows.append([model.role, name, _licence_cell(model)])

    return table(["", "model", "licence"], rows)


def _licence_cell(model: BaseModel) -> str:
    """Return the cell of the table that names a model's licence and its conditions."""
    terms = model.terms
    if terms is None:
        return "see its page" if model.is_on_hub else "not known"

    link = f"[{terms.name}]({terms.link})"
    return f"{link}: {terms.conditions}" if terms.conditions else link
