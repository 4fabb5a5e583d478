"""What is seen are the steps of train, with lengths as they were before the cut."""

from __future__ import annotations

import pytest

from tests.support.inspections import SMALL
from tests.support.verbs import inspect
from visllama.config.plain import plain
from visllama.evaluation.runner import sample_maker
from visllama.text.tokens import IGNORE_INDEX
from visllama.training.assembly import build_assembly
from visllama.training.run import training_data


def train_steps(compose_config, *overrides: str):
    """Return the loader that training has with the same overrides."""
    config = plain(compose_config("train", *overrides, "check_only=true"))
    assembly = build_assembly(config)
    return training_data(config, assembly, sample_maker(assembly.model, assembly.text)).train_dataloader()


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


def test_lengths_are_those_before_the_cut(compose_config):
    whole = inspect(compose_config("inspect", *SMALL)).counts[0]
    for most in (5, 9, 10, 11):
        cut = inspect(compose_config("inspect", *SMALL, f"stage.max_text_tokens={most}")).counts[0]
        assert cut.text_tokens == whole.text_tokens
        assert cut.cut == sum(length > most for length in whole.text_tokens)
    assert whole.cut == 0 and whole.targets == sum(whole.text_tokens), "without a prompt all text is learned"
