"""The verbs `caption`, `ask` and `chat`: what trained weights say about pictures, on the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from rich.markup import escape
from rich.table import Table

from visllama.config.dry_run import check_decoding, check_machine
from visllama.config.schema import AskConfig, CaptionConfig, ChatConfig, DemoConfig
from visllama.console import bars, printable, say
from visllama.errors import ConfigError
from visllama.images.decode import SUFFIXES, read_image
from visllama.inference.pipeline import Pipeline, load
from visllama.machine.devices import find_precision, frozen_dtype

_SHOW = "/image"
_QUIT = ("/quit", "/exit")


def assemble(config: CaptionConfig | AskConfig | ChatConfig) -> list[Path]:
    """Find the pictures, and try the machine and the decoding.

    Raises:
        ConfigError: If there are no pictures there, or the machine or the decoding is none.
    """
    check_machine(config.trainer)
    check_decoding(config.decoding)
    return find_pictures(as_list(config.images))


def caption(config: CaptionConfig, paths: Sequence[Path]) -> list[dict]:
    """Caption pictures by `weights`: a table for a person, or JSON alone."""
    pipeline = load_pipeline(config)
    pipeline.batch_size = config.batch_size
    rows = []
    for names, pictures in read_pictures(paths, config.batch_size):
        captions = pipeline.caption(pictures, **config.decoding)
        rows += [{"image": str(name), "caption": text} for name, text in zip(names, captions, strict=True)]
    show(rows, config.json)
    return rows


def ask(config: AskConfig, paths: Sequence[Path]) -> list[dict]:
    """Ask each question about each picture, or about none where none is given."""
    pipeline = load_pipeline(config)
    pipeline.batch_size = config.batch_size
    questions = [str(question) for question in as_list(config.question)]
    rows = []
    if not paths:
        answers = pipeline.ask(None, questions, **config.decoding)
        rows = [{"question": asked, "answer": said} for asked, said in zip(questions, answers, strict=True)]
    for names, pictures in read_pictures(paths, config.batch_size):
        answers = {question: pipeline.ask(pictures, question, **config.decoding) for question in questions}
        for i, name in enumerate(names):
            rows += [{"image": str(name), "question": asked, "answer": said[i]} for asked, said in answers.items()]
    show(rows, config.json)
    return rows


def chat(config: ChatConfig, paths: Sequence[Path]) -> None:
    """Talk with the model, line by line, until the end of what is typed."""
    pipeline = load_pipeline(config)
    conversation = pipeline.chat(list(paths), config.system)
    is_typed = sys.stdin.isatty()
    if is_typed:
        print(f"{_SHOW} FILE shows a picture before the next question; {_QUIT[0]} or Ctrl-D ends.")
    waiting: list[Image.Image] = []
    while (text := next_line("you: " if is_typed else "")) not in (None, *_QUIT):
        try:
            if text.startswith(f"{_SHOW} "):
                path = text.removeprefix(_SHOW).strip()
                waiting.append(read_image(Path(path).expanduser(), path))
            elif text:
                print(printable(conversation.say(text, waiting, **config.decoding)), flush=True)
                waiting = []
        except ConfigError as error:  # the conversation is as before
            print(printable(error), file=sys.stderr, flush=True)


def next_line(prompt: str) -> str | None:
    """Read a line; None where there is none any more, or Ctrl-C was pressed."""
    try:
        return input(prompt).strip()
    except (EOFError, KeyboardInterrupt):
        print(end="\n" if prompt else "")
        return None


def load_pipeline(config: CaptionConfig | AskConfig | ChatConfig | DemoConfig) -> Pipeline:
    """Load the weights as the configuration wants them."""
    torch.set_num_threads(config.trainer.threads)
    torch.manual_seed(config.seed)
    dtype = frozen_dtype(find_precision(config.trainer.precision, config.trainer.accelerator))
    return load(config.weights, config.plugins, config.paths["models"], config.trainer.accelerator, dtype)


def as_list(given: object) -> list:
    """Return what a key was given as a list: of one value, of several, or of none where it is null."""
    if given is None:
        return []
    return given if isinstance(given, list) else [given]


def find_pictures(names: Sequence[object]) -> list[Path]:
    """Return the picture files that paths and folders name, those of folders inside folders too.

    Raises:
        ConfigError: If one is not there, or a folder holds none.
    """
    found: list[Path] = []
    for path in (Path(str(name)).expanduser() for name in names):
        if path.is_dir():
            pictures = sorted(p for p in path.rglob("*") if p.suffix.lower().lstrip(".") in SUFFIXES and p.is_file())
            if not pictures:
                raise ConfigError(f"images={path}: the folder holds no {', '.join(SUFFIXES)}")
            found += pictures
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigError(f"images={path}: no such file or folder")
    return found


def read_pictures(paths: Sequence[Path], batch_size: int) -> Iterator[tuple[list[Path], list[Image.Image]]]:
    """Yield pictures with their paths, batch by batch; those that cannot be read are told and left out.

    Raises:
        ConfigError: If none can be read, with what is wrong with the first.
    """
    problems: list[str] = []
    with bars() as progress:
        task = progress.add_task("pictures", total=len(paths))
        for start in range(0, len(paths), batch_size):
            names, pictures = [], []
            for path in paths[start : start + batch_size]:
                try:
                    pictures.append(read_image(path, str(path)))
                    names.append(path)
                except ConfigError as error:
                    problems.append(str(error))
                    print(f"left out: {printable(error)}", file=sys.stderr, flush=True)
            if pictures:
                yield names, pictures
            progress.update(task, completed=start + batch_size)
    if paths and len(problems) == len(paths):
        raise ConfigError(f"images: none of {len(paths)} can be read; the first: {problems[0]}")
    if problems:
        print(f"{len(problems)} of {len(paths)} pictures were left out", file=sys.stderr, flush=True)


def show(rows: Sequence[dict[str, str]], as_json: bool) -> None:
    """Print rows as JSON alone, for another program, or as a table."""
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    table = Table(*rows[0], show_lines=len(rows) > 1)
    for row in rows:
        table.add_row(*map(escape, row.values()))
    say(table, "json=true prints this for another program.")
