from visllama.text.tokens import BOI_ID, EOI_ID, IGNORE_INDEX, PLACEHOLDER_ID, image_span


def test_span_is_markers_around_placeholders():
    assert image_span(3) == [BOI_ID, PLACEHOLDER_ID, PLACEHOLDER_ID, PLACEHOLDER_ID, EOI_ID]


def test_no_tokenizer_can_make_these_ids():
    assert all(i < 0 for i in image_span(1))
    assert IGNORE_INDEX not in image_span(1)
