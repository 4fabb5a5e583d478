"""Inspect a connector: caption pictures under each ablation, read its image vectors, print tables and write a page."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from visllama.config.invocation import invocation, run_folder
from visllama.config.plain import evaluations
from visllama.config.schema import InspectConfig
from visllama.console import say
from visllama.data.samples import Sample
from visllama.data.source import Source
from visllama.data.sources import judged_sources
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.prompts import prompts_of_records
from visllama.evaluation.report import provenance, write_json
from visllama.evaluation.runner import sample_maker
from visllama.inference.attention import attention_of_words, has_patches
from visllama.inspect.connector.ablation_scores import AblatedReader, AblationResults, score_ablations
from visllama.inspect.connector.ablations import BLANK, SHUFFLED, WHOLE, list_ablations, vector_groups
from visllama.inspect.connector.findings import find
from visllama.inspect.connector.lens import Lens
from visllama.inspect.connector.page import write_page
from visllama.inspect.connector.pictures import Pictures, encode, make_samples, read_pictures
from visllama.inspect.connector.study import ConnectorStudy, ShownPicture
from visllama.inspect.connector.tables import ablation_table, loss_table, notes, vectors_table
from visllama.inspect.connector.vectors import VectorStudy, norm_quantiles
from visllama.machine.devices import find_device, find_precision, frozen_dtype
from visllama.model.visllama import VisLlama
from visllama.model.weights import load_weights, read_description
from visllama.text.settings import TextSettings


class Chosen(NamedTuple):
    """The caption evaluation whose pictures are used.

    Attributes:
        name: The evaluation's name.
        source: The source of its records.
    """

    name: str
    source: Source


def choose_source(config: InspectConfig) -> Chosen:
    """Return the evaluation whose pictures the connector is shown, with its source; no weight is loaded.

    Args:
        config: A configuration with `weights`, whose folder is checked, and with exactly one evaluation, as
            `check_inspect` ensures.

    Raises:
        ConfigError: If the source cannot be built, or the folder's description is missing or not one of visllama.
    """
    assert config.weights is not None, "without weights there is no connector to look at"
    read_description(Path(config.weights))
    sources = judged_sources(evaluations(config), config.plugins)
    # `check_inspect` has seen to it that there is exactly one.
    ((name, source),) = sources.items()
    return Chosen(name, source)


def inspect_connector(config: InspectConfig, chosen: Chosen) -> ConnectorStudy:
    """Load the weights, inspect their connector, print the results, and write them into the run's folder.

    The files are `inspect_connector.html` and `inspect.json`. With `check_only` all is computed and printed, but no
    file is made.

    Args:
        config: A configuration with `weights` and exactly one evaluation.
        chosen: The evaluation and its source, as `choose_source` returns them.

    Returns:
        All results.

    Raises:
        ConfigError: If the weights cannot be loaded, the pictures cannot be read, or a prompt leaves the language
            model too few positions for the new tokens that the decoding allows.
    """
    assert config.weights is not None, "without weights there is no connector to look at"
    evaluation = evaluations(config)[chosen.name]
    pictures = read_pictures(chosen.name, evaluation, chosen.source, config.num_pictures)

    # For decodings that draw.
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.trainer.threads)
    precision = find_precision(config.trainer.precision, config.trainer.accelerator)
    model, description = load_weights(
        Path(config.weights),
        frozen_dtype(precision),
        plugins=config.plugins,
        models=config.paths["models"],
    )
    device = find_device(config.trainer.accelerator)
    model.to(device).eval()

    # Prompts and decoding are those of the evaluation, so that its CIDEr is the one that is explained.
    text = TextSettings.from_dict(description["text"])
    maker = sample_maker(model, text)
    maker = maker.as_judged(evaluation.get("prompt"), evaluation.get("template"))
    decoding = config.decoding | evaluation["decoding"]
    captioner = Captioner(maker, decoding, evaluation["batch_size"])
    # Before any work: a decoding longer than the model's positions would fail at the first caption.
    captioner.check_room(model, pictures.records, f"evaluation.{pictures.name}: ")

    about = {
        "weights": config.weights,
        "connector": description["parts"]["connector"],
        "num_image_tokens": model.num_image_tokens,
        "is_patch_grid": has_patches(model),
        "evaluation": pictures.name,
        "split": evaluation["split"],
        "n": len(pictures.records),
        "decoding": dict(captioner.decoding),
        "prompt": maker.prompt,
        "template": asdict(maker.template),
    }
    is_mixed = precision == "bf16-mixed"
    study = look(model, captioner, pictures, config.samples, about, is_mixed)

    _print_study(study)
    if not config.check_only:
        # The page shows the pixels that the model has seen, which `look` does not return.
        shown_records = pictures.records[: config.samples]
        samples = make_samples(maker, shown_records)
        _write(study, samples, config)

    words = ["visllama", "evaluate", f"weights={config.weights}", f"evaluation=[{pictures.name}]"]
    command = shlex.join(words)
    say(f"Judge it whole:  {command}")
    return study


def look(
    model: VisLlama,
    captioner: Captioner,
    pictures: Pictures,
    num_shown: int,
    about: dict[str, Any],
    is_mixed: bool = False,
) -> ConnectorStudy:
    """Inspect a model's connector on some pictures, and return the results; no file is written.

    The pictures are encoded and captioned once for each ablation, and the tokens that fit each image vector are found.

    Args:
        model: A model with all its weights, on the device that it is to run on.
        captioner: The captioner, which holds the prompt and the decoding of the evaluation.
        pictures: At least two pictures.
        num_shown: The number of pictures, the first ones, whose results are in `ConnectorStudy.pictures`.
        about: The values of `ConnectorStudy.about`, which are kept as they are.
        is_mixed: Whether pictures are encoded and captioned in bf16 by autocast (`trainer.precision=bf16-mixed`).
    """
    maker = captioner.maker
    collator = captioner.collator
    prompts = prompts_of_records(pictures.records)
    samples = make_samples(maker, pictures.records)

    groups = vector_groups(model.num_image_tokens, has_patches(model))
    ablations = list_ablations(groups)
    num_samples = len(samples)
    num_ablations = len(ablations)
    say(f"{pictures.name}: captions of {num_samples} pictures, {num_ablations} times")

    reader = AblatedReader(model, captioner, samples)
    with torch.autocast(model.markers.device.type, torch.bfloat16, enabled=is_mixed):
        embeds = {
            WHOLE: encode(model, collator, samples),
            # The same prompts with other pictures, whose pixels are freed as soon as they are encoded: what the
            # captions lose then, they owe to the pictures.
            SHUFFLED: encode(model, collator, make_samples(maker, prompts.shuffled().records())),
            BLANK: encode(model, collator, make_samples(maker, prompts.blank().records())),
        }
        results = score_ablations(reader, ablations, embeds, pictures.keys, pictures.references)

    # Outside of autocast: cosines in bf16 would not tell the nearest tokens apart.
    lens = Lens(model)
    references = [record["captions"] for record in pictures.records]
    vector_study = VectorStudy(embeds[WHOLE], lens, references)
    markers = model.markers.detach()
    nearest_to_markers = lens.nearest(markers)
    boi_tokens = lens.named(nearest_to_markers, 0)
    eoi_tokens = lens.named(nearest_to_markers, 1)
    norms = norm_quantiles(embeds[WHOLE], markers, lens.embeddings)

    shown_samples = samples[:num_shown]
    return ConnectorStudy(
        about=about,
        findings=find(results.scores, vector_study.vectors, norms),
        ablations=results.scores,
        vectors=vector_study.vectors,
        markers={"boi": boi_tokens, "eoi": eoi_tokens},
        norms=norms,
        pictures=_shown_pictures(model, captioner, pictures, shown_samples, results, vector_study),
    )


def _shown_pictures(
    model: VisLlama,
    captioner: Captioner,
    pictures: Pictures,
    samples: Sequence[Sample],
    results: AblationResults,
    vector_study: VectorStudy,
) -> list[ShownPicture]:
    """Return the pictures of these samples, each with its caption, its vectors' tokens and its words' attention."""
    whole = results.whole
    end_ids = captioner.decoding["eos_token_id"]

    shown_pictures = []
    for number, sample in enumerate(samples):
        # A forward pass over picture and caption, with attention that can be read: too slow for all pictures.
        attention = attention_of_words(model, sample, whole.ids[number], end_ids)

        picture = ShownPicture(
            key=pictures.keys[number],
            caption=whole.captions[number],
            cider=float(whole.cider[number]),
            references=list(pictures.records[number]["captions"]),
            reading=vector_study.picture(number),
            words=attention.words,
            attention=[_rounded(row) for row in attention.shares.tolist()],
        )
        shown_pictures.append(picture)
    return shown_pictures


def _rounded(shares: Sequence[float]) -> list[float]:
    # In full each share would take about 20 characters of `inspect.json`.
    return [round(share, 5) for share in shares]


def _print_study(study: ConnectorStudy) -> None:
    """Print the results: sentences first, then the tables."""
    about = study.about
    kind = about["connector"]["kind"]

    num_vectors = about["num_image_tokens"]
    num_pictures = about["n"]
    evaluation = about["evaluation"]
    say(f"\nWhat the {num_vectors} vectors of {kind} say, over {num_pictures} pictures of {evaluation}\n")

    for finding in study.findings:
        say(textwrap.fill(finding, 78, initial_indent="- ", subsequent_indent="  "))
    say("", ablation_table(study), "", loss_table(study), "", vectors_table(study), notes(study))


def _write(study: ConnectorStudy, samples: Sequence[Sample], config: InspectConfig) -> None:
    """Write `inspect.json` and the page into the run's folder.

    Args:
        study: All results.
        samples: The Samples of the pictures that are shown, in the order of `study.pictures`.
        config: The configuration.
    """
    folder = run_folder()
    content = study.to_dict() | {"provenance": provenance(weights=config.weights)}
    write_json(folder / "inspect.json", content)

    command = shlex.join(["visllama", "inspect", *invocation().command])
    pixels = [sample.pixel_values[0] for sample in samples]
    write_page(folder / "inspect_connector.html", command, study, pixels)
    say(f"\nWrote {folder}: inspect_connector.html; inspect.json has every figure")
