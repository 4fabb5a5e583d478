"""The format `llava`: a folder of transformers' LLaVA, model and processor, markers baked in.

Reference:
    Liu et al. 2023, arXiv:2310.03744.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import LlavaConfig

from visllama.images.transform import INTERPOLATIONS, ImageTransform
from visllama.model.visllama import VisLlama
from visllama.release.config_files import portable_config
from visllama.release.jinja_template import ImageMark, write_jinja
from visllama.release.tokenizer_files import (
    add_image_tokens,
    exported_ids,
    read_tokenizer,
    write_json,
    write_tokenizer,
)
from visllama.text.encode import TextEncoder
from visllama.text.settings import TextSettings
from visllama.text.tokens import PLACEHOLDER_ID

_RESAMPLE = {name: int(number) for number, name in INTERPOLATIONS.items()}
"""Pillow's numbers of the filters, by name."""


def write_llava(
    folder: Path, model: VisLlama, text: TextSettings, end_ids: list[int], max_new_tokens: int, max_shard_size: str
) -> None:
    """Write a folder that `LlavaForConditionalGeneration` and `LlavaProcessor` read.

    The markers become two rows behind the language model's embeddings, and the image's token a third. No text has them:
    in the head, which is not tied, their rows are the mean of all others, so that their logits are never the highest,
    and the generation config suppresses them where it is sampled.

    Args:
        folder: An existing empty folder.
        model: A model that LLaVA has a place for (`find_obstacle`), LoRA merged, in the dtype to be written.
        text: How the texts of its training were made.
        end_ids: The tokens that end a response.
        max_new_tokens: The most tokens of a response, where a caller names no other number.
        max_shard_size: The size of a file of tensors, for example "5GB".
    """
    source = model.language_model_source
    tokenizer = read_tokenizer(source)
    num_embeddings = model.language_model.get_input_embeddings().num_embeddings
    encoder = TextEncoder(model.tokenizer)
    mark, added_ids = add_image_tokens(tokenizer, num_embeddings)
    image_id = exported_ids(num_embeddings)[PLACEHOLDER_ID]

    write_tokenizer(
        folder,
        tokenizer,
        write_jinja(text.template, text.prompt, encoder, mark),
        adds_bos=False,
        processor="LlavaProcessor",
    )
    write_processor(folder, model, mark)
    write_json(folder / "config.json", llava_config(model, image_id))
    generation = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": end_ids,
        "pad_token_id": tokenizer.pad_token_id,
        "suppress_tokens": added_ids,
        "do_sample": False,
        "max_new_tokens": max_new_tokens,
    }
    write_json(folder / "generation_config.json", {name: v for name, v in generation.items() if v is not None})
    save_torch_state_dict(llava_tensors(model), folder, max_shard_size=max_shard_size, metadata={"format": "pt"})


def llava_config(model: VisLlama, image_id: int) -> dict[str, Any]:
    """Return the values of config.json.

    Args:
        model: The model.
        image_id: Id of the token that an image's vectors replace, the last one.
    """
    dtype = str(model.language_model.dtype).removeprefix("torch.")
    text_config = portable_config(model.language_model.config, dtype)
    text_config |= {"vocab_size": image_id + 1, "tie_word_embeddings": False}
    vision_config = portable_config(model.vision_encoder.model.config, dtype)
    values = LlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=image_id,
        image_seq_length=model.num_image_tokens,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=model.vision_encoder.feature_layer,
        multimodal_projector_bias=True,
        tie_word_embeddings=False,
        architectures=["LlavaForConditionalGeneration"],
    ).to_dict()
    return values | {
        "text_config": text_config,
        "vision_config": vision_config,
        "dtype": dtype,
        "torch_dtype": dtype,
        "pad_token_id": model.tokenizer.pad_token_id,
    }


def llava_tensors(model: VisLlama) -> dict[str, Tensor]:
    """Return all tensors by the names of the first LLaVA folders, which old and new releases and other engines read."""
    dtype = model.language_model.dtype
    tensors = {}
    for name, tensor in model.vision_encoder.model.state_dict().items():
        if not name.startswith("visual_projection."):  # of the pooled vector, which LLaVA does not take
            tensors[f"vision_tower.vision_model.{name.removeprefix('vision_model.')}"] = tensor
    for theirs, ours in (("linear_1", model.connector.hidden), ("linear_2", model.connector.output)):
        for name, tensor in ours.state_dict().items():
            tensors[f"multi_modal_projector.{theirs}.{name}"] = tensor
    for name, tensor in model.language_model.state_dict().items():
        tensors[f"language_model.{name}"] = tensor

    embeddings = model.language_model.get_input_embeddings().weight.detach()
    head = model.language_model.get_output_embeddings().weight.detach()
    image_row = embeddings.float().mean(0, keepdim=True)
    rows = torch.cat([model.markers.detach().float(), image_row]).to(embeddings.dtype)
    tensors["language_model.model.embed_tokens.weight"] = torch.cat([embeddings, rows])
    mean = head.float().mean(0, keepdim=True).to(head.dtype)
    tensors["language_model.lm_head.weight"] = torch.cat([head, mean.expand(3, -1)])
    return {name: tensor.detach().to(dtype).contiguous() for name, tensor in tensors.items()}


def write_processor(folder: Path, model: VisLlama, mark: ImageMark) -> None:
    """Write preprocessor_config.json and processor_config.json: an image's pixels, and how many tokens it becomes."""
    encoder = model.vision_encoder
    write_json(folder / "preprocessor_config.json", image_processor_config(encoder.transform))
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": mark.image,
            "patch_size": encoder.model.config.patch_size,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
        },
    )


def image_processor_config(transform: ImageTransform) -> dict[str, Any]:
    """Return the values of transformers' image processor that does what an image transform does."""
    side = transform.resize_px or transform.size_px
    square = {"height": side, "width": side}
    crops = transform.fit != "squash"
    values = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side} if crops else square,
        "resample": _RESAMPLE[transform.interpolation],
        "do_center_crop": crops,
        "crop_size": {"height": transform.size_px, "width": transform.size_px},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
    }
    if transform.fit == "pad":
        values |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    return values
