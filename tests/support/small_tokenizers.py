"""Three small real tokenizers, trained here in a moment: byte-level BPE, LLaMA's SentencePiece, Llama-3's."""

from __future__ import annotations

import functools
import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2_CHAT = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else none %}"
    "{% for message in (messages if system is none else messages[1:]) %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token }}[INST] "
    "{{ (('' if system is none or not loop.first else '<<SYS>>\n' + system + '\n<</SYS>>\n\n')"
    " + message['content']) | trim }} [/INST]"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3_CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_SPACE = "▁"
# What SentencePiece never joins: a word and the space behind it, digits, and letters with signs.
_PIECE_SPLIT = rf"{_SPACE}?\p{{L}}+|\p{{N}}|{_SPACE}?[^\s{_SPACE}\p{{L}}\p{{N}}]+|{_SPACE}"


def _texts() -> list[str]:
    """Make a few hundred lines: sentences, chat, code, numbers, emoji."""
    colours = ["red", "green", "blue", "yellow", "white", "black", "brown", "orange"]
    things = ["dog", "cat", "cube", "ball", "car", "tree", "house", "bicycle", "woman", "man", "table", "cup"]
    places = ["on the street", "in the park", "behind a wall", "near the window", "under a bridge", "beside the water"]
    lines = []
    for i in range(240):
        colour, other = colours[i % 8], colours[(3 * i + 1) % 8]
        thing, second, place = things[i % 12], things[(5 * i + 2) % 12], places[i % 6]
        lines += [
            f"A {colour} {thing} stands {place}, and the {other} {second} is behind it.",
            f"What is the {thing} doing? It isn't running; there are {i} of them, {i * 7 % 1000} in all.",
            f"USER: How many {thing}s are {place}? ASSISTANT: There are {i % 10}.",
        ]
    lines += [f"def area_{i}(width, height):\n    return width * height + {i}  # in pixels" for i in range(30)]
    lines += [f"for i in range({i}):\n\tprint(f'{{i}}: {{values[i]}}')\n" for i in range(30)]
    lines += [f"The café in Zürich costs €{i}.50 😀 🐶 — naïve? Yes!" for i in range(30)]
    opening = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful answers."
    )
    return [*lines, *[opening, "[INST] [/INST] <<SYS>> <</SYS>> system user assistant"] * 10]


def _byte_level(vocab_size: int, split: pre_tokenizers.PreTokenizer, specials: list[str]) -> Tokenizer:
    """Train a BPE over bytes: any text has its tokens, none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


@functools.cache
def byte_level_bpe() -> PreTrainedTokenizerFast:
    """Make one as GPT-2's and the embedded world's: `</s>` is 3, no BOS is added, the chat template is ChatML."""
    tokenizer = _byte_level(
        600,
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        ["<pad>", "<s>", "<unk>", "</s>", "<|im_start|>", "<|im_end|>"],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        unk_token="<unk>",
        eos_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


@functools.cache
def sentencepiece_llama() -> PreTrainedTokenizerFast:
    """Make one as LLaMA-1, LLaMA-2 and Vicuna have it in their tokenizer.json; BOS is added, padding is not known.

    Each stretch of text between special tokens is given a space before it (the dummy prefix). What is not in the
    vocabulary, a newline and emoji among it, is written in bytes; digits stand alone.
    """
    trained = Tokenizer(models.BPE())
    trained.normalizer = _llama_normalizer()
    trained.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE_SPLIT), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False)
    trained.train_from_iterator(
        (line for text in _texts() for line in text.splitlines() if line.isascii() and "\t" not in line), trainer
    )
    model = json.loads(trained.to_str())["model"]
    # Runs of spaces are merged last of all, so that a word keeps its own.
    runs = [(_SPACE * n, _SPACE * n) for n in (1, 2, 4)]
    merges = [tuple(merge) for merge in model["merges"]] + runs
    letters = [_SPACE, *map(chr, range(ord("!"), ord("~") + 1))]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *map("".join, merges), *letters]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = _llama_normalizer()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        unk_token="<unk>",
        eos_token="</s>",
        chat_template=LLAMA2_CHAT,
        clean_up_tokenization_spaces=False,
    )


def _llama_normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])


@functools.cache
def llama3() -> PreTrainedTokenizerFast:
    """Make one as Llama-3's: no unknown and no padding token, BOS is added, special tokens have the highest ids."""
    split = pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated")
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = _byte_level(600, pre_tokenizers.Sequence([split, bytes_alone]), [])
    headers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    specials = ["<|begin_of_text|>", "<|end_of_text|>", *headers]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    bos = specials[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=specials[1],
        additional_special_tokens=headers,
        chat_template=LLAMA3_CHAT,
        clean_up_tokenization_spaces=False,
    )


TOKENIZERS = {"byte_level_bpe": byte_level_bpe, "sentencepiece_llama": sentencepiece_llama, "llama3": llama3}
"""Each by its name; a call gives the same object in a process, so leave it as it was."""
