"""Build the metadata of a model card, by which the Hugging Face hub finds and lists a model and shows its licence."""

from __future__ import annotations

import re

from huggingface_hub import ModelCardData

from visllama.evaluation.metrics_file import mapping
from visllama.release.base_models import BaseModel
from visllama.release.how_trained import sources_of
from visllama.release.licences import Terms, find_data_terms, licence_of
from visllama.release.results import eval_results
from visllama.release.run_facts import RunFacts

TEXT_FORMS = ("adapter", "language_model")
"""Formats that hold the language model or its adapter alone, and so read no pictures."""
# The hub's names of the libraries that read each format.
_LIBRARIES = {"hub": "visllama", "llava": "transformers", "adapter": "peft", "language_model": "transformers"}


def card_data(facts: RunFacts, form: str, models: list[BaseModel], name: str) -> ModelCardData:
    """Build the metadata that stands as YAML at the head of a model card: licence, base models, datasets, tags, scores.

    Args:
        facts: The facts about the weights, from `read_run`.
        form: The export format: "hub", "llava", "adapter" or "language_model".
        models: Both base models, from `base_models`. Those that the format does not use are left out, also from the
            licence.
        name: The model's name on its page; it is written only if there are scores.

    Returns:
        The metadata, whose method `to_yaml` returns them as YAML.

    Raises:
        KeyError: If there is no such export format.
    """
    used_models = models_of_form(models, form)
    hub_ids = [model.name for model in used_models if model.is_on_hub]
    results = eval_results(facts)

    # The hub wants a name and a link where it does not know the licence itself.
    terms = find_licence(used_models)
    if terms is None:
        licence = "other"
        licence_name = "see-base-models"
        licence_link = None
    else:
        is_known_to_hub = terms.licence != "other"
        licence = terms.licence
        licence_name = None if is_known_to_hub else _slug(terms.name)
        licence_link = None if is_known_to_hub else terms.link

    return ModelCardData(
        language="en",
        license=licence,
        license_name=licence_name,
        license_link=licence_link,
        library_name=_LIBRARIES[form],
        pipeline_tag="text-generation" if form in TEXT_FORMS else "image-text-to-text",
        base_model=hub_ids or None,
        datasets=_datasets(facts) or None,
        tags=_tags(facts, form, models),
        model_name=name if results else None,
        eval_results=results or None,
    )


def models_of_form(models: list[BaseModel], form: str) -> list[BaseModel]:
    """Return those base models that the files of an export format are used with, in their order.

    Args:
        models: The base models, from `base_models`.
        form: The export format. "adapter" and "language_model" use the language model alone, others all models.
    """
    if form in TEXT_FORMS:
        return [model for model in models if model.role == "language model"]
    return models


def find_licence(models: list[BaseModel]) -> Terms | None:
    """Return the licence that binds a model made from some base models.

    It is Apache-2.0 if each of them is under Apache-2.0 or MIT, else the licence of the last one under another licence.
    The result is None if the licence of one base model is not known; that of a local folder never is.
    """
    # A folder may be named like a published model, whose terms would then be taken for its own.
    if any(model.terms is None for model in models):
        return None
    return licence_of([model.name for model in models])


def _slug(name: str) -> str:
    """Return a name in lower case, with hyphens in the place of spaces and punctuation."""
    words = re.split(r"[\W_]+", name.lower())
    return "-".join(word for word in words if word)


def _datasets(facts: RunFacts) -> list[str]:
    """Return the training data's ids on the hub, as far as they are known, those of the first stage first."""
    names = list(sources_of(facts))
    if facts.first is not None:
        names = [*sources_of(facts.first), *names]

    datasets = []
    for name in names:
        terms = find_data_terms(name)
        if terms is not None and terms.dataset and terms.dataset not in datasets:
            datasets.append(terms.dataset)
    return datasets


def _tags(facts: RunFacts, form: str, models: list[BaseModel]) -> list[str]:
    """Return the tags by which the model is found on the hub."""
    # What the model was judged on says what it may be used for.
    tasks = [evaluation.get("task") for evaluation in facts.evaluations.values()]
    tags = ["visllama", "vision-language-model"]

    if "caption" in tasks:
        tags.append("image-captioning")
    if "vqa" in tasks:
        tags.append("visual-question-answering")
    if form == "llava":
        tags.append("llava")
    if mapping(facts.description, "parts", "lora"):
        tags.append("lora")
    if any(model.is_shipped for model in models):
        tags.append("toy")

    return tags
