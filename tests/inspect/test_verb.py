"""The verb `inspect`: what it shows is what train would see, and a step with nothing to learn is an error."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from transformers import AutoTokenizer
from webdataset import TarWriter

from tests.support.verbs import inspect
from visllama.config.plain import plain
from visllama.data.samples import masked_sample
from visllama.errors import BadRecord, ConfigError
from visllama.evaluation.runner import sample_maker
from visllama.inspect.reading import choose, readable, tokens_of
from visllama.inspect.seen import MeasuredSample, SeenStep
from visllama.inspect.tables import bars, histogram
from visllama.model.locate import locate
from visllama.text.tokens import IGNORE_INDEX
from visllama.training.assembly import build_assembly
from visllama.training.run import training_data

SMALL = ("stage.global_batch_size=16", "num_samples=20")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 20, 20)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def tar(tmp_path):
    """Conversations with two images and two turns, and one record whose image does not decode."""
    said = [
        {"from": "human", "value": "<image>\n<image>\n<script>alert(1)</script> same?"},
        {"from": "gpt", "value": "no & yes"},
        {"from": "human", "value": "sure?"},
        {"from": "gpt", "value": "yes"},
    ]
    with TarWriter(str(tmp_path / "a.tar")) as written:
        for i in range(3):
            record = {"0.png": picture(i), "1.png": picture(200), "json": {"conversations": said}}
            written.write({"__key__": f"talk<b>{i}", **record})
        written.write({"__key__": "broken", "png": picture(9)[:-40], "json": {"captions": ["never read"]}})
    return str(tmp_path / "a.tar")


def of_tar(tar: str) -> tuple[str, ...]:
    return (
        "data=shards", f"data.sources.shards.path={tar}", "evaluation=none", "stage.global_batch_size=4",
        "data.max_bad_fraction=1", "data.sources.shards.val_fraction=null", "trainer.val_fraction=null",
    )  # fmt: skip


def train_steps(compose_config, *overrides: str):
    """Return the loader that training has with the same overrides."""
    config = plain(compose_config("train", *overrides, "check_only=true"))
    assembly = build_assembly(config)
    return training_data(config, assembly, sample_maker(assembly.model, assembly.text)).train_dataloader()


class Page(HTMLParser):
    """The tags of a page, and the text of each class of span."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.spans, self.within = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.within = dict(attrs) if tag == "span" and "title" in dict(attrs) else None

    def handle_data(self, data):
        if self.within:
            self.spans.append((self.within["class"], self.within["title"], data))
            self.within = None


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["stage=finetune", "stage.template=vicuna", "seed=7"],
        ["experiment=llava15_finetune", "model=tiny"],
        ["data=shards", "data.sources.shards.path=x.tar", "experiment=smoke", "model/lora=qv", "optim.lr=3"],
    ],
    ids=" ".join,
)
def test_it_takes_the_config_that_train_takes(compose_config, overrides):
    ours, theirs = compose_config("inspect", *overrides), compose_config("train", *overrides)
    own = {"name": "inspect", "samples": 8, "num_samples": 256}
    assert OmegaConf.to_container(ours) == OmegaConf.to_container(theirs) | own
    assert OmegaConf.get_type(ours.stage) is OmegaConf.get_type(theirs.stage) is not dict


def test_values_for_one_triple_reach_it_too(compose_config, tmp_path):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "tiny_scenes_pretrain.yaml").write_text("# @package _global_\nstage: {prompt: tuned}")
    assert compose_config("inspect", config_dir=tmp_path).stage.prompt == "tuned"
    assert compose_config("inspect", "stage=finetune", config_dir=tmp_path).stage.prompt == ""


