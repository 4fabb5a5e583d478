"""The card: what it tells of a run, what it leaves out, and that nothing in a run's files is more than data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from markdown_it import MarkdownIt
from PIL import Image

from tests.support.galleries import write_gallery_of
from tests.support.tiny import TEXT, tiny_parts
from visllama.errors import ConfigError
from visllama.model.weights import save_weights
from visllama.release.card import build_card, write_card

COMMIT = "f7a39d9e89dc78ae10718204fd805b63490a178c"
NASTY = "a | b <script>alert(1)</script> [x](https://evil.example) `c` **d** ![e](f)\n\n# g\n---\nwww.evil.example &lt;"


def metrics(**more: object) -> dict:
    """Return what a run's metrics.json holds."""
    evaluation = {
        "task": "caption",
        "split": "test",
        "n": 1400,
        "metrics": {"BLEU-4": 0.5, "CIDEr": 1.2346},
        "intervals": {"CIDEr": [1.1, 1.3]},
        "controls": {"shuffled_images": {"CIDEr": 0.1}},
        "decoding": {"do_sample": False, "num_beams": 1, "max_new_tokens": 40},
        "prompt": "",
    }
    provenance = {
        "versions": {"visllama": "0.1.0", "pycocoevalcap": "1.2"},
        "git": {"commit": COMMIT, "dirty": True},
        "seed": 7,
        "precision": "bf16-true",
        "num_ranks": 8,
        "init_from": None,
    }
    train = {"steps": 250, "samples": 16000, "fit_seconds": 132.0, "train/loss": 0.4, "val/loss": 0.45}
    return {"evaluations": {"coco": evaluation}, "train": train, "provenance": provenance} | more


CONFIG = {
    "name": "lr-sweep",
    "data": {
        "sources": {
            "coco": {"_target_": "visllama.data.shards.ShardSource", "path": "${paths.data}/coco", "weight": 1.0},
            "mine": {"_target_": "mylab.Source", "path": "/home/bob/photos/a.tar", "weight": 3.0},
        }
    },
    "stage": {"global_batch_size": 64, "epochs": 3.0, "max_text_tokens": 256, "template": "plain"},
    "optim": {"_target_": "torch.optim.AdamW", "lr": 0.004, "lr_by_part": {"connector": 0.001}, "schedule": "cosine"},
}


def write_run(folder: Path, words: list[str], **more: object) -> None:
    """Write beside weights what a run leaves."""
    (folder / "metrics.json").write_text(json.dumps(metrics(**more)))
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "command.yaml").write_text(yaml.safe_dump({"overrides": words, "options": [], "seal": "0" * 64}))


@pytest.fixture
def run(make_model, records, tmp_path):
    """Make the folder of a run that was judged, somewhere below a home."""
    run = tmp_path / "home" / "bob" / "outputs" / "run"
    save_weights(make_model(dtype=torch.float32), tiny_parts(), TEXT, run / "weights")
    write_run(run, ["name=lr-sweep", "data.sources.mine.path=/home/bob/photos/a.tar"])
    (run / "evaluations" / "coco").mkdir(parents=True)
    texts = [f"text {i}" for i in range(len(records))]
    write_gallery_of(run / "evaluations/coco/gallery.html", "coco", records, texts, [0.1, 0.9, 0.8, 0.2, 0.05, 0.7])
    return run


def rendered(text: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(ModelCard(text).text)


def test_tells_what_a_stranger_needs(run, records):
    card = build_card(run / "weights", "hub", "user/name")
    page = rendered(card.text)
    for told in (
        "<h1>name</h1>",
        "visllama:clip",
        "MLPConnector",
        "10 image tokens",
        "the markers 256",
        "visllama.load(&quot;user/name&quot;, revision=&quot;COMMIT&quot;)",
        "split test, n = 1,400",
        "<td><strong>123.5</strong></td>\n<td>110.0 to 130.0</td>\n<td>10.0</td>",
        "greedy, at most 40 new tokens, no prompt",
        "<td>25%</td>\n<td>4,000</td>",
        "COCO captions",
        "0.004, connector 0.001",
        "<td>ranks</td>\n<td>8</td>",
        "bf16-true",
        f"{COMMIT}, with changes that were not committed",
        json.loads((run / "weights/visllama.json").read_text())["base_sha256"]["language_model"],
        "It is a toy",
        "not for decisions about people",
    ):
        assert told in page, told
    samples = re.findall(r"sample \d\" /></td>\n<td>(text \d)</td>\n<td>(.*?)</td>\n<td>(.*?)</td>", page)
    assert [(said, score) for said, _, score in samples] == [
        ("text 1", "90 (good)"),
        ("text 2", "80 (good)"),
        ("text 4", "5 (bad)"),
    ]
    assert samples[0][1] == records[1]["captions"][0]


def test_the_files_beside_it(run, tmp_path):
    card = build_card(run / "weights", "hub", "user/name")
    write_card(card, tmp_path / "out")
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {"README.md", "samples/1.png", "samples/2.png", "samples/3.png", ".eval_results/coco.yaml"}
    assert Image.open(tmp_path / "out/samples/1.png").size == (160, 160)
    entries = parse_eval_result_entries(yaml.safe_load((tmp_path / "out/.eval_results/coco.yaml").read_text()))
    assert [(entry.dataset_id, entry.task_id, entry.value) for entry in entries] == [("coco", "caption", 123.46)]
    assert entries[0].notes == "CIDEr x 100; n = 1,400; split test; 95% interval 110.0 to 130.0"


def test_the_metadata_is_the_hubs(run):
    text = build_card(run / "weights", "hub", "user/name").text
    data = ModelCard(text).data
    assert str(ModelCard(text)) == text
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "visllama", "image-text-to-text")
    assert data.language == "en" and data.base_model is None and "toy" in data.tags
    assert [(one.metric_type, one.metric_value) for one in data.eval_results] == [("bleu-4", 50.0), ("cider", 123.46)]
    assert data.model_name == "name"


