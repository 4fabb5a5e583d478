"""The cards of a gallery are read as what `write_gallery` wrote, and as data alone."""

from __future__ import annotations

import pytest

from tests.support.galleries import write_gallery_of
from visllama.evaluation.gallery_cards import decode_picture, read_cards


def test_what_was_written_is_read(records, tmp_path):
    """Markup in a text is text again."""
    texts = [f"caption <b>{i}</b> & more" for i in range(len(records))]
    write_gallery_of(tmp_path / "a.html", "a", records, texts, [0.1 * i for i in range(len(records))])
    cards = {card.key: card for card in read_cards(tmp_path / "a.html")}
    for i, record in enumerate(records):
        card = cards[record["key"]]
        assert card.score == pytest.approx(0.1 * i) and card.texts["said"].split() == texts[i].split()
        assert card.texts["reference"] == record["captions"][0] and card.texts["question"] == ""
        assert decode_picture(card.addresses[0]).size == (160, 160)


@pytest.mark.parametrize("score", ["", "nan", "inf", "words"])
def test_a_card_without_a_score_is_none(tmp_path, score):
    (tmp_path / "a.html").write_text(f'<figure data-score="{score}" data-key="a"><b>said</b></figure>')
    assert read_cards(tmp_path / "a.html") == []


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/a.png", "file:///etc/passwd", "data:image/svg+xml;base64,PHN2Zy8+", ""]
)
def test_a_picture_elsewhere_is_none(address):
    assert decode_picture(address) is None


def test_a_card_has_the_id_of_its_text_and_all_its_references(tmp_path):
    """Of a page that was written before cards had ids, the key is the id."""
    card = '<figure data-score="1" data-key="k"{}><b>said</b><ul><li>one &amp; 1</li><li>two</li></ul></figure>'
    (tmp_path / "a.html").write_text(card.format(' data-id="7"') + card.format(""))
    first, second = read_cards(tmp_path / "a.html")
    assert (first.id, first.key, second.id) == ("7", "k", "k")
    assert first.references == ["one & 1", "two"] and first.texts["reference"] == "one & 1"