@pytest.mark.parametrize("workers", [0, 2])
def test_it_sees_the_steps_of_train(compose_config, workers):
    overrides = ["stage=finetune", "stage.global_batch_size=16", f"data.num_workers={workers}"]
    seen = inspect(compose_config("inspect", *overrides, "num_samples=20", "samples=3"))
    assert [len(step.samples) for step in seen.steps] == [16, 16], "whole steps"
    targets = tokens = 0
    for ours, theirs in zip(seen.steps, train_steps(compose_config, *overrides), strict=False):
        assert [sample.key for sample in ours.samples] == theirs["keys"]
        assert (ours.num_targets, ours.num_micro_batches) == (theirs["num_targets"], len(theirs["micro_batches"]))
        assert ours.num_positions == sum(batch["input_ids"].numel() for batch in theirs["micro_batches"])
        rows = {tuple(row.tolist()) for batch in theirs["micro_batches"] for row in batch["input_ids"]}
        assert all(any(row[: len(s.input_ids)] == tuple(s.input_ids) for row in rows) for s in ours.samples)
        targets += sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in theirs["micro_batches"])
        tokens += sum(len(sample.input_ids) for sample in ours.samples)
    total = seen.counts[-1]
    assert (total.name, total.targets, total.tokens, total.samples) == ("all", targets, tokens, 32)
    assert total.cells()[2] == f"{targets / tokens:.1%}"
    assert sum(count.targets for count in seen.counts[:-1]) == targets


def test_a_sample_is_read_token_by_token(compose_config):
    shown = inspect(compose_config("inspect", *SMALL, "stage.prompt=a picture of", "samples=3")).shown
    assert len(shown) == 3 and [one.sample.key for one in shown] == [
        sample.key for sample in inspect(compose_config("inspect", *SMALL)).steps[0].samples[:3]
    ]
    one, ids = shown[0], shown[0].sample.input_ids
    order = "".join(
        {"bos": "s", "boi": "<", "image": "i", "eoi": ">", "prompt": "p", "response": "r", "end": "e"}[t.segment]
        for t in one.tokens
    )
    assert re.fullmatch("s<i>p+r+e", order)
    assert one.tokens[2].name == "[image] x 10"
    unfolded = [token.id for token in one.tokens[:2]] + [-1] * 10 + [token.id for token in one.tokens[3:]]
    assert unfolded == ids
    assert [t.label for t in one.tokens if t.label is not None] == [x for x in one.sample.labels if x != IGNORE_INDEX]
    assert all(t.label == (t.id if t.segment in ("response", "end") else None) for t in one.tokens)


def test_every_source_of_a_mix_is_shown(compose_config):
    seen = inspect(compose_config("inspect", "stage=finetune", "stage.global_batch_size=64", "samples=1"))
    assert {one.sample.source for one in seen.shown} == {
        "scenes",
        "scenes_questions",
        "scenes_conversations",
        "scenes_instructions",
    }
    assert {count.name: count.samples for count in seen.counts}["all"] == 256
    by_source = {one.sample.source: {token.segment for token in one.tokens} for one in seen.shown}
    assert "image" not in by_source["scenes_instructions"] and "image" in by_source["scenes_questions"]
    assert "prompt" not in by_source["scenes"] and "prompt" in by_source["scenes_questions"]
    images = {count.name: count.with_images / count.samples for count in seen.counts}
    assert (images["scenes_instructions"], images["scenes"]) == (0, 1)


def test_a_source_too_rare_for_the_first_step_is_shown_of_a_later_one():
    def sample(key, source):
        return MeasuredSample(key, [1, 5, 3], [IGNORE_INDEX, 5, 3], [], source, end_id=3)

    first = SeenStep([sample("a", "often"), sample("b", "often"), sample("c", "often")], 6, 1, 9)
    second = SeenStep([sample("d", "often"), sample("e", "rare")], 4, 1, 6)
    tokenizer = AutoTokenizer.from_pretrained(locate("visllama:llama"))
    shown = choose([first, second], 2, tokenizer)
    assert [(one.step, one.sample.key) for one in shown] == [(1, "a"), (2, "e")]
    assert [one.sample.key for one in choose([first, second], 9, tokenizer)] == ["a", "b", "c", "e"]
    assert tokens_of(masked_sample("x", "often", BadRecord("cut", "y")), tokenizer) == []


