"""The card of a model: what a stranger needs to use it, to judge it and to make it again, out of what a run wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import ModelCard

from visllama.config.choices import EXPORT_FORMATS, choose
from visllama.evaluation.metrics_file import is_number, mapping
from visllama.files import replacing, write_whole
from visllama.markdown import escape, fenced, table
from visllama.release.base_models import BaseModel, base_models, base_models_section
from visllama.release.how_trained import data_section, is_scenes, provenance_section, sources_of, training_section
from visllama.release.metadata import TEXT_FORMS, card_data, find_licence, models_of_form
from visllama.release.results import eval_result_files, main_metric, results_section
from visllama.release.run_facts import RunFacts, read_run
from visllama.release.samples import Sample, choose_samples
from visllama.release.usage import usage_lines

_PARTS = {
    "connector": "the connector",
    "markers": "the markers",
    "adapter": "the LoRA adapter",
    "vision_encoder": "the vision encoder",
    "language_model": "the language model",
}


class Card(NamedTuple):
    """A model card.

    Attributes:
        text: The content of README.md, with the hub's metadata.
        files: What lies beside it, by path: the sample pictures, and `.eval_results/`.
    """

    text: str
    files: dict[str, bytes]


def build_card(
    weights: Path,
    form: str,
    repo_id: str | None = None,
    named: Mapping[str, str | None] | None = None,
) -> Card:
    """Build the card of trained weights, out of their description and of the run whose folder they lie in.

    What is not known is left out.

    Args:
        weights: A run's `weights/`, or a folder with its two files alone.
        form: What the card is of: "hub" (the weights as they are), "llava", "adapter" or "language_model".
        repo_id: The repository that it is for, as `user/name`.
        named: The hub's id of `vision_encoder` or `language_model`, where the weights name a folder.

    Raises:
        ConfigError: If the folder holds no weights of ours, or the form is none.
    """
    choose("format", form, EXPORT_FORMATS)
    facts = read_run(weights)
    models = base_models(facts, named or {})
    title = _title(facts, repo_id)
    samples = None if form in TEXT_FORMS else _find_samples(facts)
    lines = usage_lines(form, facts, models, repo_id)

    sections = {
        "": _about(facts, form, models),
        "How to use it": fenced(lines, "python"),
        "Samples": _samples_section(*samples, main_metric(facts.evaluations[samples[0]])) if samples else "",
        "Results": results_section(facts),
        "Base models": base_models_section(models_of_form(models, form)),
        "Data": data_section(facts),
        "How it was trained": training_section(facts),
        "What made it": provenance_section(facts),
        "Limits and biases": _limits(facts, models),
        "Licence": _licence(models_of_form(models, form)),
    }
    told = "\n\n".join(f"## {name}\n\n{text}" if name else text for name, text in sections.items() if text)
    data = card_data(facts, form, models, title)
    text = str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {escape(title)}\n\n{told}\n"))
    pictures = {f"samples/{i}.png": sample.picture for i, sample in enumerate(samples[1] if samples else [], 1)}
    return Card(text, pictures | eval_result_files(facts))


def write_card(card: Card, folder: Path) -> None:
    """Write a card and what lies beside it.

    Raises:
        WriteFailed: If there is no room, or no leave, to write there.
    """
    for name, content in card.files.items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    write_whole(Path(folder) / "README.md", card.text)


def _title(facts: RunFacts, repo_id: str | None) -> str:
    name = repo_id.rpartition("/")[2] if repo_id else facts.config.get("name")
    return name if isinstance(name, str) and name else "visllama"


def _about(facts: RunFacts, form: str, models: list[BaseModel]) -> str:
    """Return what the model is, in a paragraph."""
    trained, (encoder, language_model) = facts.description["trained"], models
    states = {role: "trained" if role in trained else "frozen" for role in ("vision_encoder", "language_model")}
    connector = mapping(facts.description, "parts", "connector")
    k = mapping(connector, "arguments").get("num_image_tokens")
    tokens = f"{k:,} image tokens" if is_number(k) else "an image token for each of its patches"
    lora = "with a trained LoRA adapter, " if mapping(facts.description, "parts", "lora") else ""
    about = (
        f"A model that writes about pictures. A {states['vision_encoder']} vision encoder, {encoder.told}, looks at a "
        f"picture; a small trained connector ({escape(connector.get('kind'))}) makes {tokens} of what it sees; and a "
        f"{states['language_model']} language model, {language_model.told}, {lora}reads these between two trained "
        f"markers, as if they were words, and writes text."
    )
    counts = [f"{_PARTS.get(part, escape(part))} {n:,}" for part, n in facts.num_parameters.items()]
    about += f" Parameters that training has changed: {', '.join(counts)}."
    if form == "hub":
        about += " The files here hold these alone; the base models are fetched from where they are published."
        own = [model.told for model in models if not model.is_on_hub and not model.is_shipped]
        about += f" Not published is {' and '.join(own)}: without it nothing can be loaded." if own else ""
    elif form == "adapter":
        about += " The files here hold the LoRA adapter alone: with it the language model reads text, and no pictures."
    elif form == "llava":
        about += " The files here hold all of it, as transformers' LLaVA has it."
    elif form == "language_model":
        about += " The files here hold the language model alone; pictures come to it as embeddings made elsewhere."
    if form in TEXT_FORMS and facts.evaluations:
        about += " The results below are those of the whole model."
    if any(model.is_shipped for model in models):
        about += (
            "\n\n**It is a toy.** Its base models are tiny ones that come with visllama and know an embedded world "
            "alone: drawn scenes of a few colored shapes. It shows how such a model is trained and judged, and is "
            "of no use on photographs."
        )
    return about


def _find_samples(facts: RunFacts) -> tuple[str, list[Sample]] | None:
    """Return the samples of the first evaluation that has pictures, with its name."""
    for name in facts.evaluations:
        samples = choose_samples(facts.folder / "evaluations" / name / "gallery.html")
        if samples:
            return name, samples
    return None


def _samples_section(name: str, samples: list[Sample], metric: str) -> str:
    has_questions = any(sample.question for sample in samples)
    header = ["", *["question"] * has_questions, "the model", "a reference", metric]
    rows = []
    for i, sample in enumerate(samples, 1):
        kind = "bad" if i == len(samples) else "good"
        asked = [escape(sample.question)] * has_questions
        score = f"{100 * sample.score:.0f} ({kind})"
        rows.append([f"![sample {i}](samples/{i}.png)", *asked, escape(sample.said), escape(sample.reference), score])
    told = (
        f"Not typical ones: of the pictures that the evaluation {escape(name)} shows, the two with the best score and, "
        f"last, the one with the worst."
    )
    return f"{told}\n\n{table(header, rows)}"


def _limits(facts: RunFacts, models: list[BaseModel]) -> str:
    sources = {name: source for run in (facts.first, facts) if run for name, source in sources_of(run).items()}
    is_toy = any(model.is_shipped for model in models)
    has_controls = any(mapping(evaluation, "controls") for evaluation in facts.evaluations.values())
    limits = [
        "It writes what is likely, and not always what is there: it names things, colors, counts and places that no "
        "picture shows, in the same confident words. Check what it says."
    ]
    if has_controls:
        limits.append(
            "Part of a score comes without looking. The controls beside the results, such as another picture in the "
            "place of the right one, show how much."
        )
    if not _answers(facts):
        limits.append(
            "It was judged on captions alone: whether it answers questions or follows instructions is unknown."
        )
    if any(not is_scenes(source) for source in sources.values()):
        limits.append(
            "Captions and answers of people, and texts of web pages, carry what their writers took for granted: about "
            "gender, age, skin color, culture and work. The model repeats it, and knows best what is common in them."
        )
    if is_toy:
        limits.append("It knows the words and shapes of its embedded world alone, and has a caption for any picture.")
    limits.append("It reads and writes English alone." if not is_toy else "Its English is a grammar's few sentences.")
    limits.append(
        "It is not for decisions about people, nor to identify or to watch them, and not for medicine, law or safety. "
        "What limits its base models limits it too."
    )
    return "\n".join(f"- {limit}" for limit in limits)


def _answers(facts: RunFacts) -> bool:
    return not facts.evaluations or any(one.get("task") == "vqa" for one in facts.evaluations.values())


def _licence(models: list[BaseModel]) -> str:
    terms = find_licence(models)
    if terms is None:
        unknown = ", ".join(model.told for model in models if model.terms is None)
        return f"The terms of its base models bind whoever uses it; this card does not know those of {unknown}."
    if terms.licence == "apache-2.0":
        return "Apache-2.0; its base models may be used by their own terms, named above."
    return (
        f"What was trained here is of use with its base models alone, and these bind whoever uses it: "
        f"[{terms.name}]({terms.link}) ({terms.told}). Whoever passes it on gives that licence along. The code, "
        f"visllama, is Apache-2.0."
    )
