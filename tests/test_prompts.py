from visllama.prompts import Segment, caption_segments


def test_caption_behind_nothing_starts_the_text():
    assert caption_segments("", "a ring") == [Segment("a ring", True)]


def test_caption_behind_a_prompt_starts_with_a_space():
    assert caption_segments("a picture of", "a ring") == [Segment("a picture of", False), Segment(" a ring", True)]


def test_a_prompt_to_be_answered_has_nothing_supervised():
    assert caption_segments("a picture of", None) == [Segment("a picture of", False)]
    assert caption_segments("", None) == []
