"""Describe the two base models of trained weights, vision encoder and language model, for a model card."""

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
"""The role of each part of `visllama.json` that is a base model."""


class BaseModel(NamedTuple):
    """A pretrained model that the trained weights were made with, and are used with.

    Attributes:
        role: "vision encoder" or "language model".
        name: The id on the Hugging Face hub; `visllama:NAME` for a tiny model that comes with the package; else the
            last part of the path of a local folder or, without a path, `kind`.
        revision: The commit on the hub that was used; empty if it is not known.
        kind: The name of the model's class, as `visllama.json` has it.
        is_on_hub: Whether `name` has the form of an id on the hub, and is no folder here. The hub is not asked.
    """

    role: str
    name: str
    revision: str
    kind: str
    is_on_hub: bool

    @property
    def terms(self) -> Terms | None:
        """Return the licence of the model with its conditions of use.

        The result is None for a local folder, and for a model that the table in `licences.py` does not have.
        """
        # A folder may have any name, also one that begins like that of a published model.
        if self.is_on_hub or self.is_shipped:
            return find_terms(self.name)
        return None

    @property
    def is_shipped(self) -> bool:
        """Return whether the model is one of the tiny ones that come with the package, for drawn scenes."""
        return self.name.startswith(SHIPPED_PREFIX)

    @property
    def markdown(self) -> str:
        """Return the model's name as Markdown: a link for a model on the hub, plain text for one of the package's.

        The name of a local folder is followed by the note "(a folder of the trainer's)".
        """
        if self.is_on_hub:
            return f"[{escape(self.name)}](https://huggingface.co/{self.name})"
        if self.is_shipped:
            return escape(self.name)
        return f"{escape(self.name)} (a folder of the trainer's)"


def base_models(facts: RunFacts, named: Mapping[str, str | None]) -> list[BaseModel]:
    """Return the two base models of some weights: first the vision encoder, then the language model.

    Args:
        facts: The facts about the weights, from `read_run`.
        named: Ids on the hub under "vision_encoder" and "language_model", which replace the paths in the description
            of the weights. A missing id or None keeps the path.
    """
    return [_base_model(facts, part, named.get(part)) for part in ROLES]


def _base_model(facts: RunFacts, part: str, hub_id: str | None) -> BaseModel:
    """Return the base model of a part, "vision_encoder" or "language_model"."""
    # Somebody else may have written the description: any value in it may be of another type.
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
    is_public = is_on_hub or path.startswith(SHIPPED_PREFIX)
    name = path if is_public else Path(path).name
    return BaseModel(ROLES[part], name or kind, revision, kind, is_on_hub)


def base_models_section(models: list[BaseModel]) -> str:
    """Return a Markdown table of base models, a row for each: its role, its name with the commit, and its licence."""
    rows = []
    for model in models:
        name = model.markdown
        if model.revision:
            name += f", commit {escape(model.revision)}"

        rows.append([model.role, name, _licence_cell(model)])

    return table(["", "model", "licence"], rows)


def _licence_cell(model: BaseModel) -> str:
    """Return the Markdown cell with a model's licence and its conditions, or a note that they are not known here."""
    terms = model.terms
    # A page on the hub names its licence, which a folder need not do.
    if terms is None:
        return "see its page" if model.is_on_hub else "not known"

    link = f"[{terms.name}]({terms.link})"
    return f"{link}: {terms.conditions}" if terms.conditions else link
