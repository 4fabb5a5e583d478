"""The source of the embedded world's records, which are drawn when they are read, and are the same everywhere."""

from __future__ import annotations

from typing import Any

from visllama.data.scenes.language import captions, instruction, notes, questions
from visllama.data.scenes.renderer import render
from visllama.data.scenes.world import WORLD_VERSION, Dice, Scene, scene_of
from visllama.data.source import Source
from visllama.errors import ConfigError
from visllama.text.template import IMAGE_MARK

_SIZES = {
    "captions": {"train": 5334, "val": 200, "test": 400},
    "questions": {"train": 5334, "val": 200, "test": 400},
    "conversations": {"train": 5334, "val": 200, "test": 400},
    "instructions": {"train": 1000, "val": 50, "test": 200},
}
"""Number of records of each split, by what they hold."""
_CAPTIONS = {"train": 1, "val": 5, "test": 5}
"""Number of captions for each picture, by split."""


class ScenesSource(Source):
    """A source of records of the embedded world, the small world of shapes in `visllama.data.scenes.world`.

    A record is a scene's picture with captions, with questions, or with a conversation that asks those questions one
    after the other; or it is an instruction, a question without a picture. No file is read.

    Args:
        split: "train", "val" or "test". "train" and "val" show only some of the pairs of a color and a shape; every
            scene of "test" shows one of the other pairs. Instructions of "test" share no pair of words with the others.
        num_records: Number of records; None or 0 is the world's own number, for "train" 5334 (1000 of instructions).
        captions_per_record: Number of captions for each picture; None or 0 is 1 for "train", else 5.
        holds: "captions", "questions", "conversations" or "instructions".

    Raises:
        ConfigError: If `split` or `holds` is none of these.
    """

    def __init__(
        self,
        split: str,
        num_records: int | None = None,
        captions_per_record: int | None = None,
        holds: str = "captions",
    ) -> None:
        if holds not in _SIZES:
            raise ConfigError(f"holds={holds}: scenes hold {', '.join(_SIZES)}")
        if split not in _SIZES[holds]:
            raise ConfigError(f"split={split}: scenes has {', '.join(_SIZES[holds])}")

        self.split = split
        self.holds = holds
        self.num_records = num_records or _SIZES[holds][split]
        self.captions_per_record = captions_per_record or _CAPTIONS[split]

        self.fingerprint = f"scenes-{WORLD_VERSION} {split} {holds} {self.captions_per_record}"
        # An instruction is a question without an image.
        kind = "questions" if holds == "instructions" else holds
        self.kinds = {kind: self.num_records}
        self._question_counts: list[int] | None = None

    def __len__(self) -> int:
        return self.num_records

    @property
    def item_counts(self) -> list[int]:  # pyrefly: ignore[bad-override]  made when asked for: counting the questions makes them all
        """The number of items (captions, questions, conversations) in each record.

        For a source of questions, all questions are made at the first access to count them, and the counts are kept.
        """
        if self.holds == "captions":
            return [self.captions_per_record] * self.num_records
        if self.holds != "questions":
            return [1] * self.num_records

        # Counted once, since all questions of the split have to be made for it.
        if self._question_counts is None:
            counts = []
            for index in range(self.num_records):
                scene, _ = scene_of(self.split, index)
                counts.append(len(self._questions(scene, index)["questions"]))
            self._question_counts = counts
        return self._question_counts

    def read(self, index: int) -> dict:
        """Return the record at an index from 0; indexing the source returns the same.

        It is made here, so nothing is checked. An index that is too large makes a further record and raises nothing.
        """
        return self[index]

    def __getitem__(self, index: int) -> dict:
        """Return the record of this index: its `key`, `image` (a Pillow image), and text under the key of its kind.

        Instructions come as `questions` without `image`. Questions about a scene come with `facts`, the text
        that `notes` draws of the scene.
        """
        key = f"{self.split}-{index:06d}"
        record: dict[str, Any] = {"key": key}
        if self.holds == "instructions":
            drawn = instruction(self._dice(index), held_out=self.split == "test")
            record["questions"] = [
                {
                    "question": drawn["instruction"],
                    "answers": [drawn["response"]],
                    "type": drawn["type"],
                    "id": key,
                }
            ]
            return record

        scene, dice = scene_of(self.split, index)
        record["image"] = render(scene, dice)
        if self.holds == "questions":
            return record | self._questions(scene, index)
        if self.holds == "conversations":
            return record | {"conversations": self._conversation(scene, index)}
        return record | {"captions": captions(scene, dice, self.captions_per_record)}

    def _questions(self, scene: Scene, index: int) -> dict:
        # Not the scene's own dice: they have drawn the picture where a record is read, but not where questions are
        # counted.
        dice = self._dice(index)
        records = []
        for question in questions(scene, dice):
            kind = question["type"]
            records.append(
                {
                    "question": question["question"],
                    "answers": [question["answer"]],
                    "type": kind,
                    "id": f"{self.split}-{index:06d}-{kind}",
                }
            )

        return {"questions": records, "facts": notes(scene, dice)}

    def _conversation(self, scene: Scene, index: int) -> list[dict[str, str]]:
        turns = []
        for question in self._questions(scene, index)["questions"]:
            turns.append({"from": "human", "value": question["question"]})
            turns.append({"from": "gpt", "value": question["answers"][0]})

        # The picture stands before the first question.
        turns[0]["value"] = f"{IMAGE_MARK}\n{turns[0]['value']}"
        return turns

    def _dice(self, index: int) -> Dice:
        """Return the dice for a record's questions or instruction; the dice of its scene draw its captions."""
        return Dice(f"scenes-{WORLD_VERSION}/{self.holds}/{self.split}/{index}")
