"""Train the embedded world's two backbones: a CLIP on scenes with near misses, and a LLaMA on text alone.

Both are transformers' own classes saved by `save_pretrained`, so the rest of the package loads them as it would a
published pair. The CLIP sees batches of scenes with their *near misses* (one fact changed): with random scenes alone it
need not know which of two things is the red one (Yuksekgonul et al. 2023, arXiv:2210.01936).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.progress import Progress
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from visllama.data.scenes import language
from visllama.data.scenes.renderer import IMAGE_SIZE_PX, render
from visllama.data.scenes.world import Dice, Scene, edit_scene, scene_of

NEAR_MISSES = int(__import__("os").environ.get("NM", "3"))
_MEAN, _STD = (0.85, 0.80, 0.80), (0.25, 0.25, 0.25)
_MAX_CAPTION_TOKENS = 32


def train_tokenizer(vocab_size: int, num_documents: int = 4000) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer. The ids 0..3 are LLaMA's: `</s>` is not 2, at which CLIP pools by argmax."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "<unk>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [language.document(i) for i in range(num_documents)]
    dice = Dice("tokenizer")
    texts += [" ".join(language.instruction(dice).values()) for _ in range(num_documents // 4)]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", unk_token="<unk>", eos_token="</s>"
    )


def _fit(
    name: str, model: nn.Module, losses: Iterator[Callable[[], Tensor]], num_steps: int, lr: float, progress: Progress
) -> None:
    """Run AdamW with warm-up and cosine over a stream of losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    warmup = max(1, num_steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(1.0, s / num_steps))) + 1e-3)
    )
    task = progress.add_task(name, total=num_steps)
    model.train()
    for _, loss_of in zip(range(num_steps), losses, strict=False):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.update(task, advance=1, description=f"{name} loss {loss.item():.3f}")
    model.eval()


def _pixels(scenes: list[Scene], dice: Dice) -> Tensor:
    """Render scenes as `(N, 3, H, W)` uint8."""
    images = b"".join(render(scene, dice).tobytes() for scene in scenes)
    flat = torch.frombuffer(bytearray(images), dtype=torch.uint8)
    return flat.view(len(scenes), IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3).permute(0, 3, 1, 2).contiguous()


def normalise(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (_MEAN, _STD))
    return (pixels.float() / 255 - mean) / std


def _clip_losses(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, batch_size: int, num_groups: int, progress: Progress
) -> Iterator[Callable[[], Tensor]]:
    """Yield contrastive losses over batches of groups: a scene and its near misses."""
    dice = Dice("clip")
    scenes, pixels = [], []
    task = progress.add_task("CLIP pictures", total=num_groups)
    for index in range(num_groups):
        group = [scene_of("clip", index)[0]]
        group += [edit_scene(dice, group[0]) for _ in range(NEAR_MISSES)]
        scenes.append(group)
        pixels.append(_pixels(group, dice))
        progress.update(task, advance=1)
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


def _tokenise(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> dict[str, Tensor]:
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    batch = tokenizer([f"{bos}{text}{eos}" for text in texts], padding=True, return_tensors="pt")
    return {
        "input_ids": batch["input_ids"][:, :_MAX_CAPTION_TOKENS],
        "attention_mask": batch["attention_mask"][:, :_MAX_CAPTION_TOKENS],
    }


def train_clip(
    tokenizer: PreTrainedTokenizerFast, progress: Progress, *, width: int, layers: int, text_layers: int, num_steps: int,
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
            "patch_size": int(__import__("os").environ.get("PATCH", "16")),
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
    _fit("CLIP", model, _clip_losses(model, tokenizer, batch_size, num_groups, progress), num_steps, lr, progress)
    return model


def _llama_losses(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    num_documents: int,
    batch_tokens: int,
    progress: Progress,
) -> Iterator[Callable[[], Tensor]]:
    """Yield next-token losses over batches of texts of like length."""
    task = progress.add_task("LLaMA texts", total=num_documents)
    documents = []
    for index in range(num_documents):
        ids = tokenizer(language.document(index), add_special_tokens=False)["input_ids"]
        documents.append([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id])
        progress.update(task, advance=1)
    documents.sort(key=len)
    batches: list[list[list[int]]] = [[]]
    for ids in documents:
        if (len(batches[-1]) + 1) * len(ids) > batch_tokens:
            batches.append([])
        batches[-1].append(ids)
    dice = Dice("llama")
    while True:
        for batch in dice.permutation(batches):
            longest = max(map(len, batch))
            ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in batch])
            labels = torch.tensor([row + [-100] * (longest - len(row)) for row in batch])
            yield lambda ids=ids, labels=labels: model(input_ids=ids, labels=labels).loss


def train_llama(
    tokenizer: PreTrainedTokenizerFast, progress: Progress, *, width: int, layers: int, num_steps: int, batch_tokens: int,
    num_documents: int, lr: float,
) -> LlamaForCausalLM:  # fmt: skip
    """Train a LLaMA on the world's texts; it never meets a picture."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=8 * width // 3 // 8 * 8, num_hidden_layers=layers,
        num_attention_heads=width // 32, max_position_embeddings=512, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    _fit(
        "LLaMA", model, _llama_losses(model, tokenizer, num_documents, batch_tokens, progress), num_steps, lr, progress
    )
    return model


def probe(clip: CLIPModel, field: str, num_scenes: int = 1500) -> float:
    """Give the accuracy of a linear probe on pooled features, for one fact of single things, on unseen pictures."""
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
    """Give how often a picture's own sentence beats those of its near misses, over scenes of one kind."""
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


def save_pair(clip: CLIPModel, llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save both in bf16 safetensors as `clip/` and `llama/` with their processor and tokenizer."""
    clip.to(torch.bfloat16).save_pretrained(folder / "clip")
    size = {"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX}
    CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE_PX}, crop_size=size, image_mean=list(_MEAN), image_std=list(_STD)
    ).save_pretrained(folder / "clip")
    llama.to(torch.bfloat16).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
