"""Trained weights on disk: the trained tensors alone, and a description that rebuilds the model around them.

The persistent buffers of a part go with its parameters, wherever these are saved, loaded, hashed or compared.

`weights/visllama.safetensors` holds the trained tensors, `weights/visllama.json` the parts by kind and arguments, the
base models' hashes, the image transform and the prompt. No code path is stored or run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
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
from visllama.model.sharding import cast
from visllama.model.visllama import ADAPTER, PARTS, VisLlama, part_of, persistent_buffers
from visllama.plugins import ROLES, part_class
from visllama.text.settings import TextSettings
from visllama.text.templates import TEMPLATES

FORMAT_VERSION = 3
TENSORS_FILE, DESCRIPTION_FILE = "visllama.safetensors", "visllama.json"
_MOST_DESCRIPTION_BYTES = 2**26
BASE_PARTS = ("vision_encoder", "language_model")
Parts = Mapping[str, Mapping]
"""For `vision_encoder`, `connector` and `language_model`: `{"kind": its class's name, "arguments": {...}}`; for `lora`,
where there is one, PEFT's arguments alone."""


def build_model(
    parts: Parts, trainable: Iterable[str], *, plugins: Sequence[str] = (), models: Path | str | None = None
) -> VisLlama:
    """Build a model from its parts' kinds and arguments, without weights; works on the meta device too.

    Args:
        parts: What to build.
        trainable: Names of the parts that learn.
        plugins: The user's packages, in which kinds that are not ours are looked for.
        models: Where downloaded base models lie (`paths.models`).

    Raises:
        ConfigError: If a kind is unknown, or an argument does not fit.
    """
    classes = {role: part_class(role, parts[role]["kind"], plugins) for role in ROLES}
    arguments = {role: dict(parts[role]["arguments"]) for role in ROLES}
    with _named("vision_encoder"):
        vision_encoder = classes["vision_encoder"](**_located(arguments["vision_encoder"], models))
        check_encoder(vision_encoder)
    with _named("language_model"):
        language_model = classes["language_model"](**_located(arguments["language_model"], models))
    if "num_image_tokens" in arguments["connector"] and arguments["connector"]["num_image_tokens"] is None:
        arguments["connector"]["num_image_tokens"] = vision_encoder.num_patches
    with _named("connector"):
        connector = partial(classes["connector"], **arguments["connector"])
        return VisLlama(vision_encoder, connector, language_model, trainable, parts.get("lora"))


@contextmanager
def _named(role: str) -> Iterator[None]:
    """Name the model's part in an error, which the user can mend: a file or a config asked for it."""
    try:
        yield
    except ConfigError as error:
        raise error if str(error).startswith("model.") else ConfigError(f"model.{role}: {error}") from error
    except Exception as error:
        raise ConfigError(f"model.{role}: {next(iter(str(error).splitlines()), repr(error))}") from error


def _located(arguments: Mapping, models: Path | str | None) -> dict:
    return dict(arguments) | ({"path": locate(arguments["path"], models)} if "path" in arguments else {})


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor as it is, or, of one in shards, all of it; then all ranks have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def hash_tensors(named: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None = None) -> str:
    """Return the SHA-256 of tensors with their names and shapes.

    Args:
        named: As from `named_parameters()`.
        dtype: Compare floating-point tensors in this one: in bf16 a base model's hash is the same in whatever dtype
            it was loaded, but for fp16, which rounds otherwise. None compares bit by bit.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda item: item[0]):
        compared = dtype if dtype and tensor.is_floating_point() else tensor.dtype
        data = whole(tensor.detach()).to(device="cpu", dtype=compared).contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
        digest.update(data.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def hash_weights(folder: Path) -> str:
    """Return the SHA-256 of a weights folder: of its tensors and of the description that rebuilds the model."""
    digest = hashlib.sha256()
    for name in (DESCRIPTION_FILE, TENSORS_FILE):
        with open_regular(folder / name) as file:
            for block in iter(lambda: file.read(2**20), b""):
                digest.update(block)
    return digest.hexdigest()


def frozen_hashes(model: VisLlama) -> dict[str, str]:
    """Return the hash of each part's frozen tensors, bit by bit."""
    hashes = {}
    for part in BASE_PARTS:
        frozen = [(name, tensor) for name, tensor in _part(model, part) if not tensor.requires_grad]
        if part in model.trainable:  # what of it cannot learn; its buffers may change
            frozen = [(name, tensor) for name, tensor in frozen if isinstance(tensor, nn.Parameter)]
        if frozen:
            hashes[part] = hash_tensors(frozen)
    return hashes


