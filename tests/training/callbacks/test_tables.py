"""The tables that a run begins with fit a terminal, and say what is trained and how often each item comes."""

from collections import Counter

import torch
from rich.console import Console

from tests.support import tiny
from tests.support.families import save_encoder
from tests.support.optimizer_config import OPTIM
from tests.support.scenes_data import data_of
from tests.support.tiny import tiny_parts
from visllama.data.scenes.source import ScenesSource
from visllama.model.weights import build_model
from visllama.training.callbacks.tables import checkpoint_bytes, data_table, parts_table, run_table


def shown(table, width: int = 80) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_start_up_table_fits_80_columns_and_tells_each_part(make_model):
    model = make_model(dtype=torch.float32)
    text = shown(parts_table(model, OPTIM))
    for word in (
        "vision_encoder",
        "connector",
        "markers",
        "language_model",
        "trained",
        "frozen",
        "float32",
        "LlamaForCausalLM",
    ):
        assert word in text, word
    assert f"{sum(p.numel() for p in model.language_model.parameters()):,}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_start_up_table_says_at_what_rate_each_part_learns(make_model):
    """Some connectors learn at a quarter of `optim.lr`: who compares rates has to see it."""
    model = make_model()
    assert "learning rate: connector 0.1, markers 0.1" in shown(parts_table(model, OPTIM))
    model.connector.lr_scale = 0.25
    assert "learning rate: connector 0.025 (0.25 of optim.lr), markers 0.1" in shown(parts_table(model, OPTIM))
    given = OPTIM | {"lr_by_part": {"connector": 3e-4, "markers": None}}
    assert "learning rate: connector 0.0003, markers 0.1" in shown(parts_table(model, given)), "taken as it is"


def test_llava_is_named_where_it_can_hold_the_model(make_model, tmp_path):
    """With CLIP it can; no other encoder was shown to fit."""
    model = make_model("patch_mlp", dtype=torch.float32)
    assert "exports to: hub, llava, language_model" in shown(parts_table(model, OPTIM))
    parts = tiny_parts("patch_mlp") | {
        "vision_encoder": {
            "kind": "SiglipVisionEncoder",
            "arguments": {"path": str(save_encoder("siglip", tmp_path / "siglip"))},
        }
    }
    other = build_model(parts, ("connector", "markers"))
    assert "exports to: hub, language_model" in shown(parts_table(other, OPTIM))


def test_data_table(make_model):
    text = shown(data_table(data_of(make_model()), micro_batch_size=5, num_ranks=2, max_steps=8))
    row = next(line for line in text.splitlines() if "scenes" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["scenes", "40", "40", "100.0%", "96", "2.40"]
    told = " ".join(text.split())
    assert "8 steps of 12 samples, 2 ranks, micro-batches of up to 5; 5 validation records" in told
    assert max(map(len, text.splitlines())) <= 80


def test_the_passes_of_the_table_are_how_often_each_question_comes(make_model):
    source = ScenesSource("train", 15, holds="questions")
    num_items = sum(source.item_counts)
    assert num_items > 2 * 15 and len(set(source.item_counts)) > 1
    data = tiny.data_of(make_model(), {"vqa": source}, ScenesSource("val", 1, 1), batch=1, num_steps=2 * num_items)
    text = shown(data_table(data, micro_batch_size=1, num_ranks=1, max_steps=2 * num_items))
    row = next(line for line in text.splitlines() if "vqa" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["vqa", "15", str(num_items), "100.0%", str(2 * num_items), "2.00"]
    keys = Counter(key for step in data.train_dataloader() for key in step["keys"])
    assert len(keys) == num_items and set(keys.values()) == {2}


def test_the_table_of_the_run_says_where_it_computes_and_writes(make_model, configure, tmp_path):
    config = configure(
        "train", "trainer=cpu", "trainer.devices=2", "trainer/strategy=ddp", "trainer.keep_checkpoints=3"
    )
    told = " ".join(shown(run_table(config, make_model(), tmp_path / "a" / "run", 40), 200).split())
    for text in (f"{tmp_path}/a/run", "cpu: 2 ranks", "32-true, frozen weights in float32", "3 checkpoints of"):
        assert text in told, text
    assert not (tmp_path / "a").exists() and "warm-up" not in told
    short = shown(run_table(config, make_model(), tmp_path, 6), 200)
    assert "all steps: 10 are needed to reach the rate" in short


def test_a_checkpoint_is_as_large_as_the_table_says(make_model, configure):
    """AdamW keeps two numbers for each that trains, and a step for each tensor."""
    model = make_model()
    trained = [p for name, p in model.named_parameters() if name.split(".")[0] in ("connector", "markers")]
    numbers = sum(p.numel() for p in trained)
    assert checkpoint_bytes(configure("train"), model) == 12 * numbers + 4 * len(trained)
    assert checkpoint_bytes(configure("train", "trainer.precision=64-true"), model) == 24 * numbers + 4 * len(trained)


def test_an_optimizer_of_ones_own_takes_no_step_for_the_table(make_model, configure, tmp_path):
    config = configure("train")
    config.optim["_target_"] = "mylab.optim.Mine"
    model = make_model()
    trained = [p for name, p in model.named_parameters() if name.split(".")[0] in ("connector", "markers")]
    assert checkpoint_bytes(config, model) == 4 * sum(p.numel() for p in trained)
    assert "and the optimizer's state (one more" in " ".join(shown(run_table(config, model, tmp_path, 40), 200).split())