def test_lengths_are_those_before_the_cut(compose_config):
    whole = inspect(compose_config("inspect", *SMALL)).counts[0]
    for most in (5, 9, 10, 11):
        cut = inspect(compose_config("inspect", *SMALL, f"stage.max_text_tokens={most}")).counts[0]
        assert cut.text_tokens == whole.text_tokens
        assert cut.cut == sum(length > most for length in whole.text_tokens)
    assert whole.cut == 0 and whole.targets == sum(whole.text_tokens), "without a prompt all text is learned"


@pytest.mark.parametrize("check_only", [False, True])
def test_a_step_with_nothing_supervised_is_an_error(compose_config, tmp_path, capsys, check_only):
    prompt = "stage.prompt=a small red triangle above a large blue square on the left of a green circle"
    typed = (*SMALL, prompt, "stage.max_text_tokens=12", f"check_only={check_only}")
    with pytest.raises(
        ConfigError, match=r"stage.max_text_tokens=12: none of the 16 samples of step 1 .*16 no_target.*stage.prompt"
    ):
        inspect(compose_config("inspect", *typed))
    assert (tmp_path / "inspect.html").exists() != check_only, "the page shows why"
    said = capsys.readouterr().out
    assert "32 no_target" in said and "masked: 27 more" in said


def test_a_step_that_cannot_be_read_is_an_error(compose_config, tmp_path, capsys):
    with TarWriter(str(tmp_path / "a.tar")) as written:
        for i in range(4):
            written.write({"__key__": f"{i}", "png": picture(9)[:-40], "json": {"captions": ["never read"]}})
    with pytest.raises(ConfigError, match=r"data.sources.shards: none of the 4 samples of step 1 .*\(4 image\)"):
        inspect(compose_config("inspect", *of_tar(f"{tmp_path}/a.tar")))
    assert "No sample could be read" in capsys.readouterr().out and (tmp_path / "inspect.html").exists()


def test_conversations_with_images_and_a_record_that_is_masked(compose_config, tmp_path, tar, capsys):
    seen = inspect(compose_config("inspect", *of_tar(tar), "stage.template=vicuna", "num_samples=1"))
    count = seen.counts[0]
    assert (count.samples, count.with_images, dict(count.masked)) == (4, 3, {"image": 1})
    talk = next(one for one in seen.shown if not one.sample.fault)
    segments = [token.segment for token in talk.tokens]
    assert [segments.count(name) for name in ("boi", "image", "eoi", "end")] == [2, 2, 2, 2]
    assert len(talk.sample.pixel_values) == 2
    page = Page((tmp_path / "inspect.html").read_text())
    assert page.tags.count("img") == 6 and "script" not in page.tags and "b" not in page.tags
    assert len([span for span in page.spans if span[0] == "image"]) == 6
    learned = [(f"id {t.id}, {t.segment}, label {t.id}", t.name) for t in talk.tokens if t.label is not None]
    of_one = [span[1:] for span in page.spans if "label" in span[1]]
    assert of_one == learned * 3, "three records say the same"
    assert "masked: image: " in capsys.readouterr().out and "masked: image: " in (tmp_path / "inspect.html").read_text()


def test_the_page_is_whole_and_asks_for_nothing(compose_config, tmp_path, tar):
    inspect(compose_config("inspect", *of_tar(tar), f"stage.prompt='{'a red circle ' * 90}'"))
    text = (tmp_path / "inspect.html").read_text()
    assert "<script" not in text and "talk&lt;b&gt;" in text and not re.search(r"(src|href)=.?(?!data:)http", text)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == 6 and "<svg" in text and "default-src 'none'" in text


def test_pictures_are_the_pixels_that_the_model_sees(compose_config, tmp_path):
    seen = inspect(compose_config("inspect", *SMALL, "samples=2"))
    pictures = re.findall(r'base64,([^"]+)"', (tmp_path / "inspect.html").read_text())
    for picture, one in zip(pictures, seen.shown, strict=True):
        opened = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
        assert (opened == one.sample.pixel_values[0].permute(1, 2, 0).numpy()).all()


