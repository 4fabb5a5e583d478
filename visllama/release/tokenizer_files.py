"""Write the files of a tokenizer so that transformers 4 and 5 read them, and add the tokens that stand for an image."""

from __future__ import annotations

import json
from collections.abc import Container
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
    """Load a new copy of a language model's tokenizer, to which tokens can be added without changing the model's own.

    If it has no padding token, its EOS (end of sequence) token becomes that.

    Args:
        source: The language model's source, whose path and revision the tokenizer is read from.

    Raises:
        ConfigError: If the tokenizer cannot be read, or has no form that a tokenizer.json can hold.
    """
    tokenizer = read(AutoTokenizer, source.path, source.revision)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ConfigError(
            f"path={source.path}: its tokenizer has no tokenizer.json, and none can be made of it: take format=hub, "
            f"which needs none"
        )

    # Padding is masked everywhere, so that any token will do.
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def exported_ids(num_embeddings: int) -> dict[int, int]:
    """Return the ids that visllama's three image tokens have in an exported tokenizer, each by its id in visllama.

    The tokens are the marker before an image, the marker after it, and the placeholder of an image's vectors; in
    visllama their ids are negative.

    Args:
        num_embeddings: Number of the language model's embeddings (V); the new ids are V, V + 1 and V + 2.
    """
    return {
        BOI_ID: num_embeddings,
        EOI_ID: num_embeddings + 1,
        PLACEHOLDER_ID: num_embeddings + 2,
    }


def add_image_tokens(tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> tuple[ImageMark, list[int]]:
    """Add three tokens to a tokenizer: the markers before and after an image, and the image token.

    They are called `[boi]`, `[eoi]` and `<image>`. A name that the tokenizer already has gets "visllama_" after its
    first character. If the language model has more embeddings than the tokenizer has tokens, tokens without a use are
    added for the ids between.

    Args:
        tokenizer: The tokenizer, which is changed.
        num_embeddings: Number of the language model's embeddings (V); the three ids are V, V + 1 and V + 2, as
            `exported_ids` has them.

    Returns:
        The names of the three tokens, and the ids of all tokens that were added, in ascending order.

    Raises:
        ConfigError: If the tokenizer gives the three tokens other ids, for example because V is too small.
    """
    backend = tokenizer.backend_tokenizer
    id_of_token = backend.get_vocab()
    last_id = max(id_of_token.values())
    first_new_id = last_id + 1

    mark = ImageMark(
        boi=_free_name("[boi]", id_of_token),
        image=_free_name("<image>", id_of_token),
        eoi=_free_name("[eoi]", id_of_token),
    )
    # A tokenizer counts on from its last token, and not from the model's last embedding.
    fillers = [f"<|unused_{i}|>" for i in range(first_new_id, num_embeddings)]
    names = [*fillers, mark.boi, mark.eoi, mark.image]
    new_tokens = [AddedToken(name, special=True, normalized=False) for name in names]
    backend.add_special_tokens(new_tokens)

    ids = [backend.token_to_id(name) for name in names]
    expected_ids = list(range(first_new_id, num_embeddings + 3))
    if ids != expected_ids:
        raise ConfigError(
            f"format=llava: the tokenizer gives new tokens the ids {ids[:5]} ..., not {first_new_id} and the following "
            f"ones: LLaVA cannot be made of it; format=hub can"
        )
    return mark, ids


def _free_name(name: str, known_names: Container[str]) -> str:
    """Return a name that is no token yet: the given one, or one with "visllama_" after its first character."""
    while name in known_names:
        name = f"{name[0]}visllama_{name[1:]}"
    return name


def write_tokenizer(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str,
    adds_bos: bool,
    processor: str | None = None,
) -> None:
    """Write a tokenizer as tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja.

    The files are written here because `save_pretrained` of transformers 5 names a class that transformers 4 does not
    know.

    Args:
        folder: An existing folder; files of these names are overwritten.
        tokenizer: The tokenizer, from `read_tokenizer`. Without `adds_bos` its post-processor is replaced in place.
        chat_template: The source of a Jinja chat template, from `write_jinja`.
        adds_bos: Whether the tokenizer keeps its post-processor, which may put BOS (begin of sequence) before a text.
            If false, it adds no tokens to a text, and the chat template alone writes BOS.
        processor: The name of the processor class of transformers that uses the tokenizer; None if there is none.
    """
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = False
    if not adds_bos:
        # A post-processor that adds nothing.
        backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    backend.save(str(folder / "tokenizer.json"))

    special_tokens = {}
    for name in _SPECIAL:
        token = getattr(tokenizer, name)
        if token is not None:
            special_tokens[name] = str(token)

    # The base class, which has no behavior of its own beside tokenizer.json.
    values = special_tokens | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": min(tokenizer.model_max_length, 10**30),
        # Prompts of a batch have to end at the same position: generation goes on from there.
        "padding_side": "left",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if not adds_bos:
        values["add_bos_token"] = False
    if processor is not None:
        values["processor_class"] = processor

    write_json(folder / "tokenizer_config.json", values)
    write_json(folder / "special_tokens_map.json", special_tokens)
    (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write a value as an indented JSON file, in UTF-8.

    A process that is killed may leave half a file: an export writes into a temporary folder, which gets its name when
    it is complete (`files.new_folder`).

    Args:
        path: The file, which is overwritten.
        content: A value that JSON can hold.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")
