"""CLIPScore of captions: how similar CLIP finds a caption and its picture; RefCLIPScore uses references too.

Reference:
    Hessel et al. 2021, "CLIPScore", arXiv:2104.08718. Published figures come from ViT-B/32; figures of another CLIP are
    not comparable to them.
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
    """Load a CLIP, and score captions of pictures by it.

    Args:
        path: A folder or a hub id, with the image half and the text half of a CLIP, its tokenizer and the settings of
            its image processor.
        device: The device that computes the embeddings, in fp32.

    Raises:
        ConfigError: If the CLIP cannot be read, or half of the CLIP or its tokenizer is missing.
    """

    def __init__(self, path: str, device: torch.device) -> None:
        self._device = device
        self._tokenizer = read(AutoTokenizer, path)
        self._transform = ImageTransform.from_processor(read(CLIPImageProcessorPil, path))

        # transformers would fill a missing half with random numbers.
        model, loaded = read(CLIPModel, path, dtype=torch.float32, output_loading_info=True)
        missing = sorted(loaded["missing_keys"])
        if missing:
            raise ConfigError(
                f"path={path}: CLIPScore needs a whole CLIP: {len(missing)} tensors are missing: {missing[0]}"
            )

        self._model = model.to(device).eval()
        self._check_tokenizer(path)

    def _check_tokenizer(self, path: str) -> None:
        """Check that the tokenizer ends a text with the end token of CLIP's text half.

        The text half returns the vector at the end token. Without that token every text would have the same score.

        Raises:
            ConfigError: If the tokenizer ends texts otherwise.
        """
        ids = self._tokenizer("a photo")["input_ids"]
        end = self._model.config.text_config.eos_token_id
        # The configs of OpenAI's CLIPs say 2; their end token is in truth the last of the vocabulary.
        if end == 2:
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
        """Compute CLIPScore and RefCLIPScore of captions, and return them by these names, each a mean over images.

        The CLIPScore of an image is 2.5 times the cosine of caption and picture, in [0, 2.5]. Its RefCLIPScore is the
        harmonic mean of its CLIPScore and the caption's cosine to the nearest reference. The rows of the metrics are in
        the order of `captions`.

        Args:
            captions: The caption of each image.
            references: The references of each image, at least one, in the same order.
            pictures_of: A function that takes the place of an image in `captions`, and returns a list whose first entry
                is the image's picture. It is called batch by batch, so that only one batch is in memory.
            advance: A function that is called after each batch with the number of images in the batch.

        Raises:
            BadRecord: If a picture cannot be decoded.
        """
        alone: list[float] = []
        with_references: list[float] = []
        for start in range(0, len(captions), _BATCH_SIZE):
            numbers = range(start, min(start + _BATCH_SIZE, len(captions)))
            # Pictures of a batch are read here, and not held longer.
            images = self._embed_images([pictures_of(number)[0] for number in numbers])
            texts = self._embed_texts([captions[number] for number in numbers])

            # All are unit vectors, so the sum of products is the cosine.
            scores = (_SCALE * (images * texts).sum(1).clamp(min=0)).tolist()
            alone += scores

            nearest = self._nearest(texts, [references[number] for number in numbers])
            for score, similarity in zip(scores, nearest, strict=True):
                with_references.append(_harmonic_mean(score, similarity))
            advance(len(numbers))

        return {
            "CLIPScore": mean_metric(np.array(alone)),
            "RefCLIPScore": mean_metric(np.array(with_references)),
        }

    def _nearest(self, texts: Float[Tensor, "N D"], references: Sequence[Sequence[str]]) -> list[float]:
        """Return the cosine of each caption to the nearest of its references, at least 0."""
        # The references of all images are embedded in one batch, and split again by image.
        all_references = []
        for of_image in references:
            all_references.extend(of_image)
        embedded = self._embed_texts(all_references)
        embedded_of_images = embedded.split([len(of_image) for of_image in references])

        similarities = []
        for embedded_references, text in zip(embedded_of_images, texts, strict=True):
            nearest = (embedded_references @ text).max().clamp(min=0)
            similarities.append(float(nearest))
        return similarities

    @torch.inference_mode()
    def _embed_images(self, pictures: Sequence[ImageFile]) -> Float[Tensor, "N D"]:
        """Return the unit vectors of pictures."""
        pixels = torch.stack([self._transform(picture) for picture in pictures]).to(self._device)
        mean = torch.tensor(self._transform.mean, device=self._device)[:, None, None]
        std = torch.tensor(self._transform.std, device=self._device)[:, None, None]
        normalised = (pixels / 255 - mean) / std
        features = self._model.get_image_features(pixel_values=normalised)
        return _unit(features)

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        """Return the unit vectors of texts behind CLIPScore's prefix; a text that is too long is cut."""
        tokenised: Mapping[str, Any] = self._tokenizer(
            [_PREFIX + text for text in texts],
            padding=True,
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        features = self._model.get_text_features(
            input_ids=tokenised["input_ids"].to(self._device),
            attention_mask=tokenised["attention_mask"].to(self._device),
        )
        return _unit(features)


def _unit(features: Any) -> Float[Tensor, "N D"]:
    """Return features, or those inside an output of transformers, scaled to length 1."""
    # Newer versions of transformers return the features inside an output.
    vectors = features if isinstance(features, Tensor) else features.pooler_output
    return vectors / vectors.norm(dim=-1, keepdim=True)


def _harmonic_mean(one: float, other: float) -> float:
    if one + other > 0:
        return 2 * one * other / (one + other)
    return 0.0