def _part(model: VisLlama, name: str) -> list[tuple[str, Tensor]]:
    """Return a part's own parameters and persistent buffers, under the names that they have without an adapter."""
    part = getattr(model, name)
    tensors = dict(part.named_parameters()) | persistent_buffers(part)
    return [(base_name(n), tensor) for n, tensor in tensors.items() if not is_adapter(n)]


def trained_tensors(model: VisLlama, trained: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Return the tensors that no base model holds, by name: the trained ones, and what a stage before has trained.

    The persistent buffers of these parts are among them.

    Args:
        model: Which has them.
        trained: Names of the parts that learn, or have learned; None is the model's own.
    """
    base = set(BASE_PARTS) - set(model.trainable if trained is None else trained)
    tensors = dict(model.named_parameters()) | persistent_buffers(model)
    return {name: tensor.detach() for name, tensor in tensors.items() if part_of(name) not in base}


def save_weights(model: VisLlama, parts: Parts, text: TextSettings, folder: Path) -> None:
    """Write the trained tensors and the model's description, each file whole or not at all, on the first rank.

    Args:
        model: Its trained tensors are written; where it lies in shards, all ranks have to call.
        parts: The description that `build_model` took.
        text: How the texts of the training were made.
        folder: Where to write.

    Raises:
        WriteFailed: If there is no room, or no leave, to write there.
    """
    description = {
        "format_version": FORMAT_VERSION,
        "parts": {n: spelled_out(model.language_model, p) if n == "lora" else dict(p) for n, p in parts.items()},
        "trained": list(model.trainable),
        "base_sha256": {
            part: hash_tensors(_part(model, part), torch.bfloat16) for part in BASE_PARTS if part not in model.trainable
        },
        "image_transform": model.vision_encoder.transform.to_dict(),
        "text": text.to_dict(),
    }
    tensors = {name: whole(tensor).cpu().contiguous() for name, tensor in trained_tensors(model).items()}
    if not is_first_rank():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / TENSORS_FILE) as temporary:
        save_file(tensors, temporary)
    write_whole(folder / DESCRIPTION_FILE, json.dumps(description, indent=2) + "\n")


def read_description(folder: Path) -> dict:
    """Read what `weights/visllama.json` says.

    Raises:
        ConfigError: If the folder is none of ours, of another version, or holds what no run wrote.
    """
    path = Path(folder) / DESCRIPTION_FILE
    if not path.is_file():
        raise ConfigError(f"weights={folder}: holds no {DESCRIPTION_FILE}; give the weights/ folder that a run wrote")
    try:
        description = json.loads(read_regular(path, _MOST_DESCRIPTION_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: no valid JSON: {error}") from error
    version = description.get("format_version") if isinstance(description, dict) else None
    if version == 2 and isinstance(description.get("text"), dict):  # before there were templates
        description["text"]["template"] = asdict(TEMPLATES["plain"])
    elif version != FORMAT_VERSION:
        raise ConfigError(f"{path}: format_version={version}, this visllama reads {FORMAT_VERSION}: train again")
    for key, kind in (("parts", dict), ("trained", list), ("base_sha256", dict), ("text", dict)):
        if not isinstance(description.get(key), kind):
            raise ConfigError(f"{path}: has no {key}")
    unknown = [name for name in description["trained"] if name not in (*PARTS, ADAPTER)]
    if unknown:
        raise ConfigError(f"{path}: trained={unknown}: a model's parts are {', '.join((*PARTS, ADAPTER))}")
    try:
        TextSettings.from_dict(description["text"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    _check_parts(path, description["parts"])
    return description


def _check_parts(path: Path, parts: Mapping) -> None:
    """Refuse what no run wrote: a file from elsewhere names no code, reads no variable, and brings no pattern."""
    for role in ROLES:
        if not isinstance(parts.get(role), dict) or not isinstance(parts[role].get("arguments"), dict):
            raise ConfigError(f"{path}: does not describe the {role}")
        if not isinstance(parts[role].get("kind"), str):
            raise ConfigError(f"{path}: does not name the kind of the {role}")
    for refused in ("_target_", "${"):
        if refused in json.dumps(parts):
            raise ConfigError(f"{path}: a {refused} inside weights is refused")
    lora = parts.get("lora", {})
    if not isinstance(lora, dict) or not is_plain(lora):
        raise ConfigError(f"{path}: lora={lora} must be LoRA's arguments, and names in them no patterns")


def load_weights(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    plugins: Sequence[str] = (),
    models: Path | str | None = None,
    as_stored: bool = False,
) -> tuple[VisLlama, dict]:
    """Rebuild the model and put the trained tensors in; gives it with its description.

    Args:
        folder: A run's `weights/`.
        dtype: Of the frozen weights.
        plugins: The user's packages, for parts that are not ours.
        models: Where downloaded base models lie (`paths.models`).
        as_stored: Leave the frozen weights in the dtype of their files, for a strategy that casts them itself.

    Raises:
        ConfigError: If a part's kind is unknown, if a trained tensor is missing, unknown or of another shape, or if a
            base model is not the one that the weights were trained with.
    """
    folder = Path(folder)
    description = read_description(folder)
    model = build_model(description["parts"], description["trained"], plugins=plugins, models=models)
    check_tensors(model, folder, description)
    # The hashes are of the base models as they are stored. What fp16 rounds has others, so it is rounded after; every
    # other dtype holds all that bf16 does.
    rounds = dtype == torch.float16
    model.load_base_weights(dtype, as_stored or rounds)
    load_tensors(model, folder, description)
    if rounds and not as_stored:
        cast(model, dtype)
    return model, description


def check_tensors(model: VisLlama, folder: Path, description: Mapping) -> None:
    """Refuse a folder whose tensors are not those of the parts that it says were trained; no weight is loaded.

    Raises:
        ConfigError: If one is missing, unknown or of another shape, naming it.
    """
    had = set(description["parts"])
    own = trained_tensors(model, description["trained"]).items()
    wanted = {name: tuple(p.shape) for name, p in own if "lora" in had or part_of(name) != ADAPTER}
    with open_tensors(folder / TENSORS_FILE) as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    _check_same_tensors(folder, wanted, found)


def load_tensors(model: VisLlama, folder: Path, description: Mapping) -> None:
    """Put trained tensors into a model that has its base weights.

    Raises:
        ConfigError: If it has other base models or images than those that the tensors were trained with.
    """
    for part in set(BASE_PARTS) - set(description["trained"]):
        expected = description["base_sha256"].get(part)
        actual = hash_tensors(_part(model, part), torch.bfloat16)
        if actual != expected:
            described = description["parts"][part]
            name = described["arguments"].get("path", described["kind"])
            raise ConfigError(
                f"{folder}: trained with another {part}: its sha256 starts {str(expected)[:12]}, here {name} has "
                f"{actual[:12]}: its weights have to be the same each time that they are loaded"
            )
    transform = json.loads(json.dumps(model.vision_encoder.transform.to_dict()))
    if description.get("image_transform") != transform:
        raise ConfigError(
            f"{folder}: trained on images made by {description.get('image_transform')}, and here the encoder's "
            f"processor makes {transform}"
        )
    with open_tensors(folder / TENSORS_FILE) as file:
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()}, strict=False)  # noqa: SIM118


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file that somebody else may have made.

    Raises:
        ConfigError: If it is none.
    """
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{path}: no safetensors file ({error}); pickled weights are not read") from error


def _check_same_tensors(folder: Path, expected: dict[str, tuple], found: dict[str, tuple]) -> None:
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unknown {name}" for name in found if name not in expected]
    problems += [
        f"{name} has shape {found[name]}, the model {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise ConfigError(f"{folder}: the weights do not fit the model they describe: {'; '.join(problems[:5])}")
