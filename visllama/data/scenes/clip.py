"""The embedded world's CLIP: trained contrastively on scenes and their near misses, and measured.

With random scenes alone a CLIP need not know which of two things is the red one; beside its *near misses* (one fact
changed) it must (Yuksekgonul et al. 2023, arXiv:2210.01936).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from visllama.data.scenes import language
from visllama.data.scenes.fit import Report, fit
from visllama.data.scenes.renderer import IMAGE_SIZE_PX, render
from visllama.data.scenes.world import GRID, Dice, Scene, edit_scene, scene_of

NEAR_MISSES = 3
MEAN, STD = (0.85, 0.80, 0.80), (0.25, 0.25, 0.25)
_MAX_CAPTION_TOKENS = 32


def train_clip(
    tokenizer: PreTrainedTokenizerFast, report: Report, *, width: int, layers: int, text_layers: int, num_steps: int,
    batch_size: int, num_groups: int, lr: float,
) -> CLIPModel:  # fmt: skip
    """Train a CLIP whose patches are the world's grid cells."""
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
    fit("CLIP", model, _clip_losses(model, tokenizer, batch_size, num_groups, report), num_steps, lr, report)
    return model


def _clip_losses(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, batch_size: int, num_groups: int, report: Report
) -> Iterator[Callable[[], Tensor]]:
    """Yield contrastive losses over batches of groups: a scene and its near misses."""
    dice = Dice("clip")
    scenes, pixels = [], []
    for index in range(num_groups):
        group = [scene_of("clip", index)[0]]
        group += [edit_scene(dice, group[0]) for _ in range(NEAR_MISSES)]
        scenes.append(group)
        pixels.append(_pixels(group, dice))
        report("CLIP", 0, 1, f"pictures {index + 1} of {num_groups}")
    per_batch = batch_size // (1 + NEAR_MISSES)
    while True:
        shuffled = dice.permutation(range(num_groups))
        for start in range(0, num_groups - per_batch + 1, per_batch):
            chosen = shuffled[start : start + per_batch]

            def loss(chosen: list[int] = chosen) -> Tensor:
                # All sentences of a batch tell the same facts, so which of them fit which picture is known.
                facts = [fact for fact in language.OPTIONAL_FACTS if dice.chance(0.5)]
                shown = [scene for g in chosen for scene in scenes[g]]
                texts = [language.caption(scene, dice, facts) for scene in shown]
                said = [language.caption(scene, Dice(0), facts) for scene in shown]
                tokens = _tokenise(tokenizer, texts)
                outputs = model(pixel_values=normalise(torch.cat([pixels[g] for g in chosen])), **tokens)
                same = torch.tensor([[a == b for b in said] for a in said]).fill_diagonal_(False)
                logits = outputs.logits_per_image.masked_fill(same, float("-inf"))
                targets = torch.arange(len(texts))
                return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2

            yield loss


def _pixels(scenes: list[Scene], dice: Dice) -> Tensor:
    """Render scenes as `(N, 3, H, W)` uint8."""
    images = b"".join(render(scene, dice).tobytes() for scene in scenes)
    flat = torch.frombuffer(bytearray(images), dtype=torch.uint8)
    return flat.view(len(scenes), IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3).permute(0, 3, 1, 2).contiguous()


def normalise(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def _tokenise(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> dict[str, Tensor]:
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    batch = tokenizer([f"{bos}{text}{eos}" for text in texts], padding=True, return_tensors="pt")
    return {
        "input_ids": batch["input_ids"][:, :_MAX_CAPTION_TOKENS],
        "attention_mask": batch["attention_mask"][:, :_MAX_CAPTION_TOKENS],
    }


def probe(clip: CLIPModel, field: str, num_scenes: int = 1500) -> float:
    """Return the accuracy of a linear probe on pooled features, for one fact of single things, on unseen pictures."""
    dice, scenes, index = Dice("probe"), [], 0
    while len(scenes) < num_scenes:
        scene, _ = scene_of("probe", index)
        scenes, index = scenes + [scene] * (scene.kind == "one"), index + 1
    with torch.no_grad():
        features = clip.get_image_features(normalise(_pixels(scenes, dice))).pooler_output
    names = sorted({getattr(scene.things[0], field) for scene in scenes})
    targets = F.one_hot(torch.tensor([names.index(getattr(s.things[0], field)) for s in scenes])).float()
    inputs = torch.cat([features / features.norm(dim=-1, keepdim=True), torch.ones(len(scenes), 1)], dim=1)
    half = num_scenes // 2
    gram = inputs[:half].T @ inputs[:half] + 1e-4 * torch.eye(inputs.shape[1])
    solution = torch.linalg.solve(gram, inputs[:half].T @ targets[:half])
    return (inputs[half:] @ solution).argmax(1).eq(targets[half:].argmax(1)).float().mean().item()


def near_miss_accuracy(clip: CLIPModel, tokenizer: PreTrainedTokenizerFast, kind: str, num_groups: int = 250) -> float:
    """Return how often a picture's own sentence beats those of its near misses, over scenes of one kind."""
    dice, hits, total, index = Dice("near"), 0, 0, 0
    while total < num_groups:
        scene, _ = scene_of("probe", index)
        index += 1
        if scene.kind != kind:
            continue
        texts = [
            language.caption(s, Dice(0), tuple(language.OPTIONAL_FACTS))
            for s in [scene] + [edit_scene(dice, scene) for _ in range(8)]
        ]
        texts = [texts[0]] + [text for text in texts[1:] if text != texts[0]]
        with torch.no_grad():
            logits = clip(
                pixel_values=normalise(_pixels([scene], dice)), **_tokenise(tokenizer, texts)
            ).logits_per_image
        hits, total = hits + int(logits.argmax() == 0), total + 1
    return hits / total
