"""The verbs `caption`, `ask` and `chat`: use trained weights on the terminal."""

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
    """Check that this machine and this decoding can be used, and return the files of the configured pictures.

    Neither weights nor pictures are read.

    Args:
        config: The configuration of the verb; its `images` name files and folders, as `find_pictures` takes them.

    Raises:
        ConfigError: If a picture is not there, or the machine or the decoding cannot be used.
    """
    check_machine(config.trainer)
    check_decoding(config.decoding)
    return find_pictures(as_list(config.images))


def caption(config: CaptionConfig, paths: Sequence[Path]) -> list[dict]:
    """Caption pictures, and print the captions as a table, or as JSON for another program.

    Pictures that cannot be read are left out, and named on the standard error.

    Args:
        config: The configuration of the verb: the weights, the decoding, the batch size, and `json`, which chooses how
            the captions are printed.
        paths: The files of the pictures, as `assemble` returns them.

    Returns:
        The rows that were printed, `{"image": path, "caption": text}`, in the order of the paths.

    Raises:
        ConfigError: If the weights cannot be loaded, no picture can be read, or a caption does not fit the language
            model's positions.
    """
    pipeline = load_pipeline(config)
    pipeline.batch_size = config.batch_size
    rows = []
    # Batch by batch, so that a folder of any size fits the memory.
    for names, pictures in read_pictures(paths, config.batch_size):
        captions = pipeline.caption(pictures, **config.decoding)
        for name, text in zip(names, captions, strict=True):
            rows.append({"image": str(name), "caption": text})
    show(rows, config.json)
    return rows


def ask(config: AskConfig, paths: Sequence[Path]) -> list[dict]:
    """Ask each question about each picture, and print the answers as a table, or as JSON for another program.

    Without pictures each question is asked once, about none. Pictures that cannot be read are left out, and named on
    the standard error.

    Args:
        config: The configuration of the verb: the weights, the questions, the decoding, the batch size, and `json`,
            which chooses how the answers are printed.
        paths: The files of the pictures, as `assemble` returns them; there may be none.

    Returns:
        The rows that were printed, `{"image": path, "question": text, "answer": text}`, picture by picture; without
        pictures the rows have no "image".

    Raises:
        ConfigError: If the weights cannot be loaded, no picture can be read, or a question does not fit the language
            model's positions.
    """
    pipeline = load_pipeline(config)
    pipeline.batch_size = config.batch_size
    questions = [str(question) for question in as_list(config.question)]
    rows = []

    if not paths:
        answers = pipeline.ask(None, questions, **config.decoding)
        for question, answer in zip(questions, answers, strict=True):
            rows.append({"question": question, "answer": answer})

    for names, pictures in read_pictures(paths, config.batch_size):
        # All answers of a batch come first, since a question is asked about all pictures at once.
        answers_to = {}
        for question in questions:
            answers_to[question] = pipeline.ask(pictures, question, **config.decoding)
        for number, name in enumerate(names):
            for question, answers in answers_to.items():
                rows.append({"image": str(name), "question": question, "answer": answers[number]})

    show(rows, config.json)
    return rows


def chat(config: ChatConfig, paths: Sequence[Path]) -> None:
    """Hold a conversation on the terminal: read a question from each line of the input, and print its answer.

    The conversation ends at the end of the input, with Ctrl-C, or at a line `/quit` or `/exit`. A line `/image FILE`
    shows the model a picture before the next question. If a question cannot be answered, or such a picture cannot be
    read, the reason is printed on the standard error, and the conversation continues.

    Args:
        config: The configuration of the verb: the weights, the decoding and the system text.
        paths: The files of the pictures that stand before the first question; there may be none.

    Raises:
        ConfigError: If the weights cannot be loaded, or one of `paths` cannot be read.
    """
    pipeline = load_pipeline(config)
    conversation = pipeline.chat(list(paths), config.system)

    # Lines may come from a file or another program, which needs no prompt.
    is_typed = sys.stdin.isatty()
    if is_typed:
        print(f"{_SHOW} FILE shows a picture before the next question; {_QUIT[0]} or Ctrl-D ends.")

    waiting_pictures: list[Image.Image] = []
    while True:
        text = next_line("you: " if is_typed else "")
        if text is None or text in _QUIT:
            return

        try:
            if text.startswith(f"{_SHOW} "):
                path = text.removeprefix(_SHOW).strip()
                waiting_pictures.append(read_image(Path(path).expanduser(), path))
            elif text:
                answer = conversation.say(text, waiting_pictures, **config.decoding)
                print(printable(answer), flush=True)
                waiting_pictures = []
        except ConfigError as error:
            # The conversation is as it was before, and goes on.
            print(printable(error), file=sys.stderr, flush=True)


