"""What captions are worth under each ablation: CIDEr, and its difference to the whole with an interval.

Scores are on pycocoevalcap's scale. The document frequencies are those of the references, so they are the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from visllama.console import bars
from visllama.data.samples import Sample
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.captions import CaptionScorer
from visllama.evaluation.statistics import bootstrap_intervals, mean_metric
from visllama.inspect.connector.ablations import WHOLE, Ablation, changed_inputs
from visllama.model.visllama import VisLlama


@dataclass(frozen=True)
class AblationScore:
    """What the captions are worth under an ablation.

    Attributes:
        ablation: The ablation.
        cider: CIDEr over all pictures.
        difference: CIDEr minus that of the ablation's baseline.
        interval: The paired bootstrap interval of the difference over pictures, 95%.
        changed: The share of captions that are not those of the whole.
    """

    ablation: Ablation
    cider: float
    difference: float
    interval: list[float]
    changed: float

    @property
    def is_sure(self) -> bool:
        """Return whether the interval leaves zero out."""
        low, high = self.interval
        return low > 0 or high < 0


class WholeCaptions(NamedTuple):
    """The captions when nothing is left out.

    Attributes:
        captions: The caption of each picture.
        ids: What was written, as ids.
        cider: The CIDEr of each.
    """

    captions: list[str]
    ids: list[list[int]]
    cider: np.ndarray


class AblationResults(NamedTuple):
    """The score of each ablation, the whole first, and the captions of the whole."""

    scores: list[AblationScore]
    whole: WholeCaptions


class AblatedReader:
    """Caption pictures whose image vectors are given.

    Args:
        model: The model that writes.
        captioner: Has the collator and the decoding.
        samples: The pictures' Samples.
    """

    def __init__(self, model: VisLlama, captioner: Captioner, samples: Sequence[Sample]) -> None:
        self.model, self.captioner, self.samples = model, captioner, samples

    @torch.inference_mode()
    def write(self, image_embeds: Float[Tensor, "N K D"], kept: Bool[Tensor, " span"] | None = None) -> list[list[int]]:
        """Return the ids that the model writes after each picture.

        Args:
            image_embeds: The vectors of the pictures.
            kept: Which positions of a span are read, `[boi]` and `[eoi]` included; None is all. The others are left
                out, and the positions behind them close up.
        """
        size = self.captioner.batch_size
        device = self.model.markers.device
        written = []
        for start in range(0, len(self.samples), size):
            batch = self.captioner.collator.generation_batch(self.samples[start : start + size])
            input_ids, attention_mask = (batch[name].to(device) for name in ("input_ids", "attention_mask"))
            embeds = self.model.splice(input_ids, image_embeds[start : start + size].to(device))
            if kept is not None:
                # Not by the mask: where `[eoi]` is the last position, the model would write on from what it says.
                is_read = torch.ones_like(input_ids, dtype=torch.bool)
                is_read[input_ids < 0] = kept.to(device).repeat(len(input_ids))
                embeds = embeds[is_read].unflatten(0, (len(input_ids), -1))
                attention_mask = attention_mask[is_read].unflatten(0, (len(input_ids), -1))
            ids = self.model.write_on(embeds, attention_mask, **self.captioner.decoding)
            written += ids.tolist()
        return written

    def texts(self, written: Sequence[Sequence[int]]) -> list[str]:
        """Return what was written as captions of one line."""
        decoded = self.captioner.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [" ".join(text.split()) for text in decoded]


def score_ablations(
    reader: AblatedReader,
    ablations: Sequence[Ablation],
    shown: Mapping[str, Float[Tensor, "N K D"]],
    keys: Sequence[str],
    references: Mapping[str, Sequence[str]],
) -> AblationResults:
    """Caption the pictures under each ablation, and compare the captions' CIDEr with that of its baseline.

    Args:
        reader: Writes the captions.
        ablations: What is left out; baselines come before what is compared with them, and the whole is the first.
        shown: The image vectors, as `changed_inputs` takes them.
        keys: The id of each picture.
        references: The references of each picture, by its id.
    """
    scorer = CaptionScorer(references)
    scores: list[AblationScore] = []
    per_kind: dict[str, np.ndarray] = {}
    with bars() as progress:
        task = progress.add_task("captions", total=len(ablations))
        for ablation in ablations:
            progress.update(task, description=ablation.name)
            ids = reader.write(*changed_inputs(ablation, shown))
            captions = reader.texts(ids)
            found = scorer.score(dict(zip(keys, captions, strict=True)), ("CIDEr",))
            by_key = dict(zip(found.ids, found.metrics["CIDEr"].per_image, strict=True))
            per_picture = per_kind[ablation.kind] = np.array([by_key[key] for key in keys])
            if ablation.kind == WHOLE:
                whole = WholeCaptions(captions, ids, per_picture)
            changed = np.mean([a != b for a, b in zip(captions, whole.captions, strict=True)])
            difference = per_picture - per_kind[ablation.baseline]
            # Of differences picture by picture: it is paired.
            interval = bootstrap_intervals({"difference": mean_metric(difference)})["difference"]
            scores.append(
                AblationScore(ablation, found.values["CIDEr"], float(difference.mean()), interval, float(changed))
            )
            progress.advance(task)
    return AblationResults(scores, whole)
