"""Check an exported folder: the library that it is for loads it, and has to compute what the model computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlavaForConditionalGeneration

from visllama.data.samples import SampleMaker
from visllama.errors import ConfigError
from visllama.model.pretrained import read
from visllama.model.visllama import VisLlama
from visllama.release.language_model import quiet_peft
from visllama.release.tokenizer_files import exported_ids
from visllama.text.template import Turn
from visllama.text.tokens import PLACEHOLDER_ID

_MAX_RELATIVE_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest norm of the difference of logits, as a part of their norm.

In fp32 sums of some thousand terms are rounded in another order; in bf16 weights and activations have eight bits.
"""
_QUESTION = "What is in the picture?"


class Probe(NamedTuple):
    """Two inputs of a model, a question about an image and the same question without an image, with their logits.

    Attributes:
        input_ids: The token ids of the question about one image, in whose place stand visllama's own ids: a marker, a
            placeholder for each vector of the image, and a marker.
        pixel_values: The image, which is noise.
        inputs_embeds: The vectors that the language model reads for `input_ids` and the image.
        logits: The logits at each position of `input_ids`.
        text_ids: The token ids of the question without an image.
        text_logits: The logits at each position of `text_ids`.
    """

    input_ids: Int[Tensor, "1 T"]
    pixel_values: Float[Tensor, "1 3 H W"]
    inputs_embeds: Float[Tensor, "1 T D"]
    logits: Float[Tensor, "1 T V"]
    text_ids: Int[Tensor, "1 T"]
    text_logits: Float[Tensor, "1 T V"]


@torch.no_grad()
def make_probe(model: VisLlama, maker: SampleMaker) -> Probe:
    """Run a model on a question about an image of noise and on the question alone, and return inputs and logits.

    The noise is the same at each call, and no gradients are kept.

    Args:
        model: The model on the CPU, in evaluation mode and in the dtype that is exported.
        maker: The maker of the model's inputs, by whose template the question is written.
    """
    # Noise has an effect on every patch, and needs no file.
    size = maker.transform.size_px
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(1, 3, size, size, generator=generator)

    input_ids = _question_ids(maker, num_images=1)
    inputs_embeds = model.embed(input_ids, pixel_values)
    logits = model(input_ids, pixel_values).logits

    # The text alone is for an adapter, which is read back without the connector.
    text_ids = _question_ids(maker, num_images=0)
    text_logits = model(text_ids, pixel_values).logits
    return Probe(input_ids, pixel_values, inputs_embeds, logits, text_ids, text_logits)


def _question_ids(maker: SampleMaker, num_images: int) -> Int[Tensor, "1 T"]:
    """Return the token ids of the question about a number of images, as a batch of one."""
    turn = Turn("human", _QUESTION, num_images)
    segments = maker.template.segments([turn])
    ids, _ = maker.tokenise(segments)
    return torch.tensor([ids])


@torch.no_grad()
def read_back_llava(folder: Path, probe: Probe, dtype: torch.dtype) -> float:
    """Load a folder as LLaVA, and return the largest absolute difference of its logits from those of the probe.

    Args:
        folder: A folder of `write_llava`.
        probe: The probe that `make_probe` made with the model before the export.
        dtype: The dtype in which the folder was written.

    Raises:
        ConfigError: If tensors are missing or unknown, or the logits differ by more than rounding.
    """
    llava = _load(LlavaForConditionalGeneration, folder, dtype)
    num_embeddings = probe.logits.shape[-1]
    ids = _to_exported_ids(probe.input_ids[0].tolist(), num_embeddings)

    input_ids = torch.tensor([ids])
    pixel_values = probe.pixel_values.to(dtype)
    logits = llava(input_ids=input_ids, pixel_values=pixel_values).logits

    # The model has no logits for the three tokens that the export has added.
    return _compare("llava", logits[..., :num_embeddings], probe.logits)


def _to_exported_ids(ids: list[int], num_embeddings: int) -> list[int]:
    """Return token ids of visllama with those of its markers and placeholder replaced by the ids of the export.

    Args:
        ids: Token ids in visllama, where markers and placeholder have negative ones.
        num_embeddings: Number of the model's own embeddings (V), after which the ids of the new tokens come.
    """
    exported_id_of = exported_ids(num_embeddings)
    return [exported_id_of.get(token_id, token_id) for token_id in ids]


@torch.no_grad()
def read_back_language_model(folder: Path, probe: Probe, dtype: torch.dtype) -> float:
    """Load a folder as a language model, and return the largest absolute difference of its logits from the probe's.

    The language model reads the probe's vectors (`inputs_embeds`), as it has no image tokens of its own.

    Args:
        folder: A folder of `write_language_model`.
        probe: The probe that `make_probe` made with the model before the export.
        dtype: The dtype in which the folder was written.

    Raises:
        ConfigError: If tensors are missing or unknown, or the logits differ by more than rounding.
    """
    language_model = _load(AutoModelForCausalLM, folder, dtype)
    logits = language_model(inputs_embeds=probe.inputs_embeds).logits
    return _compare("language_model", logits, probe.logits)


