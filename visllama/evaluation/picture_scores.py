"""Metrics of captions that depend on the pictures: CLIPScore, and CHAIR by what annotators drew in the pictures."""

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
    """Load the CLIP that computes CLIPScore, on the model's device; return None if CLIPScore is not measured.

    Args:
        model: The model that is judged. If its vision encoder is a CLIP and none is configured, the files of that CLIP
            are loaded again, with both halves.
        name: The name of the evaluation, for messages.
        config: The configuration of the evaluation: its `metrics`, and `clip`, a folder or hub id, or None.

    Raises:
        ConfigError: If the configured CLIP is not there, half of the CLIP or its tokenizer is missing, or the model has
            no CLIP and none is configured.
    """
    if "CLIPScore" not in config["metrics"]:
        return None

    try:
        path = _clip_path(model, config["clip"])
        return ClipScorer(path, model.markers.device)
    except ConfigError as error:
        raise ConfigError(f"evaluation.{name}.clip: {error}") from error


def _clip_path(model: VisLlama, configured: str | None) -> str:
    """Return the folder or hub id of the CLIP that computes CLIPScore: the configured one, or the model's own."""
    if configured is not None:
        return locate(configured)

    encoder = model.vision_encoder
    if isinstance(encoder, CLIPVisionEncoder):
        return encoder.path
    raise ConfigError(
        f"CLIPScore needs a CLIP, and the model's vision encoder is a {type(encoder).__name__}: give a CLIP's folder "
        f"or hub id"
    )


def clip_scores(
    clip: ClipScorer,
    prompts: Prompts,
    order: Sequence[int],
    captions: Sequence[str],
) -> dict[str, CorpusMetric]:
    """Compute CLIPScore and RefCLIPScore of captions, and return them by these names; a bar shows the progress.

    Args:
        clip: The CLIP, as `load_clip` returns it.
        prompts: The prompts that were captioned, each with one picture, whose records hold the references under
            `captions`. Pictures are read batch by batch.
        order: The numbers of the prompts, in the order in which the rows of the metrics are to stand.
        captions: The caption of each prompt, in the order of the prompts.
    """
    # Pictures are read when their batch comes: only their numbers are handed on.
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
    """Check that the instance annotations that CHAIR needs cover every image.

    If CHAIR is not among the metrics, nothing is read and nothing is checked.

    Args:
        ids: The ids of the images, numbers or texts.
        name: The name of the evaluation, for messages.
        config: The configuration of the evaluation: its `metrics`; `instances`, COCO's file of instance annotations;
            and `object_names`, a file of names, or None for visllama's own list.

    Raises:
        ConfigError: If a file cannot be read or has another layout, or images are not in the annotations; the message
            names the first five.
    """
    if "CHAIR" in config["metrics"]:
        where = f"evaluation.{name}.instances={config['instances']}"
        check_objects(ids, _drawn_objects(config), where)


def _drawn_objects(config: Mapping) -> dict[str, frozenset[str]]:
    """Return the categories that annotators drew in each image, by the image's id as text."""
    return _read_once(config["instances"], config["object_names"])


# COCO's file is 150 MB, and is needed before and after the captions are generated.
@lru_cache(maxsize=1)
def _read_once(instances: str, names: str | None) -> dict[str, frozenset[str]]:
    return read_objects(Path(instances), object_names(names))


def find_hallucinations(
    config: Mapping,
    ids: Sequence[object],
    prompts: Prompts,
    order: Sequence[int],
    captions: Sequence[str],
) -> Hallucinations:
    """Find the objects that captions name although they are not in their pictures, as `chair.chair` counts them.

    Args:
        config: The configuration of the evaluation: its `instances`, COCO's file of instance annotations; and
            `object_names`, a file of names, or None for visllama's own list.
        ids: The id of each prompt's image. The instance annotations have to hold all of them, as `check_instances`
            checks.
        prompts: The prompts that were captioned, whose records hold the references under `captions`.
        order: The numbers of the prompts, in the order in which the images of the result are to stand.
        captions: The caption of each prompt, in the order of the prompts.

    Returns:
        The absent objects, in the order that `order` sets.
    """
    names = object_names(config["object_names"])
    drawn = _drawn_objects(config)
    return chair(
        [captions[number] for number in order],
        [prompts[number].record["captions"] for number in order],
        [drawn[str(ids[number])] for number in order],
        names,
    )
