"""What was exported is read back by the library that it is for, and has to compute what the model computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlavaForConditionalGeneration

from visllama.data.samples import SampleMaker
from visllama.errors import ConfigError
from visllama.model.pretrained import read
from visllama.model.visllama import VisLlama
from visllama.release.language_model import quiet_peft
from visllama.release.tokenizer_files import exported_ids
from visllama.text.template import Turn
from visllama.text.tokens import PLACEHOLDER_ID

_MOST_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Of the norm of the logits: rounding in sums of some thousand terms, and of weights to eight bits."""
_QUESTION = "What is in the picture?"


class Probe(NamedTuple):
    """An input, and the model's logits on it.

    Attributes:
        input_ids: A prompt with one image span.
        pixel_values: Its image, noise, normalised.
        inputs_embeds: The vectors that the language model reads of both.
        logits: The logits at each position.
        text_ids: A prompt without an image.
        text_logits: The logits at each of its positions.
    """

    input_ids: Int[Tensor, "1 T"]
    pixel_values: Float[Tensor, "1 3 H W"]
    inputs_embeds: Float[Tensor, "1 T D"]
    logits: Float[Tensor, "1 T V"]
    text_ids: Int[Tensor, "1 T"]
    text_logits: Float[Tensor, "1 T V"]


@torch.no_grad()
def make_probe(model: VisLlama, maker: SampleMaker) -> Probe:
    """Run the model on a picture of noise with a question, and on the question alone."""
    size = maker.transform.size_px
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(1, 3, size, size, generator=generator)
    ids = [maker.tokenise(maker.template.segments([Turn("human", _QUESTION, count)]))[0] for count in (1, 0)]
    input_ids, text_ids = (torch.tensor([row]) for row in ids)
    embeds = model.embed(input_ids, pixel_values)
    return Probe(
        input_ids,
        pixel_values,
        embeds,
        model(input_ids, pixel_values).logits,
        text_ids,
        model(text_ids, pixel_values).logits,
    )


@torch.no_grad()
def read_back_llava(folder: Path, probe: Probe, dtype: torch.dtype) -> float:
    """Return the largest difference between the probe's logits and those of the folder's LLaVA, over the first V.

    Raises:
        ConfigError: If tensors are missing or too many there, or it computes something else.
    """
    llava = _loaded(LlavaForConditionalGeneration, folder, dtype)
    num_embeddings = probe.logits.shape[-1]
    ids_of = exported_ids(num_embeddings)
    ids = [ids_of.get(i, i) for i in probe.input_ids[0].tolist()]
    logits = llava(input_ids=torch.tensor([ids]), pixel_values=probe.pixel_values.to(dtype)).logits
    return _compare("llava", logits[..., :num_embeddings], probe.logits)


@torch.no_grad()
def read_back_language_model(folder: Path, probe: Probe, dtype: torch.dtype) -> float:
    """Return the largest difference between the probe's logits and those of the folder's language model.

    Raises:
        ConfigError: If tensors are missing or too many there, or it computes something else.
    """
    language_model = _loaded(AutoModelForCausalLM, folder, dtype)
    return _compare("language_model", language_model(inputs_embeds=probe.inputs_embeds).logits, probe.logits)


@torch.no_grad()
def read_back_adapter(folder: Path, probe: Probe, load_base: Callable[[], torch.nn.Module]) -> float:
    """Return the largest difference between the probe's logits and those of the adapter over its base model.

    Args:
        folder: The PEFT folder.
        probe: The probe, whose text alone is read.
        load_base: Loads the base model.

    Raises:
        ConfigError: If it computes something else.
    """
    with quiet_peft():
        language_model = PeftModel.from_pretrained(load_base(), folder).eval()
    return _compare("adapter", language_model(input_ids=probe.text_ids).logits, probe.text_logits)


def _loaded(kind: Any, folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    model, report = read(kind, str(folder), dtype=dtype, output_loading_info=True)
    problems = {name: report[name] for name in ("missing_keys", "unexpected_keys") if report[name]}
    if problems:
        raise ConfigError(f"{folder}: not what {kind.__name__} reads: {problems}")
    return model.eval()


def _compare(form: str, logits: Tensor, expected: Tensor) -> float:
    """Return the largest difference of logits; more than rounding is an error."""
    difference = (logits.float() - expected.float()).abs().max().item()
    relative = ((logits.float() - expected.float()).norm() / expected.float().norm()).item()
    if not relative <= _MOST_DIFFERENCE[expected.dtype]:
        raise ConfigError(
            f"format={form}: what was written computes something else: its logits differ by up to {difference:.3g}, "
            f"which is {relative:.2%} of them: this language model does more than the format can express; "
            f"format=hub keeps it whole"
        )
    return difference


def same_prompts(folder: Path, maker: SampleMaker, num_embeddings: int) -> list[str]:
    """Return the names of the conversations that the folder's chat template turns into other ids than the run did.

    Args:
        folder: The folder of LLaVA.
        maker: What made the run's prompts.
        num_embeddings: V; the ids of the markers and of the image are those behind.
    """
    tokenizer = read(AutoTokenizer, str(folder))
    ids_of = exported_ids(num_embeddings)
    image = tokenizer.convert_ids_to_tokens(ids_of[PLACEHOLDER_ID])
    different = []
    for name, (messages, turns) in _conversations(maker.prompt).items():
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        rendered = rendered.replace(image, image * maker.num_image_tokens)
        found = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        expected, _ = maker.tokenise(maker.template.segments(turns, answered=False))
        if found != [ids_of.get(i, i) for i in expected]:
            different.append(name)
    return different


def _conversations(prompt: str) -> dict[str, tuple[list[dict], list[Turn]]]:
    """Return conversations, as messages of a chat template and as our turns, by name."""
    image = {"type": "image"}
    question = {"type": "text", "text": _QUESTION}
    caption = [Turn("human", prompt, 1), Turn("gpt", "")] if prompt else [Turn("gpt", "", 1)]
    return {
        "a caption": ([_user(image)], caption),
        "a question about an image": ([_user(image, question)], [Turn("human", _QUESTION, 1)]),
        "a question about two images": ([_user(image, image, question)], [Turn("human", _QUESTION, 2)]),
        "a question about none": ([_user(question)], [Turn("human", _QUESTION)]),
        "a system text": (
            [{"role": "system", "content": "Be brief."}, _user(image, question)],
            [Turn("system", "Be brief."), Turn("human", _QUESTION, 1)],
        ),
        "a second question": (
            [_user(image, question), {"role": "assistant", "content": "A red cup."}, _user(question)],
            [Turn("human", _QUESTION, 1), Turn("gpt", "A red cup."), Turn("human", _QUESTION)],
        ),
    }


def _user(*parts: dict) -> dict:
    return {"role": "user", "content": list(parts)}
