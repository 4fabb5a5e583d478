"""Write the export formats `language_model` (the language model with LoRA merged) and `adapter` (LoRA for PEFT)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Generator
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
    """Write a model's language model as a folder that `AutoModelForCausalLM` and `AutoTokenizer` of transformers read.

    The tokenizer gets the run's template as its chat template, which writes nothing for an image. The generation config
    of the model in memory is replaced.

    Args:
        folder: An existing empty folder.
        model: The model, with LoRA merged, in the dtype to write.
        text: The prompt, the template and the largest length of the texts that the model was trained on.
        end_ids: The ids of the tokens that end a response.
        max_new_tokens: The largest number of tokens of a response unless a caller of `generate` names another.
        max_shard_size: The largest size of one file of tensors, for example "5GB".
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

    # The class's name is in the file alone: the config in memory need not have it.
    config_file = folder / "config.json"
    saved_config = json.loads(config_file.read_text(encoding="utf-8"))
    dtype = str(language_model.dtype).removeprefix("torch.")
    config = portable_config(language_model.config, dtype)
    write_json(config_file, config | {"architectures": saved_config["architectures"]})

    source = model.language_model_source
    chat_template = write_jinja(text.template, text.prompt, TextEncoder(model.tokenizer), mark=None)
    if isinstance(source, PretrainedLanguageModel):
        write_tokenizer(folder, read_tokenizer(source), chat_template, adds_bos=True)
    else:
        # A source of the user's own may have a tokenizer of any kind, which saves itself.
        model.tokenizer.save_pretrained(folder)
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def write_adapter(folder: Path, model: VisLlama, base_name: str) -> None:
    """Write a model's LoRA adapter as a folder that `PeftModel.from_pretrained(BASE_MODEL, folder)` reads.

    Args:
        folder: An existing empty folder.
        model: The model, whose LoRA is not merged.
        base_name: The name of the base model to write into PEFT's config, for example its id on the hub.

    Raises:
        AssertionError: If the model has no LoRA.
    """
    assert model.lora is not None  # `find_obstacle` has refused a model without LoRA
    peft_config = lora_config(spelled_out(model.language_model, model.lora))
    peft_config.task_type = "CAUSAL_LM"
    tensors = {f"base_model.model.{name}": tensor for name, tensor in model.language_model.state_dict().items()}

    with quiet_peft():
        # PEFT picks its tensors out of all by the shapes of a model, which hold no memory here.
        shapes = get_peft_model(model.language_model_source.build(), peft_config, low_cpu_mem_usage=True)

        # Behind `get_peft_model`, which writes the base model's folder there.
        peft_config.base_model_name_or_path = base_name
        peft_config.inference_mode = True
        shapes.save_pretrained(str(folder), state_dict=tensors, save_embedding_layers=False)

    # PEFT writes a card of its own, with nothing in it.
    (folder / "README.md").unlink(missing_ok=True)


@contextmanager
def quiet_peft() -> Generator[None, None, None]:
    """Use as `with quiet_peft():` to silence all `FutureWarning`s, and what transformers logs below errors.

    PEFT calls a function of transformers by an older name, of which transformers would warn each user.
    """
    with quietly(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
