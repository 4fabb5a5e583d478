"""Trained weights on disk: the trained tensors alone, and a description that rebuilds the model around them.

A run writes a *weights folder* of two files. `visllama.safetensors` holds the trained tensors. `visllama.json`, the
*description*, holds the parts by kind and arguments, the names of the parts that were trained, the hashes of the base
models (the frozen encoder and language model), the image transform and the settings of the texts. No code path is
stored or run.

Wherever the parameters of a part are saved, loaded, hashed or compared, its persistent buffers (those in its
`state_dict()`) are too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from visllama.console import is_first_rank
from visllama.errors import ConfigError
from visllama.files import open_regular, read_regular, replacing, write_whole
from visllama.model.contracts import check_encoder
from visllama.model.locate import locate
from visllama.model.lora import base_name, is_adapter, is_plain, spelled_out
from visllama.model.sharding import cast_weights
from visllama.model.visllama import ADAPTER, PARTS, VisLlama, part_of, persistent_buffers
from visllama.plugins import ROLES, part_class
from visllama.text.settings import TextSettings
from visllama.text.templates import TEMPLATES

FORMAT_VERSION = 3
TENSORS_FILE = "visllama.safetensors"
DESCRIPTION_FILE = "visllama.json"
_MAX_DESCRIPTION_BYTES = 2**26
_DESCRIPTION_KEYS = {
    "parts": dict,
    "trained": list,
    "base_sha256": dict,
    "text": dict,
}
BASE_PARTS = ("vision_encoder", "language_model")
"""The parts that start from published weights, which are not stored again unless the part trains."""
Parts = Mapping[str, Mapping]
"""The description of a model by its parts. Each of `vision_encoder`, `connector` and `language_model` is described by
`{"kind": name of its class, "arguments": {...}}`. An entry `lora`, where there is one, holds PEFT's arguments alone."""


def build_model(
    parts: Parts,
    trainable: Iterable[str],
    *,
    plugins: Sequence[str] = (),
    models: Path | str | None = None,
) -> VisLlama:
    """Build a model from a description of its parts, without its published weights (see `VisLlama.load_base_weights`).

    The configs and the tokenizer of the base models are read from disk, or downloaded from the hub if they are not in
    its cache.

    Args:
        parts: For each of "vision_encoder", "connector" and "language_model" a mapping of `kind` (name of a class) and
            `arguments`; and "lora", the arguments of PEFT's `LoraConfig`, for a model with LoRA. It is not changed. A
            connector's `num_image_tokens` of None is taken as the encoder's number of patches.
        trainable: Names of the parts that learn, out of "vision_encoder", "connector", "markers", "language_model" and
            "adapter" (LoRA).
        plugins: Names of the user's importable packages, which may define classes of parts. They are imported.
        models: The folder of downloaded base models (`paths.models`); None for none.

    Raises:
        ConfigError: If a class is unknown, or if a part cannot be built from its arguments, whatever its error.
    """
    # All classes are looked up before a part is built: an unknown name is found at once.
    classes = {}
    for role in ROLES:
        classes[role] = part_class(role, parts[role]["kind"], plugins)

    with _named("vision_encoder"):
        vision_arguments = _located(parts["vision_encoder"]["arguments"], models)
        vision_encoder = classes["vision_encoder"](**vision_arguments)
        check_encoder(vision_encoder)
    with _named("language_model"):
        language_arguments = _located(parts["language_model"]["arguments"], models)
        language_model = classes["language_model"](**language_arguments)

    # A connector that makes one token of each patch has null here, and takes the encoder's number of patches.
    connector_arguments = dict(parts["connector"]["arguments"])
    if connector_arguments.get("num_image_tokens", 0) is None:
        connector_arguments["num_image_tokens"] = vision_encoder.num_patches

    with _named("connector"):
        connector = partial(classes["connector"], **connector_arguments)
        return VisLlama(vision_encoder, connector, language_model, trainable, parts.get("lora"))


@contextmanager
def _named(role: str) -> Generator[None, None, None]:
    """Turn any error inside the `with` block into a ConfigError whose message begins with the name of the part.

    The classes and arguments come from a config or a file, so an error of whatever type is one that the user can mend.

    Args:
        role: Name of the part.

    Raises:
        ConfigError: If there was an error inside the `with` block.
    """
    try:
        yield
    except ConfigError as error:
        if str(error).startswith("model."):
            raise
        raise ConfigError(f"model.{role}: {error}") from error
    except Exception as error:
        lines = str(error).splitlines()
        message = lines[0] if lines else repr(error)
        raise ConfigError(f"model.{role}: {message}") from error


