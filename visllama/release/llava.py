"""Write the export format `llava`: a folder with transformers' LLaVA model and processor.

Each image stands in a prompt between two trained vectors, the markers. LLaVA has none, so they become tokens.

Reference:
    Liu et al. 2023, arXiv:2310.03744.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import save_torch_state_dict
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlavaConfig

from visllama.images.transform import INTERPOLATIONS, ImageTransform
from visllama.model.connector import PatchMLPConnector
from visllama.model.language_model import PretrainedLanguageModel
from visllama.model.vision_encoder import PretrainedVisionEncoder
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

_RESAMPLE = {name: number for number, name in INTERPOLATIONS.items()}
"""Pillow's number of each resampling filter, by the filter's name."""


def write_llava(
    folder: Path, model: VisLlama, text: TextSettings, end_ids: list[int], max_new_tokens: int, max_shard_size: str
) -> None:
    """Write a whole model as a folder that `LlavaForConditionalGeneration` and `LlavaProcessor` of transformers read.

    The markers become two rows after the language model's embeddings, and the image token becomes a third. These three
    tokens are not to be generated: their rows in the output head are the mean of all others, so that their logits are
    never the highest, and the generation config suppresses them in sampling.

    Args:
        folder: An existing empty folder.
        model: A model that LLaVA can express (`find_obstacle(model, "llava")` returns None), with LoRA merged, in the
            dtype to write.
        text: The prompt, the template and the largest length of the texts that the model was trained on.
        end_ids: The ids of the tokens that end a response.
        max_new_tokens: The largest number of tokens of a response unless a caller of `generate` names another.
        max_shard_size: The largest size of one file of tensors, for example "5GB".

    Raises:
        ConfigError: If the tokenizer cannot be written as a tokenizer.json, or does not give the three tokens the ids
            that follow the model's embeddings.
    """
    source = model.language_model_source
    # `find_obstacle` has refused any other source.
    assert isinstance(source, PretrainedLanguageModel)

    # The tokenizer is a copy: the model's own gets no new tokens.
    tokenizer = read_tokenizer(source)
    num_embeddings = _input_embeddings(model).num_embeddings
    mark, added_ids = add_image_tokens(tokenizer, num_embeddings)
    image_id = exported_ids(num_embeddings)[PLACEHOLDER_ID]

    chat_template = write_jinja(text.template, text.prompt, TextEncoder(model.tokenizer), mark)
    write_tokenizer(folder, tokenizer, chat_template, adds_bos=False, processor="LlavaProcessor")
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

    # Some tokenizers have no BOS.
    known = {name: value for name, value in generation.items() if value is not None}
    write_json(folder / "generation_config.json", known)

    save_torch_state_dict(llava_tensors(model), folder, max_shard_size=max_shard_size, metadata={"format": "pt"})


def llava_config(model: VisLlama, image_id: int) -> dict[str, Any]:
    """Return the content of config.json for a model in the format of LLaVA, as a dictionary.

    Args:
        model: A model that LLaVA can express (`find_obstacle(model, "llava")` returns None).
        image_id: The id of the image token, which an image's vectors replace. It is the last id of the vocabulary.
    """
    encoder = _vision_encoder(model)
    dtype = str(model.language_model.dtype).removeprefix("torch.")
    text_config = portable_config(model.language_model.config, dtype)
    # The head's new rows are not those of the embeddings, also where both were one table.
    text_config |= {"vocab_size": image_id + 1, "tie_word_embeddings": False}
    vision_config = portable_config(encoder.model.config, dtype)

    values = LlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=image_id,
        image_seq_length=model.num_image_tokens,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=encoder.feature_layer,
        multimodal_projector_bias=True,
        tie_word_embeddings=False,
        architectures=["LlavaForConditionalGeneration"],
    ).to_dict()

    # LlavaConfig would write its parts by the names of this release of transformers alone.
    return values | {
        "text_config": text_config,
        "vision_config": vision_config,
        "dtype": dtype,
        "torch_dtype": dtype,
        "pad_token_id": model.tokenizer.pad_token_id,
    }


def llava_tensors(model: VisLlama) -> dict[str, Tensor]:
    """Return the tensors of a model by their names in LLaVA, all in the dtype of the language model.

    The names are those of the first LLaVA folders, which all releases of transformers and other engines read. The
    embeddings and the output head have three rows more than the model's own: the two markers and the image token.
    CLIP's projection of its pooled vector is left out, as LLaVA does not use it.

    Args:
        model: A model that LLaVA can express (`find_obstacle(model, "llava")` returns None), with LoRA merged.
    """
    tensors = {}
    encoder_tensors = _vision_encoder(model).model.state_dict()
    for name, tensor in encoder_tensors.items():
        # CLIP projects its pooled vector alone, which LLaVA does not use.
        if not name.startswith("visual_projection."):
            short_name = name.removeprefix("vision_model.")
            tensors[f"vision_tower.vision_model.{short_name}"] = tensor

    connector = model.connector
    assert isinstance(connector, PatchMLPConnector)  # `find_obstacle` has refused any other connector
    for name, tensor in connector.hidden.state_dict().items():
        tensors[f"multi_modal_projector.linear_1.{name}"] = tensor
    for name, tensor in connector.output.state_dict().items():
        tensors[f"multi_modal_projector.linear_2.{name}"] = tensor

    language_tensors = model.language_model.state_dict()
    for name, tensor in language_tensors.items():
        tensors[f"language_model.{name}"] = tensor
    tensors["language_model.model.embed_tokens.weight"] = _extended_embeddings(model)
    tensors["language_model.lm_head.weight"] = _extended_head(model)

    dtype = model.language_model.dtype
    return {name: tensor.detach().to(dtype).contiguous() for name, tensor in tensors.items()}


def _extended_embeddings(model: VisLlama) -> Float[Tensor, "V_exported D"]:
    """Return the language model's embeddings, followed by the rows of the two markers and of the image token."""
    embeddings = _input_embeddings(model).weight.detach()

    # No engine reads the image token's own row. The mean of the others can do no harm.
    image_row = embeddings.float().mean(0, keepdim=True)
    markers = model.markers.detach().float()
    new_rows = torch.cat([markers, image_row])
    return torch.cat([embeddings, new_rows.to(embeddings.dtype)])


