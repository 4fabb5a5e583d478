"""Read exported LLaVA folders in an environment that holds torch, transformers and pillow alone; visllama is not there.

    python read_llava.py RESULT.json FOLDER...

Each FOLDER has model/, which was exported, and expected.safetensors beside it: prompts, pixels, and the model's logits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

_BATCH = 50


@torch.no_grad()
def read(folder: Path) -> dict:
    """Return what this release of transformers makes of a folder."""
    expected = load_file(folder / "expected.safetensors")
    model, report = LlavaForConditionalGeneration.from_pretrained(
        folder / "model", output_loading_info=True, dtype=torch.float32
    )
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    processor = AutoProcessor.from_pretrained(folder / "model", use_fast=False)
    size = expected["logits"].shape[-1]

    prompt = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=False)
    prompt = prompt.replace(processor.image_token, processor.image_token * model.config.image_seq_length)
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    captions = []
    for pixels in expected["pixel_values"].split(_BATCH):
        shown = ids.expand(len(pixels), -1)
        written = model.generate(input_ids=shown, attention_mask=torch.ones_like(shown), pixel_values=pixels)
        captions += tokenizer.batch_decode(written[:, shown.shape[1] :], skip_special_tokens=True)

    logits = model(input_ids=expected["input_ids"], pixel_values=expected["pixel_values"][:1]).logits[..., :size]
    torch.manual_seed(0)
    starts = torch.randint(4, size, (50, 2))
    sampled = model.generate(
        input_ids=starts, attention_mask=torch.ones_like(starts), do_sample=True, temperature=1.0, top_k=0,
        max_new_tokens=200, min_new_tokens=200,
    )[:, 2:]  # fmt: skip
    return {
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(report["unexpected_keys"]),
        "difference": (logits - expected["logits"]).abs().max().item(),
        "captions": [" ".join(caption.split()) for caption in captions],
        "sampled": sampled.numel(),
        "added_ids_sampled": int((sampled >= size).sum()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests: sums come in the same order
    found = {Path(name).name: read(Path(name)) for name in sys.argv[2:]}
    Path(sys.argv[1]).write_text(json.dumps({"transformers": transformers.__version__, "folders": found}))
