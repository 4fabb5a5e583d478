"""A tokenizer's folder that every release of transformers reads, and the tokens that stand for an image."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from visllama.errors import ConfigError
from visllama.model.language_model import PretrainedLanguageModel
from visllama.model.pretrained import read
from visllama.release.jinja_template import ImageMark
from visllama.text.tokens import BOI_ID, EOI_ID, PLACEHOLDER_ID

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_tokenizer(source: PretrainedLanguageModel) -> PreTrainedTokenizerBase:
    """Read a language model's tokenizer anew, so that what is added to it is not in the model's own.

    Raises:
        ConfigError: If it is none that a tokenizer.json can hold.
    """
    tokenizer = read(AutoTokenizer, source.path, source.revision)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ConfigError(f"path={source.path}: its tokenizer has no tokenizer.json, and none can be made of it")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def exported_ids(num_embeddings: int) -> dict[int, int]:
    """Return the ids that stand for our markers and the placeholder in an exported tokenizer, by our own ids.

    Args:
        num_embeddings: Rows of the language model's embeddings (V): the new ids are those behind.
    """
    return {special: num_embeddings + place for place, special in enumerate((BOI_ID, EOI_ID, PLACEHOLDER_ID))}


def add_image_tokens(tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> tuple[ImageMark, list[int]]:
    """Add the two markers and the image's token, whose ids follow the embeddings that the language model has.

    Where there are more embeddings than tokens, names without a meaning fill the ids between.

    Args:
        tokenizer: The tokenizer, which is changed.
        num_embeddings: Rows of the language model's embeddings (V); the new ids are those of `exported_ids`.

    Returns:
        The names of the new tokens, and all ids that were added.
    """
    backend = tokenizer.backend_tokenizer
    known = set(backend.get_vocab())
    first_new = max(backend.get_vocab().values()) + 1
    fillers = [f"<|unused_{i}|>" for i in range(first_new, num_embeddings)]
    mark = ImageMark(*(_free_name(name, known) for name in ("[boi]", "<image>", "[eoi]")))
    names = [*fillers, mark.boi, mark.eoi, mark.image]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])

    ids = [backend.token_to_id(name) for name in names]
    if ids != list(range(first_new, num_embeddings + 3)):
        raise ConfigError(f"format=llava: the tokenizer gives new tokens the ids {ids[:5]} ..., not {first_new} and on")
    return mark, ids


def _free_name(name: str, known: set[str]) -> str:
    """Return a name that is no token yet."""
    while name in known:
        name = f"{name[0]}visllama_{name[1:]}"
    return name


def write_tokenizer(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str,
    adds_bos: bool,
    processor: str | None = None,
) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja.

    `save_pretrained` of transformers 5 names a class that transformers 4 does not know.

    Args:
        folder: An existing folder.
        tokenizer: The tokenizer.
        chat_template: A Jinja template, as `write_jinja` makes it.
        adds_bos: Whether a text is given BOS by the tokenizer, where the published one gives it; else the chat template
            alone writes it.
        processor: The class of transformers' processor that uses it.
    """
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = False
    if not adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    backend.save(str(folder / "tokenizer.json"))

    special = {name: str(getattr(tokenizer, name)) for name in _SPECIAL if getattr(tokenizer, name) is not None}
    values = special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": min(tokenizer.model_max_length, 10**30),
        "padding_side": "left",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if not adds_bos:
        values["add_bos_token"] = False
    if processor is not None:
        values["processor_class"] = processor
    write_json(folder / "tokenizer_config.json", values)
    write_json(folder / "special_tokens_map.json", special)
    (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write a JSON file into a folder that is not there for others yet."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