def change_base(run: Path, **paths: str) -> None:
    path = run / "weights" / "visllama.json"
    description = json.loads(path.read_text())
    for part, name in paths.items():
        description["parts"][part]["arguments"]["path"] = name
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("language_model", "licence", "name", "told"),
    [
        ("huggyllama/llama-7b", "other", "llama-licence-first-llama", "non-commercial: research alone"),
        ("meta-llama/Llama-2-7b-hf", "llama2", None, "700 million monthly users"),
        ("meta-llama/Meta-Llama-3-8B", "llama3", None, "Built with Meta Llama 3"),
        ("lmsys/vicuna-7b-v1.5", "llama2", None, "Vicuna 1.5 is made from Llama 2"),
        ("mistralai/Mistral-7B-v0.1", "apache-2.0", None, "Apache-2.0"),
        ("somebody/else", "other", "see-base-models", "see its page"),
    ],
)
def test_base_models_bring_their_licences(run, language_model, licence, name, told):
    change_base(run, vision_encoder="openai/clip-vit-large-patch14", language_model=language_model)
    text = build_card(run / "weights", "hub").text
    data = ModelCard(text).data
    assert (data.license, data.license_name) == (licence, name)
    assert data.base_model == ["openai/clip-vit-large-patch14", language_model]
    assert f'<a href="https://huggingface.co/{language_model}">' in rendered(text) and told in text
    assert "toy" not in data.tags and "It is a toy" not in text


@pytest.mark.parametrize(
    ("form", "library", "tag", "line"),
    [
        ("llava", "transformers", "image-text-to-text", 'LlavaForConditionalGeneration.from_pretrained("user/name")'),
        ("adapter", "peft", "text-generation", '"user/name")'),
        ("language_model", "transformers", "text-generation", 'AutoModelForCausalLM.from_pretrained("user/name")'),
    ],
)
def test_each_form_has_its_library_and_lines(run, form, library, tag, line):
    change_base(run, vision_encoder="openai/clip-vit-large-patch14", language_model="huggyllama/llama-7b")
    text = build_card(run / "weights", form, "user/name").text
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == (library, tag)
    assert ("openai/clip-vit-large-patch14" in data.base_model) == (form == "llava")
    code = re.search(r"```python\n(.*?)\n```", text, re.DOTALL)[1]
    assert line in code and len(code.splitlines()) <= 6
    compile(code, "card", "exec")  # it is Python


def test_weights_alone_leave_out_what_is_not_known(run, tmp_path):
    (run / "weights").rename(tmp_path / "weights")
    card = build_card(tmp_path / "weights", "hub")
    assert card.files == {}
    headings = re.findall(r"^## (.*)$", card.text, re.MULTILINE)
    assert headings == ["How to use it", "Base models", "What made it", "Limits and biases", "Licence"]
    assert ModelCard(card.text).data.eval_results is None
    assert "None" not in card.text and "unknown" not in card.text


