"""Train and measure the tiny CLIP of the embedded world, the small world of shapes in `visllama.data.scenes.world`.

It is trained contrastively on scenes and their *near misses*, scenes with one fact changed. With random scenes alone a
CLIP need not know which of two things is the red one; beside near misses it must (Yuksekgonul et al. 2023,
arXiv:2210.01936).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from visllama.data.scenes import language
from visllama.data.scenes.fit import Report, fit
from visllama.data.scenes.renderer import IMAGE_SIZE_PX, render
from visllama.data.scenes.world import GRID, Dice, Scene, edit_scene, scene_of

NEAR_MISSES = 3
"""The number of near misses of each training scene."""
MEAN = (0.85, 0.80, 0.80)
"""The mean of each channel (RGB, in [0, 1]) that pictures are normalised with."""
STD = (0.25, 0.25, 0.25)
"""The standard deviation of each channel (RGB, in [0, 1]) that pictures are normalised with."""
_MAX_CAPTION_TOKENS = 32


class _Group(NamedTuple):
    """A scene with its near misses, and their pictures in the same order."""

    scenes: list[Scene]
    pixels: UInt8[Tensor, "N 3 H W"]


def train_clip(
    tokenizer: PreTrainedTokenizerFast,
    report: Report,
    *,
    width: int,
    layers: int,
    text_layers: int,
    num_steps: int,
    batch_size: int,
    num_groups: int,
    lr: float,
) -> CLIPModel:
    """Make a CLIP with random weights, train it on scenes and captions of the world, and return it in eval mode.

    Each of its patches is one cell of the world's grid. All pictures are drawn first, and held in memory.

    Args:
        tokenizer: The world's tokenizer, as `train_tokenizer` returns it.
        report: Called with the progress, at each group of pictures that is drawn and then at each training step.
        width: Width of both encoders, and of the space that they share; a multiple of 32.
        layers: Number of layers of the vision encoder.
        text_layers: Number of layers of the text encoder.
        num_steps: Number of training steps.
        batch_size: Number of pictures in a batch, at least 4. They come in groups of four, a scene and its three near
            misses.
        num_groups: Number of groups to train on; at least `batch_size // 4`.
        lr: The highest learning rate.

    Raises:
        ValueError: If the batch is smaller than a group, or larger than all groups.
    """
    groups_per_batch = batch_size // (1 + NEAR_MISSES)
    if not 1 <= groups_per_batch <= num_groups:
        raise ValueError(f"batch_size={batch_size}: must hold 1 to {num_groups} groups of {1 + NEAR_MISSES} pictures")

    # Both encoders have heads of 32 values.
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 32}
    config = CLIPConfig(
        projection_dim=width,
        vision_config=shape
        | {
            "num_hidden_layers": layers,
            "image_size": IMAGE_SIZE_PX,
            "patch_size": IMAGE_SIZE_PX // GRID,
            "projection_dim": width,
        },
        text_config=shape
        | {
            "num_hidden_layers": text_layers,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": _MAX_CAPTION_TOKENS,
            "projection_dim": width,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
    )

    model = CLIPModel(config)
    # transformers starts these 20 times smaller than the patches beside them: places would be learned last, if at all.
    nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=0.3)

    losses = _clip_losses(model, tokenizer, groups_per_batch, num_groups, report)
    fit("CLIP", model, losses, num_steps, lr, report)
    return model


def _clip_losses(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, groups_per_batch: int, num_groups: int, report: Report
) -> Iterator[Callable[[], Float[Tensor, ""]]]:
    """Yield functions without end that each compute the contrastive loss of a batch of scenes and their near misses."""
    dice = Dice("clip")
    groups: list[_Group] = []
    for index in range(num_groups):
        scene, _ = scene_of("clip", index)
        near_misses = [edit_scene(dice, scene) for _ in range(NEAR_MISSES)]
        scenes = [scene, *near_misses]
        pixels = _pixels(scenes, dice)
        groups.append(_Group(scenes, pixels))
        report("CLIP", 0, 1, f"pictures {index + 1} of {num_groups}")

    last_start = num_groups - groups_per_batch
    while True:
        shuffled = dice.permutation(groups)
        for start in range(0, last_start + 1, groups_per_batch):
            batch = shuffled[start : start + groups_per_batch]
            yield partial(_contrastive_loss, model, tokenizer, batch, dice)


def _contrastive_loss(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, batch: list[_Group], dice: Dice
) -> Float[Tensor, ""]:
    """Return the loss of telling which caption belongs to which picture; `dice` draws the captions."""
    # All sentences of a batch tell the same facts, so which of them fit which picture is known.
    facts = [fact for fact in language.OPTIONAL_FACTS if dice.chance(0.5)]
    scenes = [scene for group in batch for scene in group.scenes]
    texts = [language.caption(scene, dice, facts) for scene in scenes]
    tokens = _tokenise(tokenizer, texts)

    pixels = torch.cat([group.pixels for group in batch])
    outputs = model(pixel_values=normalise(pixels), **tokens)

    # A sentence of another picture that fits this one as well is no wrong answer.
    logits = outputs.logits_per_image.masked_fill(_tell_the_same(scenes, facts), float("-inf"))
    targets = torch.arange(len(texts))
    loss_of_images = F.cross_entropy(logits, targets)
    loss_of_texts = F.cross_entropy(logits.T, targets)
    return (loss_of_images + loss_of_texts) / 2


def _tell_the_same(scenes: list[Scene], facts: Collection[str]) -> Bool[Tensor, "N N"]:
    """Return for each scene which of the other scenes are equal to it in these facts; none is equal to itself."""
    # Scenes of which the same facts are told have equal sentences by equal dice.
    contents = [language.caption(scene, Dice(0), facts) for scene in scenes]
    rows = []
    for content in contents:
        rows.append([content == other for other in contents])
    return torch.tensor(rows).fill_diagonal_(False)


def _pixels(scenes: list[Scene], dice: Dice) -> UInt8[Tensor, "N 3 H W"]:
    """Return newly drawn pictures of scenes; `dice` draws their small random shifts."""
    images = b"".join(render(scene, dice).tobytes() for scene in scenes)
    flat = torch.frombuffer(bytearray(images), dtype=torch.uint8)
    channels_last = flat.view(len(scenes), IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3)
    return channels_last.permute(0, 3, 1, 2).contiguous()


def normalise(pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
    """Return pixels from 0 to 255 as the CLIP expects them: divided by 255, less `MEAN`, divided by `STD`."""
    mean = torch.tensor(MEAN).view(3, 1, 1)
    std = torch.tensor(STD).view(3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def _tokenise(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> dict[str, Int[Tensor, "N T"]]:
    """Return the `input_ids` and the `attention_mask` of texts, padded on the right and cut to the longest caption."""
    bos = tokenizer.bos_token
    eos = tokenizer.eos_token
    marked_texts = [f"{bos}{text}{eos}" for text in texts]
    batch = tokenizer(marked_texts, padding=True, return_tensors="pt")
    return {name: batch[name][:, :_MAX_CAPTION_TOKENS] for name in ("input_ids", "attention_mask")}


def probe(clip: CLIPModel, field: str, num_scenes: int = 1500) -> float:
    """Return the accuracy, from 0 to 1, with which a linear classifier reads a fact from the CLIP's image features.

    The classifier is fitted by ridge regression to scenes of one thing; every call draws the same scenes.

    Args:
        clip: The model.
        field: The fact of the thing that is classified: "color", "shape", "size" or "cell".
        num_scenes: Number of scenes; the classifier is fitted to the first half and judged on the second.

    Raises:
        AttributeError: If a thing has no such field.
    """
    dice = Dice("probe")
    scenes = []
    index = 0
    while len(scenes) < num_scenes:
        scene, _ = scene_of("probe", index)
        index += 1
        if scene.kind == "one":
            scenes.append(scene)

    pixel_values = normalise(_pixels(scenes, dice))
    with torch.no_grad():
        features = clip.get_image_features(pixel_values).pooler_output
    values = [getattr(scene.things[0], field) for scene in scenes]
    classes = sorted(set(values))
    labels = torch.tensor([classes.index(value) for value in values])

    half = num_scenes // 2
    predicted = _ridge_regression(features[:half], labels[:half], features[half:])
    is_right = predicted.eq(labels[half:])
    return is_right.float().mean().item()


def _ridge_regression(
    features: Float[Tensor, "N D"], labels: Int[Tensor, " N"], new_features: Float[Tensor, "M D"]
) -> Int[Tensor, " M"]:
    """Fit a linear classifier to features with labels, and return the labels that it predicts for new features."""
    inputs = _directions(features)
    targets = F.one_hot(labels).float()
    gram = inputs.T @ inputs + 1e-4 * torch.eye(inputs.shape[1])
    solution = torch.linalg.solve(gram, inputs.T @ targets)

    scores = _directions(new_features) @ solution
    return scores.argmax(1)


def _directions(features: Float[Tensor, "N D"]) -> Float[Tensor, "N D+1"]:
    """Return features scaled to length 1, with a column of ones behind them for the bias."""
    lengths = features.norm(dim=-1, keepdim=True)
    ones = torch.ones(len(features), 1)
    return torch.cat([features / lengths, ones], dim=1)


def near_miss_accuracy(clip: CLIPModel, tokenizer: PreTrainedTokenizerFast, kind: str, num_groups: int = 250) -> float:
    """Return the share, from 0 to 1, of pictures to which the CLIP gives the highest score with their own caption.

    The other captions of a picture are those of near misses, which are scenes with one fact changed.

    Args:
        clip: The model.
        tokenizer: The tokenizer that the model was trained with.
        kind: The kind of scene: "one", "two" or "alike", as `Scene.kind` has it; with any other, the call never ends.
        num_groups: Number of pictures, at least 1, each with up to eight near misses.
    """
    dice = Dice("near")
    all_facts = tuple(language.OPTIONAL_FACTS)
    num_hits = 0
    total = 0
    index = 0
    while total < num_groups:
        scene, _ = scene_of("probe", index)
        index += 1
        if scene.kind != kind:
            continue

        near_misses = [edit_scene(dice, scene) for _ in range(8)]
        own_text = language.caption(scene, Dice(0), all_facts)
        other_texts = [language.caption(near_miss, Dice(0), all_facts) for near_miss in near_misses]
        # A near miss may be the scene itself, where its edit would have changed the scene's kind.
        texts = [own_text, *(text for text in other_texts if text != own_text)]

        pixel_values = normalise(_pixels([scene], dice))
        with torch.no_grad():
            logits = clip(pixel_values=pixel_values, **_tokenise(tokenizer, texts)).logits_per_image
        if logits.argmax() == 0:
            num_hits += 1
        total += 1
    return num_hits / total
