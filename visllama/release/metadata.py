"""The metadata of a card, by which the hub finds, lists and licenses a model."""

from __future__ import annotations

from huggingface_hub import ModelCardData

from visllama.evaluation.metrics_file import mapping
from visllama.release.base_models import BaseModel
from visllama.release.how_trained import sources_of
from visllama.release.licences import Terms, find_data_terms, licence_of
from visllama.release.results import eval_results
from visllama.release.run_facts import RunFacts

TEXT_FORMS = ("adapter", "language_model")
"""Forms that hold the language model's side alone: they read no picture."""
_LIBRARIES = {"hub": "visllama", "llava": "transformers", "adapter": "peft", "language_model": "transformers"}


def card_data(facts: RunFacts, form: str, models: list[BaseModel], name: str) -> ModelCardData:
    """Build the metadata.

    Args:
        facts: What is known of the weights.
        form: One of `EXPORT_FORMATS`.
        models: The base models.
        name: What the model is called.
    """
    used = models_of_form(models, form)
    hub_ids = [model.name for model in used if model.is_on_hub]
    terms = find_licence(used)
    licence, is_other = (terms.licence, terms.licence == "other") if terms else ("other", True)
    results = eval_results(facts)
    return ModelCardData(
        language="en",
        license=licence,
        license_name=(_slug(terms.name) if terms else "see-base-models") if is_other else None,
        license_link=terms.link if terms and is_other else None,
        library_name=_LIBRARIES[form],
        pipeline_tag="text-generation" if form in TEXT_FORMS else "image-text-to-text",
        base_model=hub_ids or None,
        datasets=_datasets(facts) or None,
        tags=_tags(facts, form, models),
        model_name=name if results else None,
        eval_results=results or None,
    )


def models_of_form(models: list[BaseModel], form: str) -> list[BaseModel]:
    """Return the base models that are used by what a form holds."""
    return [model for model in models if form not in TEXT_FORMS or model.role == "language model"]


def find_licence(models: list[BaseModel]) -> Terms | None:
    """Return the terms that bind what is made with these base models; None where those of one are not known."""
    if any(model.terms is None for model in models):
        return None
    return licence_of([model.name for model in models])


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _datasets(facts: RunFacts) -> list[str]:
    """Return the training data's ids on the hub, as far as they are known."""
    found = [find_data_terms(name) for run in (facts.first, facts) if run is not None for name in sources_of(run)]
    return list(dict.fromkeys(terms.dataset for terms in found if terms is not None and terms.dataset))


def _tags(facts: RunFacts, form: str, models: list[BaseModel]) -> list[str]:
    tasks = [evaluation.get("task") for evaluation in facts.evaluations.values()]
    tags = ["visllama", "vision-language-model"]
    tags += ["image-captioning"] if "caption" in tasks else []
    tags += ["visual-question-answering"] if "vqa" in tasks else []
    tags += ["llava"] if form == "llava" else []
    tags += ["lora"] if mapping(facts.description, "parts", "lora") else []
    tags += ["toy"] if any(model.is_shipped for model in models) else []
    return tags