@torch.no_grad()
def read_back_adapter(folder: Path, probe: Probe, load_base: Callable[[], nn.Module]) -> float:
    """Load an adapter over its base model, and return the largest absolute difference of its logits from the probe's.

    The probe's question without an image is compared, as an adapter reads text alone.

    Args:
        folder: A folder of `write_adapter`.
        probe: The probe that `make_probe` made with the model before the export.
        load_base: A function that loads the base model, in the dtype of the probe.

    Raises:
        ConfigError: If the logits differ by more than rounding.
    """
    with quiet_peft():
        language_model = PeftModel.from_pretrained(load_base(), folder).eval()
    logits = language_model(input_ids=probe.text_ids).logits
    return _compare("adapter", logits, probe.text_logits)


def _load(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load an exported model by a class of transformers, and return it in evaluation mode.

    Raises:
        ConfigError: If the class does not find each of its tensors, or finds others, which it would only warn of.
    """
    model, loading_info = read(kind, str(folder), dtype=dtype, output_loading_info=True)
    problems = {}
    for problem in ("missing_keys", "unexpected_keys"):
        if loading_info[problem]:
            problems[problem] = loading_info[problem]

    if problems:
        raise ConfigError(f"{folder}: its tensors are not those that {kind.__name__} reads: {problems}")
    return model.eval()


def _compare(form: str, logits: Float[Tensor, "1 T V"], expected: Float[Tensor, "1 T V"]) -> float:
    """Return the largest absolute difference of two sets of logits.

    Args:
        form: The name of the export format, for the error message.
        logits: The logits of the exported model.
        expected: The logits of the probe, whose dtype sets how large a difference is taken for rounding.

    Raises:
        ConfigError: If the difference is more than rounding, or not a number.
    """
    precise_expected = expected.float()
    difference = logits.float() - precise_expected
    largest = difference.abs().max().item()
    relative_norm = difference.norm() / precise_expected.norm()
    relative = relative_norm.item()

    # Written so that NaN, which compares false, is refused too.
    largest_relative = _MAX_RELATIVE_DIFFERENCE[expected.dtype]
    is_rounding = relative <= largest_relative
    if not is_rounding:
        raise ConfigError(
            f"format={form}: the exported model computes something else: its logits differ by up to {largest:.3g}, "
            f"which is {relative:.2%} of them. This language model does more than the format can express; "
            f"format=hub keeps it whole"
        )
    return largest


def same_prompts(folder: Path, maker: SampleMaker, num_embeddings: int) -> list[str]:
    """Compare a LLaVA folder's chat template with the run's own prompts, and return names of those that differ.

    Six example conversations are turned into token ids in both ways.

    Args:
        folder: A folder of `write_llava`, whose tokenizer and chat template are read.
        maker: The maker of the model's inputs, by whose template the run's own prompts are written.
        num_embeddings: Number of the model's own embeddings (V), after which the ids of the new tokens come.

    Returns:
        Names such as "a question about two images", for a reader; an empty list if all prompts are the same.
    """
    tokenizer = read(AutoTokenizer, str(folder))
    image_id = exported_ids(num_embeddings)[PLACEHOLDER_ID]
    image = tokenizer.convert_ids_to_tokens(image_id)

    different = []
    for name, (messages, turns) in _conversations(maker.prompt).items():
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # As LlavaProcessor does: one token for each vector of an image.
        image_tokens = image * maker.num_image_tokens
        rendered = rendered.replace(image, image_tokens)
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]

        segments = maker.template.segments(turns, answered=False)
        run_ids, _ = maker.tokenise(segments)
        expected_ids = _to_exported_ids(run_ids, num_embeddings)
        if ids != expected_ids:
            different.append(name)
    return different


def _conversations(prompt: str) -> dict[str, tuple[list[dict], list[Turn]]]:
    """Return conversations by name, each as messages of a chat template and as turns of visllama.

    Args:
        prompt: The text by which the run asked for a caption; "" if a caption directly follows its image.
    """
    image = {"type": "image"}
    question = {"type": "text", "text": _QUESTION}
    about_image = _user(image, question)
    system = {"role": "system", "content": "Be brief."}
    answer = {"role": "assistant", "content": "A red cup."}

    image_turn = Turn("human", _QUESTION, 1)
    text_turn = Turn("human", _QUESTION)
    system_turn = Turn("system", "Be brief.")
    answer_turn = Turn("gpt", "A red cup.")

    # Without a prompt a caption follows its image, which then belongs to the model's turn.
    captioning = [Turn("gpt", "", 1)]
    if prompt:
        captioning = [Turn("human", prompt, 1), Turn("gpt", "")]

    return {
        "a caption": ([_user(image)], captioning),
        "a question about an image": ([about_image], [image_turn]),
        "a question about two images": ([_user(image, image, question)], [Turn("human", _QUESTION, 2)]),
        "a question about none": ([_user(question)], [text_turn]),
        "a system text": ([system, about_image], [system_turn, image_turn]),
        "a second question": ([about_image, answer, _user(question)], [image_turn, answer_turn, text_turn]),
    }


def _user(*parts: dict) -> dict:
    """Return a user's message that has some parts, as chat templates take it."""
    return {"role": "user", "content": list(parts)}
