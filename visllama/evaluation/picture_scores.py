"""Metrics of captions that look at the pictures: CLIPScore, and CHAIR by what was drawn in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from visllama.errors import ConfigError
from visllama.evaluation.chair import Hallucinations, chair, check_objects, object_names, read_objects
from visllama.evaluation.clip_score import ClipScorer
from visllama.evaluation.generation import generation_bars
from visllama.evaluation.prompts import Prompts
from visllama.evaluation.statistics import CorpusMetric
from visllama.model.locate import locate
from visllama.model.vision_encoder import CLIPVisionEncoder
from visllama.model.visllama import VisLlama


def load_clip(model: VisLlama, name: str, config: Mapping) -> ClipScorer | None:
    """Load the CLIP of CLIPScore, the model's own or the one that is named; None where it is not measured.

    Args:
        model: The model that is judged.
        name: The name of the evaluation, for messages.
        config: Its configuration.

    Raises:
        ConfigError: If there is no whole CLIP.
    """
    if "CLIPScore" not in config["metrics"]:
        return None
    encoder = model.vision_encoder
    path = config["clip"]
    if path is None and not isinstance(encoder, CLIPVisionEncoder):
        raise ConfigError(
            f"evaluation.{name}.clip: CLIPScore needs a CLIP, and the model's vision encoder is a "
            f"{type(encoder).__name__}: give a CLIP's folder or hub id"
        )
    try:
        return ClipScorer(encoder.path if path is None else locate(path), model.markers.device)
    except ConfigError as error:
        raise ConfigError(f"evaluation.{name}.clip: {error}") from error


def clip_scores(
    clip: ClipScorer, prompts: Prompts, order: Sequence[int], captions: Sequence[str]
) -> dict[str, CorpusMetric]:
    """Return CLIPScore and RefCLIPScore of captions, with a bar.

    Args:
        clip: The CLIP.
        prompts: What was captioned.
        order: The numbers of the prompts, in the order that the metrics are to have.
        captions: The caption of each prompt, in the order of the prompts.
    """
    references = [prompts[number].record["captions"] for number in order]
    with generation_bars() as progress:
        task = progress.add_task("CLIPScore", total=len(order), rate="")
        return clip.score(
            [captions[number] for number in order],
            references,
            lambda place: prompts.pictures(prompts[order[place]]),
            lambda count: progress.advance(task, count),
        )


def check_instances(ids: Sequence[object], name: str, config: Mapping) -> None:
    """Check, before any model is loaded, that every image is among those that annotators have drawn in.

    Raises:
        ConfigError: Naming the first five that are not.
    """
    if "CHAIR" in config["metrics"]:
        check_objects(ids, _drawn_objects(config), f"evaluation.{name}.instances={config['instances']}")


def _drawn_objects(config: Mapping) -> dict[str, frozenset[str]]:
    return _read_once(config["instances"], config["object_names"])


@lru_cache(maxsize=1)  # COCO's file is 150 MB, and is asked for before and after the captions are written
def _read_once(instances: str, names: str | None) -> dict[str, frozenset[str]]:
    return read_objects(Path(instances), object_names(names))


def find_hallucinations(
    config: Mapping, ids: Sequence[object], prompts: Prompts, order: Sequence[int], captions: Sequence[str]
) -> Hallucinations:
    """Return what captions name that is not there; the images are in the order of `order`.

    Args:
        config: The configuration of the evaluation.
        ids: The id of each prompt's image.
        prompts: What was captioned.
        order: The numbers of the prompts, in the order that the metrics are to have.
        captions: The caption of each prompt, in the order of the prompts.
    """
    names = object_names(config["object_names"])
    drawn = _drawn_objects(config)
    return chair(
        [captions[number] for number in order],
        [prompts[number].record["captions"] for number in order],
        [drawn[str(ids[number])] for number in order],
        names,
    )