def _located(arguments: Mapping[str, Any], models: Path | str | None) -> dict[str, Any]:
    """Return a copy of a base model's arguments, with `path` (if there is one) as transformers takes it."""
    if "path" not in arguments:
        return dict(arguments)
    return {**arguments, "path": locate(arguments["path"], models)}


def whole(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Return a sharded tensor gathered from all ranks; any other tensor is returned unchanged.

    All ranks have to call this together for a sharded tensor (a `DTensor`).
    """
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return tensor


def hash_tensors(named: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None = None) -> str:
    """Return the SHA-256 of tensors with their names, dtypes and shapes, as a hex string.

    All ranks have to call this together if a tensor is sharded.

    Args:
        named: Names and tensors, as from `named_parameters()`, in any order: they are sorted by name.
        dtype: Dtype that floating-point tensors are converted to before they are hashed; None leaves all bits as they
            are. With bf16, a base model has the same hash in whatever dtype it was loaded, except for fp16, which
            rounds differently.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda item: item[0]):
        compared_dtype = tensor.dtype
        if dtype and tensor.is_floating_point():
            compared_dtype = dtype
        _hash_tensor(digest, name, tensor, compared_dtype)
    return digest.hexdigest()


def _hash_tensor(digest: hashlib._Hash, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Add a tensor to a digest: its name and shape, and its bytes in a dtype."""
    data = whole(tensor.detach()).to(device="cpu", dtype=dtype)
    header = f"{name} {data.dtype} {tuple(data.shape)}"
    digest.update(header.encode())

    # numpy has no bf16, so it sees the bytes.
    flat = data.contiguous().flatten()
    data_bytes = flat.view(torch.uint8).numpy()
    digest.update(data_bytes.data)


def hash_weights(folder: Path) -> str:
    """Return the SHA-256 of the two files in a weights folder, description and tensors, as a hex string.

    Raises:
        OSError: If one of the two files is missing or cannot be read.
    """
    digest = hashlib.sha256()
    for name in (DESCRIPTION_FILE, TENSORS_FILE):
        with open_regular(folder / name) as file:
            for block in iter(lambda: file.read(2**20), b""):
                digest.update(block)
    return digest.hexdigest()


def frozen_hashes(model: VisLlama) -> dict[str, str]:
    """Return a hash of the frozen tensors of the encoder and of the language model, by the name of the part.

    Two equal hashes mean that no bit has changed. Of a part that trains, only the frozen parameters are hashed; a part
    without frozen tensors is left out. All ranks have to call this together if the model is sharded.
    """
    hashes = {}
    for part in BASE_PARTS:
        frozen = _frozen_tensors(model, part)
        if frozen:
            hashes[part] = hash_tensors(frozen)
    return hashes


def _frozen_tensors(model: VisLlama, part: str) -> list[tuple[str, Tensor]]:
    """Return the names and tensors of a part that no training step may change, out of those of `_base_tensors`."""
    frozen = []
    for name, tensor in _base_tensors(model, part):
        # In a part that learns, some parameters may be frozen, but buffers may change.
        may_change = part in model.trainable and not isinstance(tensor, nn.Parameter)
        if not tensor.requires_grad and not may_change:
            frozen.append((name, tensor))
    return frozen


def _base_tensors(model: VisLlama, part: str) -> list[tuple[str, Tensor]]:
    """Return the names and tensors (parameters and persistent buffers) of a part, without those of LoRA's adapters.

    The names begin inside the part and are those of the published model, without the `.base_layer` that PEFT inserts.
    """
    module = getattr(model, part)
    tensors = _stored_tensors(module)
    return [(base_name(name), tensor) for name, tensor in tensors.items() if not is_adapter(name)]


def _stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and then the persistent buffers of a module, by name: the tensors themselves, no copies."""
    return dict(module.named_parameters()) | persistent_buffers(module)


def trained_tensors(model: VisLlama, trained: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Return the tensors that a weights folder has to hold, by their full names, detached but not copied.

    They are the parameters and persistent buffers of all parts but an encoder or a language model that did not learn.
    Connector, markers and adapter are always included, as an earlier training may have changed them.

    Args:
        model: The model.
        trained: Names of the parts that learn or have learned; None means `model.trainable`.
    """
    learned = model.trainable if trained is None else trained
    published_parts = set(BASE_PARTS) - set(learned)

    tensors = {}
    for name, tensor in _stored_tensors(model).items():
        if part_of(name) not in published_parts:
            tensors[name] = tensor.detach()
    return tensors


def save_weights(model: VisLlama, parts: Parts, text: TextSettings, folder: Path) -> None:
    """Write a weights folder: the model's trained tensors and its description.

    All ranks have to call this together if the model is sharded; the first rank alone writes. Each file is written
    whole or not at all, and takes the place of an older one.

    Args:
        model: The model, with its base weights loaded.
        parts: The description of parts that the model was built from by `build_model`.
        text: The settings that the texts of the training were made with.
        folder: The folder to write, which is made if it is missing.

    Raises:
        WriteFailed: If there is no space or no permission to write there.
    """
    description = _describe(model, parts, text)

    # Gathering a tensor in shards needs all ranks, so the first one is left alone only after it.
    tensors = {}
    for name, tensor in trained_tensors(model).items():
        tensors[name] = whole(tensor).cpu().contiguous()
    if not is_first_rank():
        return

    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / TENSORS_FILE) as temporary:
        save_file(tensors, temporary)
    content = json.dumps(description, indent=2)
    write_whole(folder / DESCRIPTION_FILE, f"{content}\n")


def _describe(model: VisLlama, parts: Parts, text: TextSettings) -> dict[str, Any]:
    """Return the description of a model for its weights folder; the arguments are those of `save_weights`."""
    described_parts = {name: dict(part) for name, part in parts.items()}
    if "lora" in described_parts:
        described_parts["lora"] = spelled_out(model.language_model, described_parts["lora"])

    # A base model that trains is stored whole, so only a frozen one has to be found again.
    base_hashes = {}
    for part in BASE_PARTS:
        if part not in model.trainable:
            base_hashes[part] = hash_tensors(_base_tensors(model, part), torch.bfloat16)

    return {
        "format_version": FORMAT_VERSION,
        "parts": described_parts,
        "trained": list(model.trainable),
        "base_sha256": base_hashes,
        "image_transform": model.vision_encoder.transform.to_dict(),
        "text": text.to_dict(),
    }


def read_description(folder: Path) -> dict:
    """Read the description in a weights folder, check it, and return it; the tensors are not read.

    Args:
        folder: The folder that holds `visllama.json`.

    Returns:
        A dict with the keys `format_version`, `parts` (see `Parts`), `trained` (names of parts), `base_sha256` (hash by
        part), `image_transform` and `text` (as `TextSettings.from_dict` takes it). A file of version 2, which knew no
        templates, is given the template "plain"; its `format_version` stays 2.

    Raises:
        ConfigError: If the file is missing, is no JSON or has another version, if a key is missing or has another type,
            or if the names in `trained`, the parts or the settings in `text` are not allowed.
    """
    path = Path(folder) / DESCRIPTION_FILE
    if not path.is_file():
        raise ConfigError(f"weights={folder}: holds no {DESCRIPTION_FILE}; give the weights/ folder that a run wrote")

    try:
        description = json.loads(read_regular(path, _MAX_DESCRIPTION_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: no valid JSON: {error}") from error

    # Version 2 is from before there were templates.
    version = description.get("format_version") if isinstance(description, dict) else None
    if version == 2 and isinstance(description.get("text"), dict):
        description["text"]["template"] = asdict(TEMPLATES["plain"])
    elif version != FORMAT_VERSION:
        raise ConfigError(f"{path}: format_version={version}, this visllama reads {FORMAT_VERSION}: train again")

    _check_description(path, description)
    return description


def _check_description(path: Path, description: Mapping) -> None:
    """Refuse the content of a description, read from `path`, that no run writes.

    Raises:
        ConfigError: If a key is missing or has another type, or a part or a setting of the texts is not allowed.
    """
    for key, kind in _DESCRIPTION_KEYS.items():
        if not isinstance(description.get(key), kind):
            raise ConfigError(f"{path}: has no {key}")

    part_names = (*PARTS, ADAPTER)
    unknown_parts = [name for name in description["trained"] if name not in part_names]
    if unknown_parts:
        choices = ", ".join(part_names)
        raise ConfigError(f"{path}: trained={unknown_parts}: a model's parts are {choices}")

    try:
        TextSettings.from_dict(description["text"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error

    _check_parts(path, description["parts"])


def _check_parts(path: Path, parts: Mapping) -> None:
    """Refuse the `parts` of a description if they are incomplete or could run code.

    The file may come from somebody else: it must not name code to import (`_target_`), read a variable (`${...}`), or
    hold a regular expression among LoRA's arguments.

    Raises:
        ConfigError: If it does, or if it does not describe one of the three parts.
    """
    for role in ROLES:
        part = parts.get(role)
        if not isinstance(part, dict) or not isinstance(part.get("arguments"), dict):
            raise ConfigError(f"{path}: does not describe the {role}")
        if not isinstance(part.get("kind"), str):
            raise ConfigError(f"{path}: does not name the kind of the {role}")

    # Hydra imports what `_target_` names, and OmegaConf reads variables of the environment in `${...}`.
    text = json.dumps(parts)
    for refused in ("_target_", "${"):
        if refused in text:
            raise ConfigError(f"{path}: a {refused} inside weights is refused")

    lora = parts.get("lora", {})
    if not isinstance(lora, dict) or not is_plain(lora):
        raise ConfigError(f"{path}: lora={lora} must be LoRA's arguments, with names of layers and no patterns")


def load_weights(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    plugins: Sequence[str] = (),
    models: Path | str | None = None,
    as_stored: bool = False,
) -> tuple[VisLlama, dict]:
    """Rebuild the model of a weights folder with its base weights and trained tensors, ready to be used.

    The base models are read from disk, or downloaded from the hub if they are not in its cache.

    Args:
        folder: The weights folder that a run wrote.
        dtype: Dtype of the frozen weights. The weights of a part that was trained are fp32 at least.
        plugins: Names of the user's importable packages, which may define classes of parts. They are imported.
        models: The folder of downloaded base models (`paths.models`); None for none.
        as_stored: Whether to leave the frozen weights in the dtype of their files, mapped from disk and not copied into
            memory. `sharding.shard` or `sharding.cast_weights` has to convert them to `dtype` afterwards.

    Returns:
        The model, and the description as `read_description` returns it.

    Raises:
        ConfigError: If the description does not pass its checks, if a class is unknown, if a trained tensor is missing,
            unknown or of another shape, or if a base model is not the one that the weights were trained with.
    """
    folder = Path(folder)
    description = read_description(folder)
    model = build_model(description["parts"], description["trained"], plugins=plugins, models=models)
    check_tensors(model, folder, description)

    # The hashes of the base models are taken in bf16. Every dtype but fp16 holds all values of bf16; weights in fp16
    # would have other hashes, so they are rounded after the comparison.
    rounds = dtype == torch.float16
    model.load_base_weights(dtype, as_stored or rounds)
    load_tensors(model, folder, description)
    if rounds and not as_stored:
        cast_weights(model, dtype)
    return model, description


def check_tensors(model: VisLlama, folder: Path, description: Mapping) -> None:
    """Check that a weights folder holds the tensors that a model needs, by name and shape; no weight is loaded.

    Args:
        model: The model that the tensors are for, without weights or with them. It may have a LoRA adapter that
            the weights do not have, for a training that adds one.
        folder: The weights folder.
        description: The folder's description, as `read_description` returns it.

    Raises:
        ConfigError: If a tensor is missing, unknown or of another shape; the message names the first five. Also if the
            file holds no safetensors.
    """
    has_adapter = "lora" in description["parts"]
    expected_shapes = {}
    for name, tensor in trained_tensors(model, description["trained"]).items():
        if has_adapter or part_of(name) != ADAPTER:
            expected_shapes[name] = tuple(tensor.shape)

    # safetensors' file is no dict: it has `keys()` and cannot be iterated over.
    file_shapes = {}
    with open_tensors(folder / TENSORS_FILE) as file:
        for name in file.keys():  # noqa: SIM118
            shape = file.get_slice(name).get_shape()
            file_shapes[name] = tuple(shape)
    _check_same_tensors(folder, expected_shapes, file_shapes)


def load_tensors(model: VisLlama, folder: Path, description: Mapping) -> None:
    """Copy the trained tensors of a weights folder into a model, if its base models are those of the training.

    Names and shapes of the tensors are not checked here: call `check_tensors` first.

    Args:
        model: The model with its base weights loaded. It is changed in place.
        folder: The weights folder.
        description: The folder's description, as `read_description` returns it.

    Raises:
        ConfigError: If the frozen base weights have other hashes than in the training, or if the encoder's image
            transform is another one.
    """
    for part in set(BASE_PARTS) - set(description["trained"]):
        _check_base_model(model, part, folder, description)
    _check_transform(model, folder, description)

    # The tensors are mapped from the file: no memory is taken before they are copied.
    with open_tensors(folder / TENSORS_FILE) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    for name in _put_wider_tensors(model, tensors):
        del tensors[name]
    # The base weights are in the model already, so the tensors are fewer than the model's.
    model.load_state_dict(tensors, strict=False)


def _check_base_model(model: VisLlama, part: str, folder: Path, description: Mapping) -> None:
    """Refuse a frozen base model, "vision_encoder" or "language_model", that is not the one of the training.

    Raises:
        ConfigError: If it has another hash than in the description of the weights in `folder`.
    """
    expected = description["base_sha256"].get(part)
    actual = hash_tensors(_base_tensors(model, part), torch.bfloat16)
    if actual == expected:
        return

    described = description["parts"][part]
    name = described["arguments"].get("path", described["kind"])
    expected_start = str(expected)[:12]
    actual_start = actual[:12]
    raise ConfigError(
        f"{folder}: trained with another {part}: its sha256 starts {expected_start}, here {name} has "
        f"{actual_start}: its weights have to be the same each time that they are loaded"
    )


def _check_transform(model: VisLlama, folder: Path, description: Mapping) -> None:
    """Refuse an image transform that is not the one of the training.

    Raises:
        ConfigError: If it differs from that in the description of the weights in `folder`.
    """
    # Through JSON, since the description has been: tuples have become lists.
    written_transform = json.dumps(model.vision_encoder.transform.to_dict())
    transform = json.loads(written_transform)
    trained_transform = description.get("image_transform")
    if trained_transform != transform:
        raise ConfigError(
            f"{folder}: trained on images made by {trained_transform}, and here the encoder's processor makes "
            f"{transform}"
        )


def _put_wider_tensors(model: VisLlama, tensors: Mapping[str, Tensor]) -> list[str]:
    """Put tensors into a model in place of its own, where those are of a narrower dtype, and return their names.

    A base model that was left in the dtype of its files (`as_stored`) may be bf16, and what was trained of it is fp32:
    copied, it would be rounded. The tensors are not copied, so that they stay mapped from their file.
    """
    names = []
    for name, model_tensor in _stored_tensors(model).items():
        tensor = tensors.get(name)
        if tensor is None:
            continue

        if model_tensor.dtype.itemsize < tensor.dtype.itemsize:
            model_tensor.data = tensor.to(model_tensor.device)
            names.append(name)
    return names


@contextmanager
def open_tensors(path: Path) -> Generator[Any, None, None]:
    """Open a safetensors file in a `with` block, as the object that `safetensors.safe_open` yields.

    Args:
        path: The file, which may come from somebody else.

    Yields:
        The open file, with `keys()`, `get_tensor(name)` (a tensor on the CPU) and `get_slice(name)`.

    Raises:
        ConfigError: If it is no regular file, or holds no safetensors. An OSError, ValueError or SafetensorError that
            is raised inside the block becomes a ConfigError too.
    """
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{path}: no safetensors file ({error}); pickled weights are not read") from error


def _check_same_tensors(folder: Path, model_shapes: dict[str, tuple], file_shapes: dict[str, tuple]) -> None:
    """Refuse a file whose tensors have other names or shapes than the model's.

    Raises:
        ConfigError: If they have; the message lists the first five differences.
    """
    problems = [f"missing {name}" for name in model_shapes if name not in file_shapes]
    problems += [f"unknown {name}" for name in file_shapes if name not in model_shapes]
    for name, shape in model_shapes.items():
        file_shape = file_shapes.get(name, shape)
        if file_shape != shape:
            problems.append(f"{name} has shape {file_shape}, the model {shape}")

    if problems:
        first_problems = "; ".join(problems[:5])
        raise ConfigError(f"{folder}: the weights do not fit the model they describe: {first_problems}")
