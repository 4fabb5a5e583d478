"""What is measured about data: how much of it, and photos that are made for it."""

from __future__ import annotations

import io

from PIL import Image, JpegImagePlugin

from visllama.benchmark import data


def test_sizes_are_those_that_the_check_knows():
    from visllama.config.choices import BENCHMARK_SIZES

    assert tuple(data.SIZES) == BENCHMARK_SIZES
    assert all(size.images % data.BATCH_SIZE == 0 for size in data.SIZES.values())


def test_a_photo_is_what_it_is_said_to_be():
    photo = data.make_photo(3)
    opened = Image.open(io.BytesIO(photo))
    assert opened.size == (640, 480) and JpegImagePlugin.get_sampling(opened) == 2
    assert 50_000 < len(photo) < 150_000
    assert photo == data.make_photo(3) != data.make_photo(4)