def test_no_place_of_this_machine_is_told(run):
    """Neither in paths, nor in addresses; what repeats the run keeps its form."""
    change_base(run, language_model="/home/bob/models/llama-mine")
    words = [
        "data.sources.mine.path=/home/bob/photos/a.tar",
        "paths.models=~/secret/models",
        "data.sources.b.path=[../../bob/b.tar,file:///home/bob/c.tar]",
        "data.sources.c.path=https://bob:word@host/d.tar?X-Signature=123",
        "--config-dir",
        "/home/bob/conf",
        "optim.lr=1e-3",
        "model/connector=resampler",
    ]
    write_run(run, words)
    text = build_card(run / "weights", "hub").text
    for told in ("bob", "secret/", "X-Signature", ":word", str(run.parent)):
        assert told not in text, told
    assert "llama-mine (a folder of the trainer's)" in text
    assert (
        "visllama train data.sources.mine.path=PATH/a.tar paths.models=PATH/models "
        "'data.sources.b.path=[PATH/b.tar,PATH/c.tar]' data.sources.c.path=https://host/d.tar --config-dir PATH/conf "
        "optim.lr=1e-3 model/connector=resampler\n"
    ) in text


def test_a_second_stage_tells_of_the_first(run, make_model):
    first = run.parent / "first"
    save_weights(make_model(dtype=torch.float32), tiny_parts(), TEXT, first / "weights")
    write_run(first, ["name=one"])
    begun = metrics()["provenance"] | {"init_from": "outputs/first/weights"}
    write_run(run, ["stage=finetune", "init_from=outputs/first/weights"], provenance=begun)
    text = build_card(run / "weights", "hub").text
    assert "visllama train name=one\nvisllama train stage=finetune init_from=RUN/weights\n" in text
    assert text.count("**First stage**") == 2
    # A folder that a stranger's run names is not told of where it belongs to other base models.
    description = json.loads((first / "weights/visllama.json").read_text())
    description["base_sha256"]["language_model"] = "0" * 64
    (first / "weights/visllama.json").write_text(json.dumps(description))
    text = build_card(run / "weights", "hub").text
    assert "name=one" not in text and "First stage" not in text


def test_all_that_a_run_says_is_data(run, records):
    """Texts that would link, format, run or end the metadata are shown as they are."""
    named = metrics()
    named["evaluations"]["coco"] |= {"split": NASTY, "prompt": NASTY, "origin": NASTY, "task": ["caption"]}
    named["evaluations"]["../../../etc"] = named["evaluations"]["coco"]
    named["evaluations"]["coco"]["metrics"] = {NASTY: 0.5, "x": float("1e308"), "y": "1"}
    named["provenance"] |= {"machine": NASTY, "precision": NASTY, "versions": {NASTY: NASTY}, "git": {"commit": NASTY}}
    (run / "metrics.json").write_text(json.dumps(named))
    (run / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"name": NASTY, "stage": {"prompt": NASTY}}))
    (run / "command.yaml").write_text(yaml.safe_dump({"overrides": ["a=```\n# h", NASTY], "options": []}))
    asked = [record | {"questions": [{"question": NASTY, "answers": [NASTY]}]} for record in records]
    for record in asked:
        del record["captions"]
    scores = [0.1 * i for i in range(len(asked))]
    write_gallery_of(run / "evaluations/coco/gallery.html", NASTY, asked, [f"{NASTY} {i}" for i in range(6)], scores)

    card = build_card(run / "weights", "hub")
    assert set(card.files) == {"samples/1.png", "samples/2.png", "samples/3.png", ".eval_results/coco.yaml"}
    page = MarkdownIt("gfm-like", {"linkify": False}).render(ModelCard(card.text).text)
    assert not re.search(r"<script|<img src=\"f\"|evil\.example\"|<a href=\"(?!https://www\.apache\.org)", page)
    assert page.count("<h1>") == 1 and "<strong>d" not in page
    assert "&lt;script&gt;" in page
    yaml.safe_load(card.files[".eval_results/coco.yaml"])
    assert str(ModelCard(card.text)) == card.text


@pytest.mark.parametrize(
    "content", ["[" * 1_000, "null", "[1]", '{"provenance": {"versions": 5}, "evaluations": [1]}', ""]
)
def test_nonsense_beside_the_weights_counts_as_absent(run, content):
    for name in ("metrics.json", "config.yaml", "command.yaml"):
        (run / name).write_text(content)
    assert "## Results" not in build_card(run / "weights", "hub").text
    write_run(run, ["seed=1"])
    (run / "config.yaml").write_text(content)
    (run / "command.yaml").write_text(content)
    (run / "evaluations/coco/gallery.html").write_text(
        content + '<figure data-score=1><img src="data:image/png;base64,AAAA"><b>a'
    )
    text = build_card(run / "weights", "hub").text
    assert "## Results" in text and "## Data" not in text and "## Samples" not in text


def test_what_is_no_weights_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=r"holds no visllama\.json"):
        build_card(tmp_path, "hub")
    with pytest.raises(ConfigError, match="format=onnx: choose hub, llava, adapter or language_model"):
        build_card(run / "weights", "onnx")
    (run / "weights/visllama.safetensors").write_text("words")
    with pytest.raises(ConfigError, match="no safetensors file"):
        build_card(run / "weights", "hub")
