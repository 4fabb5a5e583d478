"""What a card says of the training: shares of the data, known settings alone, and commands that repeat it."""

from __future__ import annotations

from pathlib import Path

import pytest

from visllama.release.how_trained import data_section, provenance_section, sources_of, training_section
from visllama.release.run_facts import RunFacts

DESCRIPTION = {"trained": ["connector", "markers"], "parts": {}, "base_sha256": {"language_model": "abc"}}


def make_facts(
    sources: dict | None = None,
    words: list[str] | None = None,
    first: RunFacts | None = None,
    train: dict | None = None,
    provenance: dict | None = None,
    **config: object,
) -> RunFacts:
    """Return the facts about a run that has these values and no others."""
    metrics = {"train": train or {}, "provenance": provenance or {}}
    config = {"data": {"sources": sources or {}}, **config}
    return RunFacts(DESCRIPTION, {}, Path("run"), metrics, config, words, first)


def rows_of(section: str) -> list[list[str]]:
    """Return the cells of each row of a section's table, without its header."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines[2:]]


def test_shares_are_those_of_the_weights():
    """Also of a source whose name YAML reads as a number."""
    sources = {"coco": {"weight": 1}, 2014: {"weight": 3.0}, "rare": {"weight": 0.002}}
    rows = rows_of(data_section(make_facts(sources, train={"samples": 16_000})))
    assert [row[:3] for row in rows] == [["coco", "25%", "3,998"], ["2014", "75%", "11,994"], ["rare", "0.05%", "8"]]


@pytest.mark.parametrize("weight", [None, "1", True, float("nan"), 0, [1]])
def test_a_weight_that_is_none_has_no_share(weight):
    rows = rows_of(data_section(make_facts({"mine": {"weight": weight, "path": "/home/bob/a.tar"}})))
    assert rows == [["mine", "", "", "data of the trainer's own (PATH/a.tar)"]]


def test_sources_that_are_no_mappings_are_left_out():
    facts = make_facts({"coco": {"weight": 1}, "odd": 5})
    assert list(sources_of(facts)) == ["coco"]
    assert data_section(make_facts()) == ""


def test_a_source_is_described_with_its_filter():
    scenes = {"_target_": "visllama.data.scenes.source.ScenesSource", "holds": "questions"}
    rows = rows_of(data_section(make_facts({"drawn": scenes, "mine": {"filter": {"min_words": 3, "max_words": 9}}})))
    assert "questions and answers that a grammar wrote" in rows[0][3]
    assert rows[1][3] == "data of the trainer's own; filtered by min\\_words 3, max\\_words 9"


def test_only_known_settings_have_a_row():
    facts = make_facts(
        train={"steps": 1250, "fit_seconds": 132.0, "samples_per_second": 121.2, "val/loss": 0.45},
        stage={"global_batch_size": "64", "epochs": 3.0, "template": {"human": "{human}"}},
        optim={"_target_": "torch.optim.AdamW", "lr": 4e-3, "lr_by_part": {"markers": 1e-3, "vision_encoder": 1}},
        provenance={"seed": 7, "precision": None},
    )
    assert rows_of(training_section(facts)) == [
        ["trained parts", "connector, markers"],
        ["steps", "1,250"],
        ["passes over the data", "3.0"],
        ["optimizer", "AdamW"],
        ["learning rate", "0.004, markers 0.001"],
        ["seed", "7"],
        ["time", "2 minutes, 121 samples a second"],
        ["last loss, training and validation", "0.450"],
    ]


@pytest.mark.parametrize("bound", [{"stage": {"epochs": 3, "num_samples": 9}}, {"trainer": {"max_steps": 9}}])
def test_a_bounded_run_has_no_passes(bound):
    rows = rows_of(training_section(make_facts(**bound)))
    assert ["length", "bounded by steps or samples, not by passes"] in rows
    assert "passes over the data" not in [label for label, _ in rows]


def test_commands_name_the_first_run_if_its_command_is_known():
    words = ["stage=finetune", "init_from=outputs/a/weights"]
    first = make_facts(words=["name=one", "data.path=/home/bob/a.tar"])
    both = training_section(make_facts(words=words, first=first))
    assert "visllama train name=one data.path=PATH/a.tar\nvisllama train stage=finetune init_from=RUN/weights\n" in both
    assert "RUN is the folder that the first one names at its end; PATH stands for a folder of yours." in both

    alone = training_section(make_facts(words=words, first=make_facts()))
    assert "This command repeats it.\n\n```bash\nvisllama train stage=finetune init_from=outputs/a/weights\n" in alone
    assert "repeat" not in training_section(make_facts())


def test_weights_without_a_run_have_no_training():
    assert training_section(make_facts()._replace(folder=None)) == ""


def test_provenance_has_what_is_known_alone():
    hashes = ["SHA-256 of the language model", "abc"]
    assert rows_of(provenance_section(make_facts())) == [hashes]

    odd = make_facts(provenance={"git": 5, "plugins": "mine", "versions": [1], "machine": None})
    assert rows_of(provenance_section(odd)) == [hashes]

    known = make_facts(provenance={"git": {"commit": "f7", "dirty": True}, "plugins": ["mine"], "versions": {"a": "1"}})
    assert rows_of(provenance_section(known)) == [
        ["versions", "a 1"],
        ["visllama's commit", "f7, with changes that were not committed"],
        ["plugins", "mine"],
        hashes,
    ]
