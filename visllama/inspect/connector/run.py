"""One look at a connector: its pictures captioned under each ablation, its vectors read, tables and a page."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

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
    """The evaluation whose pictures are looked at, and its source."""

    name: str
    source: Source


def choose_source(config: InspectConfig) -> Chosen:
    """Make the source of the pictures, and read what the weights say of themselves; no weight is loaded.

    Raises:
        ConfigError: If the source cannot be made, or the weights are none of ours.
    """
    read_description(Path(config.weights))
    ((name, source),) = judged_sources(evaluations(config), config.plugins).items()
    return Chosen(name, source)


def inspect_connector(config: InspectConfig, chosen: Chosen) -> ConnectorStudy:
    """Load the weights, look at their connector, show and write what is found; with `check_only` nothing is written.

    Raises:
        ConfigError: If the weights cannot be loaded, or the pictures cannot be read.
    """
    evaluation = evaluations(config)[chosen.name]
    pictures = read_pictures(chosen.name, evaluation, chosen.source, config.num_pictures)
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.trainer.threads)
    precision = find_precision(config.trainer.precision, config.trainer.accelerator)
    model, description = load_weights(
        Path(config.weights), frozen_dtype(precision), plugins=config.plugins, models=config.paths["models"]
    )
    device = find_device(config.trainer.accelerator)
    model.to(device).eval()
    maker = sample_maker(model, TextSettings.from_dict(description["text"]))
    maker = maker.as_judged(evaluation.get("prompt"), evaluation.get("template"))
    captioner = Captioner(maker, config.decoding | evaluation["decoding"], evaluation["batch_size"])
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
    study = look(model, captioner, pictures, config.samples, about, is_mixed=precision == "bf16-mixed")
    _show(study)
    samples = make_samples(maker, pictures.records[: config.samples])
    if not config.check_only:
        _write(study, samples, config)
    judged = ["visllama", "evaluate", f"weights={config.weights}", f"evaluation=[{pictures.name}]"]
    say(f"Judge it whole:  {shlex.join(judged)}")
    return study


def look(
    model: VisLlama,
    captioner: Captioner,
    pictures: Pictures,
    num_shown: int,
    about: dict,
    is_mixed: bool = False,
) -> ConnectorStudy:
    """Return all that is found of a model's connector on some pictures.

    Args:
        model: A model with all its weights.
        captioner: Makes its prompts, and has the decoding.
        pictures: The pictures.
        num_shown: How many of them are shown each by itself.
        about: What was looked at.
        is_mixed: Whether pictures are encoded and captioned in bf16 by autocast, as an evaluation would.
    """
    maker = captioner.maker
    collator = captioner.collator
    shown = prompts_of_records(pictures.records)
    samples = make_samples(maker, pictures.records)
    ablations = list_ablations(vector_groups(model.num_image_tokens, has_patches(model)))
    say(f"{pictures.name}: captions of {len(samples)} pictures, {len(ablations)} times")
    reader = AblatedReader(model, captioner, samples)
    with torch.autocast(model.markers.device.type, torch.bfloat16, enabled=is_mixed):
        embeds = {
            WHOLE: encode(model, collator, samples),
            SHUFFLED: encode(model, collator, make_samples(maker, shown.shuffled().records())),
            BLANK: encode(model, collator, make_samples(maker, shown.blank().records())),
        }
        results = score_ablations(reader, ablations, embeds, pictures.keys, pictures.references)

    lens = Lens(model)
    read = VectorStudy(embeds[WHOLE], lens, [record["captions"] for record in pictures.records])
    markers = lens.nearest(model.markers.detach())
    norms = norm_quantiles(embeds[WHOLE], model.markers.detach(), lens.embeddings)
    return ConnectorStudy(
        about=about,
        findings=find(results.scores, read.vectors, norms),
        ablations=results.scores,
        vectors=read.vectors,
        markers={name: lens.named(markers, row) for row, name in enumerate(("boi", "eoi"))},
        norms=norms,
        pictures=_shown_pictures(model, captioner, pictures, samples[:num_shown], results, read),
    )


def _shown_pictures(
    model: VisLlama,
    captioner: Captioner,
    pictures: Pictures,
    samples: Sequence[Sample],
    results: AblationResults,
    read: VectorStudy,
) -> list[ShownPicture]:
    """Return the first pictures, each with its caption and what its words attended to."""
    end_ids = captioner.decoding["eos_token_id"]
    shown = []
    for number, sample in enumerate(samples):
        looked = attention_of_words(model, sample, results.whole.ids[number], end_ids)
        shown.append(
            ShownPicture(
                key=pictures.keys[number],
                caption=results.whole.captions[number],
                cider=float(results.whole.cider[number]),
                references=list(pictures.records[number]["captions"]),
                reading=read.picture(number),
                words=looked.words,
                attention=[[round(share, 5) for share in row] for row in looked.shares.tolist()],
            )
        )
    return shown


def _show(study: ConnectorStudy) -> None:
    """Print what is found: sentences first, then the tables."""
    kind, count, n = study.about["connector"]["kind"], study.about["num_image_tokens"], study.about["n"]
    say(f"\nWhat the {count} vectors of {kind} say, over {n} pictures of {study.about['evaluation']}\n")
    for finding in study.findings:
        say(textwrap.fill(finding, 78, initial_indent="- ", subsequent_indent="  "))
    say("", ablation_table(study), "", loss_table(study), "", vectors_table(study), notes(study))


def _write(study: ConnectorStudy, samples: Sequence[Sample], config: InspectConfig) -> None:
    folder = run_folder()
    content = study.to_dict() | {"provenance": provenance(weights=config.weights)}
    write_json(folder / "inspect.json", content)
    command = shlex.join(["visllama", "inspect", *invocation().command])
    write_page(folder / "inspect_connector.html", command, study, [sample.pixel_values[0] for sample in samples])
    say(f"\nWrote {folder}: inspect_connector.html; inspect.json has every figure")
