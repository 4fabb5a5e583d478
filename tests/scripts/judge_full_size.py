"""Judge as many questions as VQAv2 has, with a stub in place of the language model; prints figures as JSON.

python tests/scripts/judge_full_size.py OUT [PICTURES]

Five questions on each picture, photos of 640 x 480 pixels. Pictures are really decoded and encoded; the stub generator
answers "</s>" at once, since a real one would take a day here.
"""

from __future__ import annotations

import io
import json
import resource
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.judging import SETTINGS, evaluation
from tests.support.tiny import maker_of, tiny_parts
from visllama.data.source import Source
from visllama.evaluation.runner import judge
from visllama.images.transform import ImageTransform
from visllama.model.visllama import VisLlama
from visllama.model.weights import build_model

NUM_QUESTIONS = 5


class Photos(Source):
    """Records of five questions on a photo, each photo another file."""

    fingerprint = "photos"

    def __init__(self, num_pictures: int) -> None:
        self.num_pictures = num_pictures
        noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        self.photo = file.getvalue()

    def __len__(self) -> int:
        return self.num_pictures

    def __getitem__(self, index: int) -> dict:
        questions = [
            {"question": f"what is number {n} of {index}?", "answers": ["yes"] * 6 + ["no"] * 4, "id": 10 * index + n,
             "question_type": ("what is", "how many")[n % 2], "answer_type": "other"}
            for n in range(NUM_QUESTIONS)
        ]  # fmt: skip
        photo = self.photo + index.to_bytes(4, "big") * 25_000  # behind its end: 100 KB more, which are another file
        return {"key": f"{index:012d}", "image": photo, "questions": questions}


def main(out: Path, num_pictures: int) -> None:
    torch.set_num_threads(1)
    counts = {"decoded": 0, "encoded": 0}
    transform = ImageTransform.__call__
    encode = VisLlama.encode_images

    def counted_transform(self, image):
        counts["decoded"] += 1
        return transform(self, image)

    def counted_encode(self, pixel_values):
        counts["encoded"] += len(pixel_values)
        return encode(self, pixel_values)

    def stub(self, input_ids, pixel_values, attention_mask, image_of_span, **_):
        embeds = self.embed(input_ids, pixel_values, image_of_span)
        return torch.full((len(embeds), 1), 3)

    ImageTransform.__call__ = counted_transform
    VisLlama.encode_images = counted_encode
    VisLlama.generate = stub
    model = build_model(tiny_parts(), ("connector", "markers")).load_base_weights().eval()
    config = {
        "mine": evaluation(task="vqa", split="val", batch_size=64, metrics=["accuracy"], decoding={"max_new_tokens": 8})
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = judge(model, maker_of(model), config, {"mine": Photos(num_pictures)}, SETTINGS, out, "these weights")[
        "mine"
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"n": result["n"], "peak_mb": peak / 1024, "before_mb": before / 1024, **counts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 40_000)
