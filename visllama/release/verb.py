"""Run the command `visllama export`: write trained weights as a folder that other libraries or other users read."""

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
_BY_TRANSFORMERS = "Read back by transformers: no tensor is missing, none is unknown, and"
"""The beginning of the result of a format that transformers has loaded."""


def assemble(config: ExportConfig) -> dict:
    """Check that an export can be done, and return the content of the `visllama.json` to export; nothing is written.

    The check covers all that needs no weights in memory: that `out` is new or empty, the token for `push`, the files in
    `weights`, and whether `format` can express the model. For the format "hub" the base models in the result are named
    as other users find them.

    Args:
        config: The command's configuration.

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
    """Export trained weights into the folder `config.out`, check it, and upload it if `config.push` is given.

    The folder gets the files of the format and a model card. The files are written to a temporary folder, and loaded
    from there by the library that they are for. Then that folder is renamed, so that `out` appears whole or not at all.
    The list of files, the result of the check and the address of the upload are printed.

    Args:
        config: The command's configuration.
        description: The content of `visllama.json` to export, from `assemble`.

    Raises:
        ConfigError: If the written files cannot be loaded, or compute something else than the model did; or if the
            upload fails, in which case the exported folder is kept.
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
    """Build the model that a description names without its tensors' memory (on torch's meta device)."""
    parts = description["parts"]
    return build_model(parts, description["trained"], plugins=config.plugins, models=config.paths["models"])


def _named_bases(config: ExportConfig) -> dict[str, str | None]:
    """Return the hub's ids that the user gave for the base models, by their parts; None for one that was not given."""
    return {"vision_encoder": config.vision_encoder, "language_model": config.language_model}


class _Exporter:
    """Load the weights of an export; `write` then writes the files of its format, and `read_back` checks them.

    Args:
        config: The command's configuration.
        description: The content of `visllama.json` to export.
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
        """Return the model of some weights in evaluation mode, with LoRA merged if the format needs it.

        Raises:
            ConfigError: If the weights cannot be loaded, or the base models are others than in training.
        """
        model, _ = load_weights(weights, self.dtype, plugins=self.config.plugins, models=self.config.paths["models"])

        # These formats have no place for an adapter beside the weights.
        if self.config.format in ("llava", "language_model"):
            model.merge_adapter()
        return model.eval()

    def write(self, folder: Path) -> None:
        """Write the files of the format into an existing empty folder, without the card."""
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
        """Load the written files by the library that they are for, and return the result as a sentence for the user.

        The model in memory is dropped first, as two of them may not fit: `write` cannot be called afterwards.

        Args:
            folder: The folder that `write` has filled.

        Raises:
            ConfigError: If the files cannot be loaded, or compute something else.
        """
        if self.probe is None:
            return self._read_back_hub(folder)

        assert self.model is not None  # only this method drops it
        source = self.model.language_model_source
        self.model = None

        if self.config.format == "llava":
            difference = read_back_llava(folder, self.probe, self.dtype)
            prompts = self._compare_prompts(folder, num_embeddings=self.probe.logits.shape[-1])
            return f"{_BY_TRANSFORMERS} the logits differ by at most {difference:.1g}. {prompts}"
        if self.config.format == "language_model":
            difference = read_back_language_model(folder, self.probe, self.dtype)
            return f"{_BY_TRANSFORMERS} the logits differ by at most {difference:.1g}."

        difference = read_back_adapter(folder, self.probe, load_base=lambda: source.load(self.dtype))
        return f"Read back by PEFT over the base model: the logits differ by at most {difference:.1g}."

    def _compare_prompts(self, folder: Path, num_embeddings: int) -> str:
        """Return the sentence on which prompts the chat template of a LLaVA folder writes as the run did.

        Args:
            folder: The folder that `write` has filled.
            num_embeddings: Number of the language model's own embeddings (V).
        """
        different = same_prompts(folder, self.maker, num_embeddings)
        if not different:
            return "The chat template makes the run's own ids."
        names = ", ".join(different)
        return f"The chat template makes the run's own ids, but for {names}."

    def _read_back_hub(self, folder: Path) -> str:
        """Check names and shapes of the tensors in a folder of the format `hub`, and return the result as a sentence.

        The model is built by the run's own description, as the exported one may name base models that only the hub has.
        """
        description = read_description(folder)
        model = _build_on_meta(self.config, read_description(self.weights))
        check_tensors(model, folder, description)
        return "Read back by visllama: every trained tensor is there, in its shape."


def _files_table(folder: Path) -> Table:
    """Return a table for the terminal of the files that an upload of a folder would send, with their sizes."""
    table = Table("file", title=f"{folder}")

    table.add_column("size", justify="right")
    for name, size in list_upload(folder):
        table.add_row(printable(name), decimal(size))
    return table
