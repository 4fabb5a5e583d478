"""Marks stand where their figures are, on one axis from zero."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.found_study import NORMS, score, study
from visllama.inspect.connector.charts import LossChart, norm_strips


def test_scores_and_intervals_stand_on_one_axis():
    """The axis ends 4% beyond the largest upper bound, that of the first vector removed: 1.05."""
    chart = LossChart(study())
    per_unit = 100 / (1.04 * 1.05)
    assert chart.whole == pytest.approx(per_unit, abs=0.01)
    general, removed, _, alone = chart.panels
    assert [row.text for row in general.rows] == ["100.0", "-70.0", "-80.0", "-75.0", "-1.0"]
    second = removed.rows[1]
    assert (second.name, second.text, second.is_sure) == ("2", "-40.0", True)
    assert (second.at, second.low, second.width) == pytest.approx(
        [0.6 * per_unit, 0.55 * per_unit, 0.1 * per_unit], abs=0.02
    )
    assert second.title == (
        "2 removed: CIDEr 60.0, -40.0 against whole (95%: -45.0 to -35.0); 100% of the captions are not those of the whole"
    )
    assert not removed.rows[0].is_sure
    assert alone.rows[1].text == "75.0" and alone.start == pytest.approx(0.25 * per_unit, abs=0.01)
    assert alone.rows[1].low == pytest.approx(0.7 * per_unit, abs=0.02), "an interval of what is added to all frozen"


def test_nothing_leaves_the_axis():
    found = study()
    wild = [*found.ablations[:5], *(score(kind, (1,), 0.01, spread=3) for kind in ("removed", "frozen", "alone"))]
    for panel in LossChart(replace(found, ablations=wild)).panels:
        for row in panel.rows:
            assert 0 <= row.low <= row.low + row.width <= 100 and 0 <= row.at <= 100


def test_a_model_that_says_nothing_right_has_an_axis_too():
    found = study()
    zeros = [replace(each, cider=0.0, difference=0.0, interval=[0.0, 0.0]) for each in found.ablations]
    assert LossChart(replace(found, ablations=zeros)).panels[0].rows[0].at == 0


def test_norms_stand_on_one_axis():
    text, image, boi, eoi = norm_strips(NORMS)
    assert (text.name, text.text, image.text, boi.text, eoi.text) == ("text embeddings", "1.00", "4.00", "0.50", "0.25")
    assert image.marks[-1] == pytest.approx(100 / 1.04, abs=0.01) and len(boi.marks) == 1
    assert image.marks[2] == pytest.approx(4 * text.marks[2], abs=0.05)
