"""The verb `export`, which writes trained weights as a folder that other libraries or other users read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from rich.filesize import decimal
from rich.table import Table

from visllama.config.schema import ExportConfig
from visllama.console import printable, say, working
from visllama.errors import ConfigError
from visllama.evaluation.captioner import whole_decoding
from visllama.evaluation.runner import sample_maker
from visllama.files import check_new_folder, new_folder
from visllama.inference.writer import greedy
from visllama.model.export_formats import find_obstacle
from visllama.model.visllama import VisLlama
from visllama.model.weights import build_model, check_tensors, load_weights, read_description
from visllama.release.card import build_card, write_card
from visllama.release.hub import name_bases, write_hub
from visllama.release.language_model import write_adapter, write_language_model
from visllama.release.llava import write_llava
from visllama.release.push import list_upload, push, read_token
from visllama.release.read_back import (
    make_probe,
    read_back_adapter,
    read_back_language_model,
    read_back_llava,
    same_prompts,
)
from visllama.text.settings import TextSettings

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_USED_BY = {
    "hub": "python -c \"import visllama; print(visllama.load('{out}').caption('photo.jpg'))\"",
    "llava": "vllm serve {out}   (or transformers: LlavaForConditionalGeneration.from_pretrained('{out}'))",
    "adapter": "peft: PeftModel.from_pretrained(BASE_MODEL, '{out}')",
    "language_model": "vllm serve {out} --enable-prompt-embeds   (what to send: visllama/release/README.md)",
}
"""The next command that a user would type, by the format."""


def assemble(config: ExportConfig) -> dict:
    """Check everything that can be checked without loading weights, and return the description to export.

    Raises:
        ConfigError: If the export cannot be done; the message names the key, the value found, and what to do.
    """
    weights = Path(config.weights)
    check_new_folder(Path(config.out))

    # Asked for now, and not after hours of writing.
    if config.push:
        read_token(config.push)

    # Shapes are enough to find what a format cannot express.
    description = read_description(weights)
    model = _build_on_meta(config, description)
    check_tensors(model, weights, description)
    obstacle = find_obstacle(model, config.format)
    if obstacle is not None:
        raise ConfigError(f"format={config.format}: {obstacle}")
    if config.format != "hub":
        return description
    return name_bases(description, _named_bases(config))


def export(config: ExportConfig, description: Mapping) -> None:
    """Write the folder, read it back, upload it where `push` is given, and show what was done.

    Args:
        config: The verb's config.
        description: The description that `assemble` returned.
    """
    out = Path(config.out)
    with new_folder(out) as folder:
        with working() as report:
            report("loading the model")
            exporter = _Exporter(config, description)
            report("writing")
            exporter.write(folder)
            report("reading it back")
            result = exporter.read_back(folder)

        # The card is part of the folder, which appears whole or not at all.
        card = build_card(Path(config.weights), config.format, config.push, named=_named_bases(config))
        write_card(card, folder)

    # Uploaded last: what cannot be sent is still here, and can be sent by the hub's own tools.
    say(_files_table(out), result)
    if config.push:
        address = push(out, config.push, config.private)
        say(f"Uploaded: {address}")
    else:
        say("Nothing was uploaded: push=ORGANISATION/NAME sends what the table names (HF_TOKEN holds the token).")
    command = _USED_BY[config.format].format(out=printable(out))
    say(f"Wrote {printable(out)}; use it:  {command}")


def _build_on_meta(config: ExportConfig, description: Mapping) -> VisLlama:
    """Build a model that weights describe on the meta device, with the user's plugins and base models."""
    parts = description["parts"]
    return build_model(parts, description["trained"], plugins=config.plugins, models=config.paths["models"])


def _named_bases(config: ExportConfig) -> dict[str, str | None]:
    """Return the hub's ids of the base models that the user gave."""
    return {"vision_encoder": config.vision_encoder, "language_model": config.language_model}


class _Exporter:
    """Write a model in a format, and read it back.

    Args:
        config: The verb's config.
        description: The description of the weights.
    """

    def __init__(self, config: ExportConfig, description: Mapping) -> None:
        self.config = config
        self.description = description
        self.dtype = _DTYPES[config.dtype]
        self.weights = Path(config.weights)
        self.text = TextSettings.from_dict(description["text"])

        self.model: VisLlama | None = self._load(self.weights)
        self.maker = sample_maker(self.model, self.text)
        self.decoding = whole_decoding(self.maker, greedy())
        # The format `hub` is checked by names and shapes: it computes nothing of its own.
        self.probe = None if config.format == "hub" else make_probe(self.model, self.maker)

    def _load(self, weights: Path) -> VisLlama:
        """Load weights, which also refuses base models that they were not trained with."""
        model, _ = load_weights(weights, self.dtype, plugins=self.config.plugins, models=self.config.paths["models"])

        # These formats have no place for an adapter beside the weights.
        if self.config.format in ("llava", "language_model"):
            model.merge_adapter()
        return model.eval()

    def write(self, folder: Path) -> None:
        """Write the format's files."""
        assert self.model is not None  # `read_back`, which drops it, comes later
        end_ids = self.decoding["eos_token_id"]
        max_new_tokens = self.decoding["max_new_tokens"]
        max_shard_size = self.config.max_shard_size

        match self.config.format:
            case "llava":
                write_llava(folder, self.model, self.text, end_ids, max_new_tokens, max_shard_size)
            case "language_model":
                write_language_model(folder, self.model, self.text, end_ids, max_new_tokens, max_shard_size)
            case "adapter":
                arguments = self.description["parts"]["language_model"]["arguments"]
                write_adapter(folder, self.model, arguments.get("path", ""))
            case "hub":
                write_hub(folder, self.weights, self.description, self.dtype)

    def read_back(self, folder: Path) -> str:
        """Read the files by the library that they are for, and return the result as a sentence.

        The model is dropped before: two of them may not fit into memory.

        Raises:
            ConfigError: If they cannot be read, or compute something else.
        """
        if self.probe is None:
            return self._read_back_hub(folder)

        assert self.model is not None  # only this method drops it
        source = self.model.language_model_source
        self.model = None
        by_transformers = "Read back by transformers: no tensor is missing, none is unknown, and"

        if self.config.format == "llava":
            difference = read_back_llava(folder, self.probe, self.dtype)
            different = same_prompts(folder, self.maker, num_embeddings=self.probe.logits.shape[-1])
            exceptions = f", but for {', '.join(different)}" if different else ""
            return (
                f"{by_transformers} the logits differ by at most {difference:.1g}. The chat template makes the run's "
                f"own ids{exceptions}."
            )
        if self.config.format == "language_model":
            difference = read_back_language_model(folder, self.probe, self.dtype)
            return f"{by_transformers} the logits differ by at most {difference:.1g}."

        difference = read_back_adapter(folder, self.probe, load_base=lambda: source.load(self.dtype))
        return f"Read back by PEFT over the base model: the logits differ by at most {difference:.1g}."

    def _read_back_hub(self, folder: Path) -> str:
        """Check the description and the shapes of the files, and return the result as a sentence.

        The model is built by the run's own description, as the exported one may name base models that only the hub has.
        """
        description = read_description(folder)
        model = _build_on_meta(self.config, read_description(self.weights))
        check_tensors(model, folder, description)
        return "Read back by visllama: every trained tensor is there, in its shape."


def _files_table(folder: Path) -> Table:
    """Return a table of the files of a folder and their sizes, which are what an upload would send."""
    table = Table("file", title=f"{folder}")
    table.add_column("size", justify="right")
    for name, size in list_upload(folder):
        table.add_row(printable(name), decimal(size))
    return table
