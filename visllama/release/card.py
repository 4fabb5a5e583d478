"""Build the model card (README.md on the Hugging Face hub) of trained weights from the files of their run."""

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
"""The words of a card for each trained part of a model, by the part's name in `visllama.json`."""


class Card(NamedTuple):
    """A model card with the files that belong to it.

    Attributes:
        text: The content of README.md, which begins with the hub's metadata as YAML.
        files: The content of each further file by its path beside README.md: the sample pictures `samples/*.png`, and
            the scores `.eval_results/*.yaml`.
    """

    text: str
    files: dict[str, bytes]


def build_card(
    weights: Path,
    form: str,
    repo_id: str | None = None,
    named: Mapping[str, str | None] | None = None,
) -> Card:
    """Build the model card of trained weights; nothing is written.

    The facts are read from `visllama.json` and, if the weights lie in a run's folder, from the other files of the run.
    Facts that are not known are left out of the card.

    Args:
        weights: A run's `weights/` folder, or any folder with `visllama.json` and `visllama.safetensors`.
        form: The format of the exported files: "hub" (visllama's own), "llava", "adapter" or "language_model".
        repo_id: The repository on the hub that the card is for, as `user/name`. With None the card's example code loads
            a folder `FOLDER`, and its title is the run's name.
        named: Ids on the hub under "vision_encoder" and "language_model", which the card names in place of the paths
            in the weights. A missing id or None keeps the path of that base model.

    Raises:
        ConfigError: If the folder holds no weights of visllama, or there is no such format.
    """
    choose("format", form, EXPORT_FORMATS)
    facts = read_run(weights)
    models = base_models(facts, named or {})
    title = _title(facts, repo_id)

    # A format that reads no pictures is not shown with any.
    evaluation_name = ""
    samples: list[Sample] = []
    if form not in TEXT_FORMS:
        evaluation_name, samples = _find_samples(facts)

    # An adapter, for example, is used without the vision encoder, whose licence then does not bind.
    used_models = models_of_form(models, form)
    usage = usage_lines(form, facts, models, repo_id)
    sections = {
        "How to use it": fenced(usage, "python"),
        "Samples": _samples_section(evaluation_name, samples, facts),
        "Results": results_section(facts),
        "Base models": base_models_section(used_models),
        "Data": data_section(facts),
        "How it was trained": training_section(facts),
        "What made it": provenance_section(facts),
        "Limits and biases": _limits(facts, models),
        "Licence": _licence(used_models),
    }
    about = _about(facts, form, models)
    body = _join(title, about, sections)
    metadata = card_data(facts, form, models, title).to_yaml()

    # `ModelCard` parses the text again, and so refuses metadata that is no YAML.
    card = ModelCard(f"---\n{metadata}\n---\n\n{body}\n")
    files = eval_result_files(facts)
    pictures = {f"samples/{number}.png": sample.picture for number, sample in enumerate(samples, 1)}
    return Card(str(card), pictures | files)


def _join(title: str, about: str, sections: Mapping[str, str]) -> str:
    """Return the Markdown of a card: its title, the paragraphs on the model, and the sections that are not empty.

    Args:
        title: The title as plain text.
        about: The paragraphs on the model, as Markdown.
        sections: The Markdown of each section by its heading.
    """
    paragraphs = [f"# {escape(title)}", about]
    for heading, section in sections.items():
        if section:
            paragraphs.append(f"## {heading}\n\n{section}")
    return "\n\n".join(paragraphs)


def write_card(card: Card, folder: Path) -> None:
    """Write README.md and the other files of a card into a folder, over files of the same names.

    Args:
        card: The card, from `build_card`.
        folder: An existing folder; the card's own folders inside it are created.

    Raises:
        WriteFailed: If a file cannot be written, for example because the disk is full.
    """
    for name, content in card.files.items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)

        with replacing(path) as temporary:
            temporary.write_bytes(content)

    # Last: a card that is there has all the pictures that it shows.
    write_whole(Path(folder) / "README.md", card.text)


def _title(facts: RunFacts, repo_id: str | None) -> str:
    """Return the card's title: the name of the repository without its owner, else that of the run, else "visllama"."""
    name = facts.config.get("name")
    if repo_id:
        _, _, name = repo_id.rpartition("/")

    is_name = isinstance(name, str) and name != ""
    return name if is_name else "visllama"


def _about(facts: RunFacts, form: str, models: list[BaseModel]) -> str:
    """Return the paragraphs on what the model is, and on which part of it the files of a format hold."""
    trained = facts.description["trained"]
    encoder, language_model = models
    encoder_state = "trained" if "vision_encoder" in trained else "frozen"
    language_model_state = "trained" if "language_model" in trained else "frozen"
    has_lora = mapping(facts.description, "parts", "lora") != {}
    lora = "with a trained LoRA adapter, " if has_lora else ""

    connector = mapping(facts.description, "parts", "connector")
    connector_kind = escape(connector.get("kind"))
    image_tokens = _image_tokens(connector)
    parameters = _trained_parameters(facts)
    about = (
        f"A model that writes about pictures. A {encoder_state} vision encoder, {encoder.markdown}, looks at a "
        f"picture; a small trained connector ({connector_kind}) makes {image_tokens} of what it sees; and a "
        f"{language_model_state} language model, {language_model.markdown}, {lora}reads these between two trained "
        f"markers, as if they were words, and writes text. Parameters that training has changed: {parameters}. "
        f"{_content_of_files(form, models)}"
    )

    # The evaluations were of the whole model, with its pictures.
    if form in TEXT_FORMS and facts.evaluations:
        about += " The results below are those of the whole model."
    if any(model.is_shipped for model in models):
        about += (
            "\n\n**It is a toy.** Its base models are tiny ones that come with visllama and know an embedded world "
            "alone: drawn scenes of a few colored shapes. It shows how such a model is trained and judged, and is "
            "of no use on photographs."
        )

    return about