def test_long_samples_fold(compose_config, tmp_path, capsys):
    typed = ("stage=finetune", "stage.template=vicuna", "stage.global_batch_size=16", "num_samples=1", "samples=3")
    inspect(compose_config("inspect", *typed))
    said = capsys.readouterr().out
    assert re.search(r"\.\.\. \d+ more", said)
    page = (tmp_path / "inspect.html").read_text()
    assert said.count("... ") >= page.count("<details>") == page.count("</details>") > 0


def test_it_fits_80_columns(compose_config, tmp_path, monkeypatch, capsys):
    """But for what ends it, which is to be copied."""
    monkeypatch.setenv("COLUMNS", "80")
    inspect(compose_config("inspect", "stage=finetune", "stage.template=vicuna", *SMALL, "samples=3"))
    *lines, blank, wrote, train = capsys.readouterr().out.splitlines()
    assert (blank, wrote) == ("", f"Wrote {tmp_path}: inspect.html")
    assert train == "Train on it:  python train.py stage=finetune stage.template=vicuna stage.global_batch_size=16"
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("scenes_instructions ") for line in lines), "names are not broken"


def test_a_histogram_counts_all():
    lengths = [3, 3, 4, 90, 100, 101, 500]
    bins = histogram(lengths, 100)
    assert sum(b.count for b in bins) == len(lengths) and len(bins) <= 13
    assert bins[0].count == 3 and bins[-1] == ("over 100", 2, True)
    assert histogram([7], 100) == [("7", 1, False)] and histogram([], 100) == []
    assert all(len(line) <= 80 for line in bars(bins).splitlines()) and bars(bins).count("cut") == 1
    assert bars([]) == "No sample could be read"


def test_what_would_turn_a_terminal_is_written_out():
    assert readable("a\x1b[31m\n\u202e\udc80ü▁") == "a\\x1b[31m\\n\\u202e\\udc80ü▁"


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("samples=0", "samples=0: must be more than 0"),
        ("num_samples=-1", "num_samples=-1: must be more than 0"),
        ("optim.lr=-1", "optim.lr=-1"),
        ("stage.template=vicunna", "stage.template=vicunna"),
    ],
)
def test_what_train_refuses_is_refused(compose_config, typed, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        inspect(compose_config("inspect", typed))


def test_a_run_is_not_resumed(compose_config, tmp_path):
    (tmp_path / ".hydra").mkdir()
    with pytest.raises(ConfigError, match="inspect shows a run from its first step"):
        inspect(compose_config("inspect", f"resume={tmp_path}"))


def program(*typed: str, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "visllama", "inspect", *typed]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def test_the_program_writes_a_page_and_ends_with_an_error_where_nothing_is_learned(tmp_path):
    ended = program("stage.global_batch_size=4", "num_samples=1", "stage.max_text_tokens=1", cwd=tmp_path)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
    assert ended.stderr.startswith("visllama inspect: stage.max_text_tokens=1: none of the 4 samples")
    (page,) = tmp_path.glob("outputs/inspect/*/inspect.html")
    assert f"Wrote {page.parent}: inspect.html" in ended.stdout


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_draws_the_page(compose_config, tmp_path):
    inspect(compose_config("inspect", *SMALL, "samples=2", "stage.prompt=a picture of"))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1200,1600",
        f"--user-data-dir={tmp_path}/u",
    ]
    shot = tmp_path / "shot.png"
    address = f"file://{tmp_path}/inspect.html"
    subprocess.run([CHROMIUM, *options, f"--screenshot={shot}", address], check=True, capture_output=True, timeout=120)
    colors = {color for _, color in Image.open(shot).convert("RGB").getcolors(2**24)}
    assert {(0xD2, 0xF0, 0xD2), (0xD5, 0xE4, 0xFB), (0xEE, 0xEE, 0xEE), (0x5B, 0x8D, 0xD6)} <= colors
