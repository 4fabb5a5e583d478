"""A whole CLIP with a tokenizer, of the embedded world."""

from __future__ import annotations

import shutil
from pathlib import Path

from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from visllama.model.locate import locate


def write_whole_clip(folder: Path) -> str:
    """Write the embedded world's CLIP with its tokenizer, which ends each text, as a CLIP's own does."""
    shutil.copytree(locate("visllama:clip"), folder, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(locate("visllama:llama"))
    specials = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=specials)
    tokenizer.save_pretrained(folder)
    return str(folder)