def _image_tokens(connector: Mapping) -> str:
    """Return in words how many image tokens a connector makes of a picture, by its description in `visllama.json`."""
    count = mapping(connector, "arguments").get("num_image_tokens")
    if is_number(count):
        return f"{count:,} image tokens"
    return "an image token for each of its patches"


def _trained_parameters(facts: RunFacts) -> str:
    """Return the number of parameters of each trained part, separated by commas."""
    counts = []
    for part, count in facts.num_parameters.items():
        # The names of parts come from a file that somebody else may have written.
        name = _PARTS.get(part) or escape(part)
        counts.append(f"{name} {count:,}")
    return ", ".join(counts)


def _content_of_files(form: str, models: list[BaseModel]) -> str:
    """Return the sentences on which part of the model the files of a format hold."""
    if form == "llava":
        return "The files here hold all of it, as transformers' LLaVA has it."
    if form == "adapter":
        return "The files here hold the LoRA adapter alone: with it the language model reads text, and no pictures."
    if form == "language_model":
        return "The files here hold the language model alone; pictures come to it as embeddings made elsewhere."

    content = "The files here hold these alone; the base models are fetched from where they are published."
    unpublished = [model.markdown for model in models if not model.is_on_hub and not model.is_shipped]
    if not unpublished:
        return content
    names = " and ".join(unpublished)
    return f"{content} Not published is {names}: without it nothing can be loaded."


def _find_samples(facts: RunFacts) -> tuple[str, list[Sample]]:
    """Return the name and the samples of the first evaluation whose gallery has some; "" and no samples if none has."""
    if facts.folder is None:
        return "", []

    for name in facts.evaluations:
        gallery = facts.folder / "evaluations" / name / "gallery.html"
        samples = choose_samples(gallery)
        if samples:
            return name, samples
    return "", []


def _samples_section(name: str, samples: list[Sample], facts: RunFacts) -> str:
    """Return a sentence on how an evaluation's samples were chosen, and their table, as Markdown; "" without samples.

    Args:
        name: The name of the evaluation.
        samples: The samples in the order of `choose_samples`, which puts the worst one last.
        facts: The facts about the weights, which have the evaluation if there are samples.
    """
    if not samples:
        return ""

    has_questions = any(sample.question for sample in samples)
    metric = main_metric(facts.evaluations[name])
    header = ["", "the model", "a reference", metric]
    if has_questions:
        header.insert(1, "question")

    rows = []
    for number, sample in enumerate(samples, 1):
        picture = f"![sample {number}](samples/{number}.png)"
        kind = "bad" if number == len(samples) else "good"
        score = 100 * sample.score
        row = [picture, escape(sample.text), escape(sample.reference), f"{score:.0f} ({kind})"]
        if has_questions:
            row.insert(1, escape(sample.question))
        rows.append(row)

    introduction = (
        f"Not typical ones: of the pictures that the evaluation {escape(name)} shows, the two with the best score and, "
        f"last, the one with the worst."
    )
    return f"{introduction}\n\n{table(header, rows)}"


def _limits(facts: RunFacts, models: list[BaseModel]) -> str:
    """Return a Markdown list of the model's limits, chosen by its training data and its evaluations."""
    is_toy = any(model.is_shipped for model in models)
    evaluations = facts.evaluations.values()
    has_controls = any(mapping(evaluation, "controls") for evaluation in evaluations)
    sources = sources_of(facts)
    if facts.first is not None:
        sources = sources_of(facts.first) | sources
    has_real_data = any(not is_scenes(source) for source in sources.values())

    limits = [
        "It writes what is likely, and not always what is there: it names things, colors, counts and places that no "
        "picture shows, in the same confident words. Check what it says."
    ]

    # What the run itself has shown, or has left open.
    if has_controls:
        limits.append(
            "Part of a score comes without looking. The controls beside the results, such as another picture in the "
            "place of the right one, show how much."
        )
    if facts.evaluations and not _has_answers(facts):
        limits.append(
            "It was judged on captions alone: whether it answers questions or follows instructions is unknown."
        )
    if has_real_data:
        limits.append(
            "Captions and answers of people, and texts of web pages, carry what their writers took for granted: about "
            "gender, age, skin color, culture and work. The model repeats it, and knows best what is common in them."
        )

    if is_toy:
        limits.append("It knows the words and shapes of its embedded world alone, and has a caption for any picture.")
        limits.append("Its English is a grammar's few sentences.")
    else:
        limits.append("It reads and writes English alone.")
    limits.append(
        "It is not for decisions about people, nor to identify or to watch them, and not for medicine, law or safety. "
        "What limits its base models limits it too."
    )
    return "\n".join(f"- {limit}" for limit in limits)


def _has_answers(facts: RunFacts) -> bool:
    """Return whether the run has an evaluation of answers to questions, and not of captions alone."""
    return any(evaluation.get("task") == "vqa" for evaluation in facts.evaluations.values())


def _licence(models: list[BaseModel]) -> str:
    """Return the paragraph on the licences that bind a user of the files."""
    terms = find_licence(models)
    if terms is None:
        unknown = ", ".join(model.markdown for model in models if model.terms is None)
        return f"The terms of its base models bind whoever uses it; this card does not know those of {unknown}."

    if terms.licence == "apache-2.0":
        return "Apache-2.0; its base models may be used by their own terms, named above."

    return (
        f"What was trained here is of use with its base models alone, and these bind whoever uses it: "
        f"[{terms.name}]({terms.link}) ({terms.conditions}). Whoever passes it on gives that licence along. The code, "
        f"visllama, is Apache-2.0."
    )
