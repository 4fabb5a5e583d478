"""The page of two runs: it opens offline, escapes what it shows, and can be sorted."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.support.browser import open_browser
from tests.support.chromium import needs_chromium
from tests.support.compared_runs import captioned_run
from visllama.report.judged_run import read_runs
from visllama.report.page import rows_of, signed, write_page
from visllama.report.paired import compare, most_changed, read_pair, shared_evaluations
from visllama.report.shown import Texts, ids_with_pictures, show

FIRST = np.linspace(0.2, 1.2, 12)
CHANGE = np.array([0.3, -0.5, 0, 0.1, -0.1, 0.2, 0.7, 0, 0, 0.15, -0.05, 0.05])


@pytest.fixture
def page(tmp_path):
    """The page of two runs, of which the second says what would be code."""
    captioned_run(tmp_path / "a", FIRST)
    said = ["<script>document.title = 'run'</script>", *(f"said {number}" for number in range(11))]
    captioned_run(tmp_path / "b<i>", FIRST + CHANGE, said, num_shown=3, split="val")
    runs = read_runs([tmp_path / "a", tmp_path / "b<i>"])
    pair = shared_evaluations(*runs, None)[0]
    comparison = compare(read_pair(*runs, pair, mixed=True), runs[0].name, runs[1].name)
    texts = [Texts(run, "scenes", "caption") for run in runs]
    changed = most_changed(comparison, 60, ids_with_pictures(texts))
    write_page(tmp_path / "report.html", runs, {"scenes": comparison}, {"scenes": show(changed, *texts)}, None)
    return tmp_path / "report.html"


def test_it_is_one_file_that_asks_for_nothing(page):
    content = page.read_text()
    assert "default-src 'none'" in content and not re.search(r'(src|href)="(?!data:image/)', content)
    assert "url(" not in content and "@import" not in content and "http://" not in content


def test_what_comes_from_data_is_text(page):
    content = page.read_text()
    assert content.count("<script") == 1 and "&lt;script&gt;document" in content and "b&lt;i&gt;" in content
    assert "<i>" not in content


def test_it_shows_each_picture_that_changed_with_both_texts(page):
    content = page.read_text()
    assert content.count("<figure") == np.count_nonzero(CHANGE) == content.count("<img")
    largest = content[content.index("<figure") :].partition("</figure>")[0]
    assert 'data-id="106"' in largest and "+70.00" in largest and "caption 6" in largest and "said 5" in largest
    assert "reference 6" in largest
    assert "They were not judged alike: split" in content


def test_a_difference_has_its_sign():
    assert [signed(value) for value in (1.234, -0.5, 0.001, -0.001)] == ["+1.23", "-0.50", "0.00", "0.00"]


def test_what_chance_explains_has_no_color(tmp_path):
    captioned_run(tmp_path / "a", FIRST)
    captioned_run(tmp_path / "b", FIRST + 0.1)
    captioned_run(tmp_path / "c", FIRST - np.tile([0.2, -0.2], 6))
    kinds = []
    for other in ("b", "c"):
        runs = read_runs([tmp_path / "a", tmp_path / other])
        pair = shared_evaluations(*runs, None)[0]
        rows = rows_of(compare(read_pair(*runs, pair, mixed=False), "a", other))
        kinds.append({row.metric: row.kind for row in rows}["CIDEr"])
    assert kinds == ["won", ""]


@pytest.mark.browser
@needs_chromium
def test_the_page_sorts_finds_and_fits_a_phone(page):
    first = "document.querySelector('figure:not([hidden])').dataset.id"
    with open_browser() as browser:
        browser.go(page.as_uri())
        browser.wait_for("document.forms.length && document.forms[0].count.value === '9 shown'")
        assert browser.run(first) == "106" and browser.run("document.title") != "run"
        choose = "(form => {{form.sort.value = '{}'; form.dispatchEvent(new Event('input'))}})(document.forms[0])"
        for order, expected in (("lost", "101"), ("won", "106"), ("id", "100")):
            browser.run(choose.format(order))
            assert browser.run(first) == expected
        browser.run("document.forms[0].find.value = 'said 5'")
        browser.run(choose.format("changed"))
        assert browser.run("document.forms[0].count.value") == "1 shown"
        for is_dark in (False, True):
            browser.resize(360, 800, is_dark)
            assert browser.run("document.documentElement.scrollWidth") <= 360
        background = "getComputedStyle(document.body).backgroundColor"
        assert browser.run(background) == "rgb(17, 20, 27)"
        outside = [address for address in browser.requests if not address.startswith("data:")]
        assert outside == [page.as_uri()] and browser.errors == []