def _extended_head(model: VisLlama) -> Float[Tensor, "V_exported D"]:
    """Return the output head, followed by three rows that are the mean of all others: no logit of theirs is highest."""
    layer = cast("nn.Linear", model.language_model.get_output_embeddings())
    head = layer.weight.detach()
    mean = head.float().mean(0, keepdim=True)
    new_rows = mean.to(head.dtype).expand(3, -1)
    return torch.cat([head, new_rows])


def _input_embeddings(model: VisLlama) -> nn.Embedding:
    """Return the language model's input embeddings, which transformers annotates as any module."""
    embeddings = model.language_model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    return embeddings


def _vision_encoder(model: VisLlama) -> PretrainedVisionEncoder:
    """Return the vision encoder, which `find_obstacle` has found to be one that LLaVA has a place for."""
    encoder = model.vision_encoder
    assert isinstance(encoder, PretrainedVisionEncoder)
    return encoder


def write_processor(folder: Path, model: VisLlama, mark: ImageMark) -> None:
    """Write the two files of LLaVA's processor: preprocessor_config.json and processor_config.json.

    The first one says how a picture becomes pixel values, the second one how many image tokens stand for it.

    Args:
        folder: An existing folder; files of these names are overwritten.
        model: A model that LLaVA can express (`find_obstacle(model, "llava")` returns None).
        mark: The names of the image token and of the markers. Only the name of the image token is written.
    """
    encoder = _vision_encoder(model)
    write_json(folder / "preprocessor_config.json", image_processor_config(encoder.transform))

    # CLIP's class token counts as an additional one, which the strategy "default" leaves out again.
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": mark.image,
        "patch_size": encoder.model.config.patch_size,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }
    write_json(folder / "processor_config.json", processor)


def image_processor_config(transform: ImageTransform) -> dict[str, Any]:
    """Return the content of preprocessor_config.json, by which transformers prepares pictures as visllama does.

    Args:
        transform: visllama's own transform from a picture to pixel values, whose size, crop and colors are taken.
    """
    side = transform.resize_px or transform.size_px
    square = {"height": side, "width": side}
    is_cropped = transform.fit != "squash"

    values = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side} if is_cropped else square,
        "resample": _RESAMPLE[transform.interpolation],
        "do_center_crop": is_cropped,
        "crop_size": {"height": transform.size_px, "width": transform.size_px},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
    }

    # CLIP's own image processor cannot pad.
    if transform.fit == "pad":
        values |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    return values
