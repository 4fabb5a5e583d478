"""CLIPScore of captions: how near CLIP sees a caption to its picture, without references; RefCLIPScore with them.

Reference:
    Hessel et al. 2021, "CLIPScore", arXiv:2104.08718. Published figures are of ViT-B/32; those of another CLIP do not
    compare to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from visllama.errors import ConfigError
from visllama.evaluation.prompts import ImageFile
from visllama.evaluation.statistics import CorpusMetric, mean_metric
from visllama.images.transform import ImageTransform
from visllama.model.pretrained import read

_SCALE = 2.5
_PREFIX = "A photo depicts "
_BATCH_SIZE = 64


class ClipScorer:
    """Score captions by a CLIP.

    Args:
        path: A folder or a hub id, with the image half and the text half of a CLIP, and its tokenizer.
        device: Where it computes.

    Raises:
        ConfigError: If it is no whole CLIP.
    """

    def __init__(self, path: str, device: torch.device) -> None:
        self._device = device
        self._tokenizer = read(AutoTokenizer, path)
        self._transform = ImageTransform.from_processor(read(CLIPImageProcessorPil, path))
        model, loaded = read(CLIPModel, path, dtype=torch.float32, output_loading_info=True)
        missing = sorted(loaded["missing_keys"])
        if missing:
            raise ConfigError(
                f"path={path}: CLIPScore needs a whole CLIP: {len(missing)} tensors are missing: {missing[0]}"
            )
        self._model = model.to(device).eval()
        self._check_tokenizer(path)

    def _check_tokenizer(self, path: str) -> None:
        """Check that texts end as CLIP's text half reads them: it looks at the place of the end token alone.

        Raises:
            ConfigError: If they do not: every text would have the same score.
        """
        ids = self._tokenizer("a photo")["input_ids"]
        end = self._model.config.text_config.eos_token_id
        if end == 2:  # in the configs of OpenAI's CLIPs, whose end token is in truth the last of the vocabulary
            end = self._model.config.text_config.vocab_size - 1
        if not ids or ids[-1] != end:
            raise ConfigError(
                f"path={path}: CLIPScore needs a whole CLIP, also its tokenizer: the one there does not end a text "
                f"with token {end}: put the files of the CLIP's own tokenizer there"
            )

    def score(
        self,
        captions: Sequence[str],
        references: Sequence[Sequence[str]],
        pictures_of: Callable[[int], Sequence[ImageFile]],
        advance: Callable[[int], None] = lambda _: None,
    ) -> dict[str, CorpusMetric]:
        """Return CLIPScore and RefCLIPScore of captions, each of a mean over images.

        Args:
            captions: A caption of each image.
            references: The references of each image.
            pictures_of: Returns the picture of an image by its number, as a list of one.
            advance: Is called with how many images more are done.
        """
        alone: list[float] = []
        with_references: list[float] = []
        for start in range(0, len(captions), _BATCH_SIZE):
            numbers = range(start, min(start + _BATCH_SIZE, len(captions)))
            images = self._embed_images([pictures_of(number)[0] for number in numbers])
            texts = self._embed_texts([captions[number] for number in numbers])
            scores = _SCALE * (images * texts).sum(1).clamp(min=0)
            alone += scores.tolist()
            nearest = self._nearest(texts, [references[number] for number in numbers])
            with_references += [_harmonic_mean(one, other) for one, other in zip(scores.tolist(), nearest, strict=True)]
            advance(len(numbers))
        return {"CLIPScore": mean_metric(np.array(alone)), "RefCLIPScore": mean_metric(np.array(with_references))}

    def _nearest(self, texts: Float[Tensor, "N D"], references: Sequence[Sequence[str]]) -> list[float]:
        """Return how near each caption is to the nearest of its references, at least 0; all are embedded at once."""
        embedded = self._embed_texts([reference for several in references for reference in several])
        of_each = embedded.split([len(several) for several in references])
        return [float((own @ text).max().clamp(min=0)) for own, text in zip(of_each, texts, strict=True)]

    @torch.inference_mode()
    def _embed_images(self, pictures: Sequence[ImageFile]) -> Float[Tensor, "N D"]:
        pixels = torch.stack([self._transform(picture) for picture in pictures]).to(self._device)
        mean = torch.tensor(self._transform.mean, device=self._device)[:, None, None]
        std = torch.tensor(self._transform.std, device=self._device)[:, None, None]
        features = self._model.get_image_features(pixel_values=(pixels / 255 - mean) / std)
        return _unit(features)

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        longest = self._model.config.text_config.max_position_embeddings
        read_as: Mapping[str, Any] = self._tokenizer(
            [_PREFIX + text for text in texts], padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        inputs = {name: read_as[name].to(self._device) for name in ("input_ids", "attention_mask")}
        return _unit(self._model.get_text_features(**inputs))


def _unit(features: Any) -> Float[Tensor, "N D"]:
    """Return features as unit vectors; newer transformers return them inside an output."""
    vectors = features if isinstance(features, Tensor) else features.pooler_output
    return vectors / vectors.norm(dim=-1, keepdim=True)


def _harmonic_mean(one: float, other: float) -> float:
    return 2 * one * other / (one + other) if one + other > 0 else 0.0
