"""Train the embedded world's tokenizer, and its tiny LLaMA, which reads text alone and no picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from visllama.data.scenes import language
from visllama.data.scenes.fit import Report, fit
from visllama.data.scenes.world import Dice
from visllama.text.tokens import IGNORE_INDEX


def train_tokenizer(vocab_size: int, num_documents: int = 4000) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the world's texts and on instructions, and return it.

    The special tokens have the ids 0 to 3. The id of `</s>` must not be 2: transformers' CLIP takes that for the
    configuration of older models, and pools at the largest id of a text.

    Args:
        vocab_size: The largest number of tokens, the special ones included.
        num_documents: Number of texts to train on; a quarter as many instructions are added.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "<unk>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    # Instructions hold words, as "say" and "join", that no document has.
    texts = [language.document(i) for i in range(num_documents)]
    dice = Dice("tokenizer")
    for _ in range(num_documents // 4):
        instruction = language.instruction(dice)
        texts.append(" ".join(instruction.values()))

    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", unk_token="<unk>", eos_token="</s>"
    )


def train_llama(
    tokenizer: PreTrainedTokenizerFast,
    report: Report,
    *,
    width: int,
    layers: int,
    num_steps: int,
    batch_tokens: int,
    num_documents: int,
    lr: float,
) -> LlamaForCausalLM:
    """Make a LLaMA with random weights, train it on the world's texts alone, and return it in eval mode.

    Args:
        tokenizer: The world's tokenizer, as `train_tokenizer` returns it.
        report: Called with the progress, at each text that is read and then at each training step.
        width: Width of the model (D); a multiple of 32.
        layers: Number of layers.
        num_steps: Number of training steps.
        batch_tokens: The largest number of tokens in a batch, padding included.
        num_documents: Number of texts to train on.
        lr: The highest learning rate.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8 * width // 3 // 8 * 8,  # LLaMA's 8/3 of the width, in multiples of 8
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )

    model = LlamaForCausalLM(config)
    losses = _llama_losses(model, tokenizer, num_documents, batch_tokens, report)
    fit("LLaMA", model, losses, num_steps, lr, report)
    return model


def _llama_losses(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    num_documents: int,
    batch_tokens: int,
    report: Report,
) -> Iterator[Callable[[], Float[Tensor, ""]]]:
    """Yield functions without end that each compute the next-token loss of a batch of texts of like length."""
    documents = []
    for index in range(num_documents):
        ids = tokenizer(language.document(index), add_special_tokens=False)["input_ids"]
        documents.append([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id])
        report("LLaMA", 0, 1, f"texts {index + 1} of {num_documents}")

    # Sorted by length, so the last text of a batch is its longest, to which the others are padded.
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
            # Padding stands behind the text, where a causal model's earlier positions do not look: it needs no mask.
            ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in batch])
            labels = torch.tensor([row + [IGNORE_INDEX] * (longest - len(row)) for row in batch])

            # Defaults, since a closure would see the tensors of a later batch.
            def loss(ids: Tensor = ids, labels: Tensor = labels) -> Tensor:
                return model(input_ids=ids, labels=labels).loss

            yield loss
