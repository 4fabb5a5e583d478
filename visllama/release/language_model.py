"""The formats `language_model` and `adapter`: the language model with LoRA merged, and LoRA alone as PEFT has it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import get_peft_model
from transformers import GenerationConfig

from visllama.model.language_model import PretrainedLanguageModel
from visllama.model.lora import lora_config, spelled_out
from visllama.model.pretrained import quietly
from visllama.model.visllama import VisLlama
from visllama.release.config_files import portable_config
from visllama.release.jinja_template import write_jinja
from visllama.release.tokenizer_files import read_tokenizer, write_json, write_tokenizer
from visllama.text.encode import TextEncoder
from visllama.text.settings import TextSettings


def write_language_model(
    folder: Path, model: VisLlama, text: TextSettings, end_ids: list[int], max_new_tokens: int, max_shard_size: str
) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` read, the run's template as its chat template.

    Args:
        folder: An existing empty folder.
        model: A model, LoRA merged, in the dtype to be written.
        text: How the texts of its training were made.
        end_ids: The tokens that end a response.
        max_new_tokens: The most tokens of a response, where a caller names no other number.
        max_shard_size: The size of a file of tensors, for example "5GB".
    """
    language_model = model.language_model
    language_model.generation_config = GenerationConfig(
        bos_token_id=model.tokenizer.bos_token_id,
        eos_token_id=end_ids,
        pad_token_id=model.tokenizer.pad_token_id,
        max_new_tokens=max_new_tokens,
    )
    with quietly():
        language_model.save_pretrained(folder, max_shard_size=max_shard_size)
    dtype = str(language_model.dtype).removeprefix("torch.")
    config = portable_config(language_model.config, dtype)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", config | {"architectures": written["architectures"]})

    source = model.language_model_source
    jinja = write_jinja(text.template, text.prompt, TextEncoder(model.tokenizer), mark=None)
    if isinstance(source, PretrainedLanguageModel):
        write_tokenizer(folder, read_tokenizer(source), jinja, adds_bos=True)
    else:
        model.tokenizer.save_pretrained(folder)
        (folder / "chat_template.jinja").write_text(jinja, encoding="utf-8")


def write_adapter(folder: Path, model: VisLlama, base_name: str) -> None:
    """Write a PEFT folder that `PeftModel.from_pretrained` reads over the base model.

    Args:
        folder: An existing empty folder.
        model: A model with LoRA, which is not merged.
        base_name: How the base model is named there, for example its id on the hub.
    """
    arguments = spelled_out(model.language_model, model.lora)
    peft_config = lora_config(arguments)
    peft_config.task_type = "CAUSAL_LM"
    tensors = {f"base_model.model.{name}": tensor for name, tensor in model.language_model.state_dict().items()}
    with quiet_peft():
        shapes = get_peft_model(model.language_model_source.build(), peft_config, low_cpu_mem_usage=True)
        peft_config.base_model_name_or_path = base_name  # PEFT has written the base's folder there
        peft_config.inference_mode = True
        shapes.save_pretrained(folder, state_dict=tensors, save_embedding_layers=False)
    # A card of PEFT's own, with nothing in it.
    (folder / "README.md").unlink(missing_ok=True)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Keep off the terminal what PEFT makes transformers say: that PEFT calls something by its older name."""
    with quietly(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
