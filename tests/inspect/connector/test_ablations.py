"""Each ablation changes what it names, and nothing else."""

from __future__ import annotations

import pytest
import torch

from visllama.inspect.connector.ablations import (
    ALL_FROZEN,
    ALONE,
    BLANK,
    FROZEN,
    NO_MARKERS,
    REMOVED,
    SHUFFLED,
    WHOLE,
    Ablation,
    changed_inputs,
    list_ablations,
    place_name,
    vector_groups,
)

EMBEDS = torch.arange(24.0).reshape(3, 4, 2)
SHOWN = {WHOLE: EMBEDS, SHUFFLED: EMBEDS.flip(0), BLANK: torch.zeros(3, 4, 2)}
MEAN = EMBEDS.mean(0)


@pytest.mark.parametrize("kind", [WHOLE, SHUFFLED, BLANK])
def test_other_pictures_are_read_whole(kind):
    embeds, kept = changed_inputs(Ablation(kind), SHOWN)
    assert embeds is SHOWN[kind] and kept is None


@pytest.mark.parametrize(("vectors", "left_out"), [((1,), [1]), ((4,), [4]), ((2, 3), [2, 3])])
def test_a_removed_vector_is_left_out_between_the_markers(vectors, left_out):
    embeds, kept = changed_inputs(Ablation(REMOVED, vectors), SHOWN)
    assert embeds is EMBEDS and [place for place, is_kept in enumerate(kept) if not is_kept] == left_out
    assert len(kept) == 4 + 2


def test_removed_markers_leave_all_vectors():
    embeds, kept = changed_inputs(Ablation(NO_MARKERS), SHOWN)
    assert embeds is EMBEDS and kept.tolist() == [False, True, True, True, True, False]


@pytest.mark.parametrize(
    ("kind", "vectors", "live"),
    [(FROZEN, (2,), [0, 2, 3]), (FROZEN, (3, 4), [0, 1]), (ALONE, (2,), [1]), (ALL_FROZEN, (), [])],
)
def test_a_vector_at_its_mean_is_the_same_for_all_pictures(kind, vectors, live):
    embeds, kept = changed_inputs(Ablation(kind, vectors), SHOWN)
    assert kept is None and SHOWN[WHOLE] is EMBEDS
    for k in range(4):
        expected = EMBEDS[:, k] if k in live else MEAN[k].expand(3, -1)
        assert torch.equal(embeds[:, k], expected)


def test_each_vector_is_left_out_by_itself_and_of_many_several_together():
    assert vector_groups(3, False) == [(1,), (2,), (3,)]
    assert [len(group) for group in vector_groups(36, True)] == [1] * 36
    rows = vector_groups(576, True)
    assert len(rows) == 24 and rows[1] == tuple(range(25, 49))
    parts = vector_groups(144, False)
    assert len(parts) == 36 and sum(parts, ()) == tuple(range(1, 145))


def test_the_list_begins_with_the_whole():
    ablations = list_ablations([(1,), (2,)])
    kinds = [WHOLE, SHUFFLED, BLANK, ALL_FROZEN, NO_MARKERS, REMOVED, REMOVED, FROZEN, FROZEN, ALONE, ALONE]
    assert [ablation.kind for ablation in ablations] == kinds and len(set(ablations)) == len(kinds)


def test_names():
    assert place_name((4,)) == "4" and place_name((9, 10, 11)) == "9-11"
    assert [Ablation(NO_MARKERS).name, Ablation(REMOVED, (4,)).name] == ["markers removed", "4 removed"]
