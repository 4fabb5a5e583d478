"""What is put before a model: pictures that come when they are needed, batches of whole pictures, and the controls."""

import numpy as np
import pytest
from PIL import Image

from visllama.data.scenes.source import ScenesSource
from visllama.data.source import Source
from visllama.errors import BadRecord, ConfigError
from visllama.evaluation.prompts import Prompts, prompts_of_records, prompts_of_source
from visllama.images.decode import open_image


def asked(num_records: int = 6) -> Prompts:
    return prompts_of_source(ScenesSource("test", num_records, holds="questions"), "mine")


def test_each_question_is_a_prompt():
    prompts = asked()
    assert len(prompts) == sum(ScenesSource("test", 6, holds="questions").item_counts)
    assert all(len(prompt.record["questions"]) == 1 and "image" not in prompt.record for prompt in prompts)


def test_a_prompt_shows_the_pictures_of_its_record():
    source = ScenesSource("test", 3, 1)
    prompts = prompts_of_source(source, "mine")
    for number, prompt in enumerate(prompts):
        (shown,) = prompts.pictures(prompt)
        assert np.array_equal(np.asarray(shown), np.asarray(source[number]["image"]))
        assert prompts.record(number)["captions"] == source[number]["captions"]


def test_pictures_are_read_when_their_turn_comes_and_never_kept():
    read = []

    class Counting(ScenesSource):
        def read(self, index):
            read.append(index)
            return super().read(index)

    prompts = prompts_of_source(Counting("test", 4, 1), "mine")
    assert read == [0, 1, 2, 3]
    prompts.pictures(prompts[2])
    prompts.pictures(prompts[2])
    assert read == [0, 1, 2, 3, 2, 2]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8, 100])
def test_batches_keep_the_questions_on_a_picture_together_where_they_fit(batch_size):
    prompts = asked(9)
    batches = prompts.batches(batch_size)
    assert [number for batch in batches for number in batch] == list(range(len(prompts)))
    assert all(0 < len(batch) <= batch_size for batch in batches)
    of_picture: dict[int, set[int]] = {}
    counts: dict[int, int] = {}
    for place, batch in enumerate(batches):
        for number in batch:
            shown = prompts[number].shown
            of_picture.setdefault(shown, set()).add(place)
            counts[shown] = counts.get(shown, 0) + 1
    for shown, places in of_picture.items():
        assert len(places) <= -(-counts[shown] // batch_size) + (counts[shown] > batch_size)


def test_batches_go_on_where_it_was_stopped():
    prompts = asked(5)
    rest = prompts.batches(4, first=3)
    assert [number for batch in rest for number in batch] == list(range(3, len(prompts)))
    assert prompts.batches(4, first=len(prompts)) == []


def test_shuffled_pictures_are_of_another_record_the_same_for_all_questions_on_one():
    prompts = asked()
    shuffled = prompts.shuffled()
    donors: dict[int, set[int]] = {}
    for prompt, other in zip(prompts, shuffled, strict=True):
        assert other.record is prompt.record and other.shown != prompt.shown
        donors.setdefault(prompt.shown, set()).add(other.shown)
    assert all(len(shown) == 1 for shown in donors.values()) and len(set.union(*donors.values())) == 6


def test_shuffling_takes_the_number_of_pictures_along():
    image = Image.new("RGB", (8, 8))
    question = {"questions": [{"question": "?", "answers": ["a"]}]}
    records = [{"key": "one", "images": [image], **question}, {"key": "two", "images": [image, image], **question}]
    shuffled = prompts_of_records(records).shuffled()
    assert [prompt.num_images for prompt in shuffled] == [2, 1]
    assert [len(shuffled.pictures(prompt)) for prompt in shuffled] == [2, 1]


def test_blank_pictures_show_nothing():
    prompts = prompts_of_source(ScenesSource("test", 1, 1), "mine").blank()
    blank = open_image(prompts.pictures(prompts[0])[0])
    pixels = np.asarray(blank)
    assert blank.size == (48, 48) and pixels.min() == pixels.max() == 128


def test_blank_pictures_of_a_size_share_one_small_file():
    """A photo of 12 million pixels is 36 MB decoded."""
    records = [{"key": str(i), "image": Image.new("RGB", (4000, 3000)), "captions": ["a"]} for i in range(2)]
    prompts = prompts_of_records(records).blank()
    one, two = (prompts.pictures(prompt)[0] for prompt in prompts)
    assert one is two and len(one) < 200_000


def test_without_pictures_there_is_none():
    prompts = asked().without_pictures()
    assert all(prompt.num_images == 0 and prompts.pictures(prompt) == [] for prompt in prompts)


def test_a_part_is_always_the_same_records():
    source = ScenesSource("test", 20, 1)
    keys = [[prompt.record["key"] for prompt in prompts_of_source(source, "mine", 5)] for _ in range(2)]
    assert keys[0] == keys[1] == sorted(keys[0]) and len(set(keys[0])) == 5
    assert keys[0] != [f"test-{i:06d}" for i in range(5)]
    assert len(prompts_of_source(source, "mine", 30)) == 20


class Damaged(Source):
    def __init__(self):
        self.scenes = ScenesSource("test", 3, 1)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 1:
            raise BadRecord("text", "is cut short")
        return self.scenes[index]


def test_a_record_that_cannot_be_read_stops_it():
    with pytest.raises(ConfigError, match=r"evaluation\.mine\.source: a record cannot be read: .*cut short"):
        prompts_of_source(Damaged(), "mine")
