"""The verb `export`: trained weights as a folder that another library, or somebody else, reads."""

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
"""What is typed next, by the format."""


def assemble(config: ExportConfig) -> dict:
    """Check what is asked as far as that needs no weight, and return the description that is to be exported.

    Raises:
        ConfigError: Naming the key, the value found, and what to do.
    """
    weights = Path(config.weights)
    check_new_folder(Path(config.out))
    if config.push:
        read_token(config.push)
    description = read_description(weights)
    model = build_model(
        description["parts"], description["trained"], plugins=config.plugins, models=config.paths["models"]
    )
    check_tensors(model, weights, description)
    obstacle = find_obstacle(model, config.format)
    if obstacle is not None:
        raise ConfigError(f"format={config.format}: {obstacle}")
    if config.format != "hub":
        return description
    return name_bases(description, _named_bases(config))


def export(config: ExportConfig, description: Mapping) -> None:
    """Write the folder, read it back, and show what is in it; `push` uploads it."""
    out = Path(config.out)
    dtype = _DTYPES[config.dtype]
    with new_folder(out) as folder:
        with working() as report:
            report("loading the model")
            exported = _Exported(config, description, dtype)
            report("writing")
            exported.write(folder)
            report("reading it back")
            finding = exported.read_back(folder)
        named = _named_bases(config)
        write_card(build_card(Path(config.weights), config.format, config.push, named=named), folder)

    say(_files_table(out), finding)
    if config.push:
        say(f"Uploaded: {push(out, config.push, config.private)}")
    else:
        say("Nothing was uploaded: push=ORGANISATION/NAME sends what the table names (HF_TOKEN holds the token).")
    say(f"Wrote {printable(out)}; use it:  {_USED_BY[config.format].format(out=printable(out))}")


def _named_bases(config: ExportConfig) -> dict[str, str | None]:
    """Return the hub's ids of the base models that the user gave."""
    return {"vision_encoder": config.vision_encoder, "language_model": config.language_model}


class _Exported:
    """A model that is written in a format, and read back.

    Args:
        config: What is asked.
        description: The weights' description.
        dtype: The dtype that is written.
    """

    def __init__(self, config: ExportConfig, description: Mapping, dtype: torch.dtype) -> None:
        self.config, self.description, self.dtype = config, description, dtype
        self.weights = Path(config.weights)
        self.text = TextSettings.from_dict(description["text"])
        self.model = self._load(self.weights)
        self.maker = sample_maker(self.model, self.text)
        self.decoding = whole_decoding(self.maker, greedy())
        self.probe = None if config.format == "hub" else make_probe(self.model, self.maker)

    def _load(self, weights: Path) -> VisLlama:
        """Load weights, which also refuses base models that they were not trained with."""
        model, _ = load_weights(weights, self.dtype, plugins=self.config.plugins, models=self.config.paths["models"])
        if self.config.format in ("llava", "language_model"):
            model.merge_adapter()
        return model.eval()

    def write(self, folder: Path) -> None:
        """Write the format's files."""
        whole = (self.text, self.decoding["eos_token_id"], self.decoding["max_new_tokens"], self.config.max_shard_size)
        match self.config.format:
            case "llava":
                write_llava(folder, self.model, *whole)
            case "language_model":
                write_language_model(folder, self.model, *whole)
            case "adapter":
                arguments = self.description["parts"]["language_model"]["arguments"]
                write_adapter(folder, self.model, arguments.get("path", ""))
            case "hub":
                write_hub(folder, self.weights, self.description, self.dtype)

    def read_back(self, folder: Path) -> str:
        """Read what was written, by the library that it is for, and return what was found as a sentence.

        Raises:
            ConfigError: If it cannot be read, or computes something else.
        """
        if self.config.format == "hub":
            return self._read_back_hub(folder)

        probe = self.probe
        source = self.model.language_model_source
        self.model = None  # two of them may not fit
        match self.config.format:
            case "llava":
                difference = read_back_llava(folder, probe, self.dtype)
                reader = "transformers: no tensor is missing, none is unknown, and"
            case "language_model":
                difference = read_back_language_model(folder, probe, self.dtype)
                reader = "transformers: no tensor is missing, none is unknown, and"
            case "adapter":
                difference = read_back_adapter(folder, probe, lambda: source.load(self.dtype))
                reader = "PEFT over the base model:"
        finding = f"Read back by {reader} the logits differ by at most {difference:.1g}."
        if self.config.format == "llava":
            different = same_prompts(folder, self.maker, probe.logits.shape[-1])
            finding += f" The chat template makes the run's own ids{_exceptions(different)}."
        return finding

    def _read_back_hub(self, folder: Path) -> str:
        """Read the description and the shapes that were written; the base models may be on the hub alone."""
        description = read_description(folder)
        trained = read_description(self.weights)
        model = build_model(
            trained["parts"], trained["trained"], plugins=self.config.plugins, models=self.config.paths["models"]
        )
        check_tensors(model, folder, description)
        return "Read back by visllama: every trained tensor is there, in its shape."


def _exceptions(names: list[str]) -> str:
    return f", but for {', '.join(names)}" if names else ""


def _files_table(folder: Path) -> Table:
    """Show the files of a folder and their sizes: what an upload would send."""
    table = Table("file", title=f"{folder}")
    table.add_column("size", justify="right")
    for name, size in list_upload(folder):
        table.add_row(printable(name), decimal(size))
    return table