def next_line(prompt: str) -> str | None:
    """Read a line of the standard input, and return it without spaces around it.

    Args:
        prompt: The text that is printed before the line is read; "" prints nothing.

    Returns:
        The line; None at the end of the input, or if Ctrl-C was pressed.
    """
    try:
        return input(prompt).strip()
    except (EOFError, KeyboardInterrupt):
        # The terminal's cursor stands behind the prompt.
        if prompt:
            print()
        return None


def load_pipeline(config: CaptionConfig | AskConfig | ChatConfig | DemoConfig) -> Pipeline:
    """Load the configured weights on the configured device, and return a pipeline that uses them.

    The number of torch's CPU threads and the seed of its generators are set too.

    Args:
        config: The configuration of the verb, with `weights`, `plugins`, `paths`, `trainer` and `seed`.

    Raises:
        ConfigError: If the weights cannot be found or loaded.
    """
    trainer = config.trainer
    torch.set_num_threads(trainer.threads)
    torch.manual_seed(config.seed)
    precision = find_precision(trainer.precision, trainer.accelerator)
    dtype = frozen_dtype(precision)
    return load(config.weights, config.plugins, config.paths["models"], trainer.accelerator, dtype)


def as_list(value: object) -> list:
    """Return a list unchanged, None as an empty list, and any other value as a list of one."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def find_pictures(names: Sequence[object]) -> list[Path]:
    """Return the picture files that paths and folders name, in the order of the names.

    The files of a folder, and of the folders inside it, are sorted. A file that is named by itself may have any suffix.

    Args:
        names: Paths of files and of folders; `~` stands for the home folder.

    Raises:
        ConfigError: If a file or folder is not there, or a folder holds no pictures.
    """
    files: list[Path] = []
    for name in names:
        path = Path(str(name)).expanduser()
        if path.is_dir():
            pictures = sorted(file for file in path.rglob("*") if _is_picture(file))
            if not pictures:
                suffixes = ", ".join(SUFFIXES)
                raise ConfigError(f"images={path}: the folder holds no {suffixes}")
            files += pictures
        elif path.is_file():
            files.append(path)
        else:
            raise ConfigError(f"images={path}: no such file or folder")
    return files


def _is_picture(path: Path) -> bool:
    """Return whether a path is a file with the suffix of a picture."""
    suffix = path.suffix.lower().lstrip(".")
    return suffix in SUFFIXES and path.is_file()


def read_pictures(paths: Sequence[Path], batch_size: int) -> Iterator[tuple[list[Path], list[Image.Image]]]:
    """Yield pictures with their paths, batch by batch.

    Pictures that cannot be read are left out, and named on the standard error.

    Args:
        paths: The files of the pictures.
        batch_size: The number of pictures in a batch at most.

    Raises:
        ConfigError: If no picture can be read; the message has the first one's problem.
    """
    problems: list[str] = []
    with bars() as progress:
        task = progress.add_task("pictures", total=len(paths))
        for start in range(0, len(paths), batch_size):
            names = []
            pictures = []
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
    """Print rows as a table, or as JSON alone.

    Args:
        rows: The rows, all with the same keys; the keys are the headers of the table's columns. There may be none.
        as_json: Whether a JSON list of the rows is printed, for another program, in place of a table.
    """
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if not rows:
        say("There are no pictures and no questions, so there are no texts.")
        return

    table = Table(*rows[0], show_lines=len(rows) > 1)
    for row in rows:
        # Texts may hold square brackets, which rich reads as markup.
        table.add_row(*(escape(text) for text in row.values()))
    say(table, "json=true prints this for another program.")
