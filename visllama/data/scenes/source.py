"""The embedded world as a data source: records made when they are asked for, the same everywhere."""

from __future__ import annotations

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
"""Records of each split, by what they hold."""
_CAPTIONS = {"train": 1, "val": 5, "test": 5}


class ScenesSource(Source):
    """Records of scenes, a picture and its captions or questions, which a conversation asks one after the other; or of
    instructions, which are language alone.

    Args:
        split: `train` and `val` show the seen color and shape pairs, every scene of `test` a held-out one. Instructions
            of `test` share no pair of words with the others.
        num_records: How many records; None is the world's own number for the split.
        captions_per_record: Sentences on each picture; None likewise.
        holds: `captions`, `questions`, `conversations` or `instructions`.
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
        self.split, self.holds, self.num_records = split, holds, num_records or _SIZES[holds][split]
        self.captions_per_record = captions_per_record or _CAPTIONS[split]
        self._question_counts: list[int] | None = None

    def __len__(self) -> int:
        return self.num_records

    @property
    def fingerprint(self) -> str:
        """Return a text that changes with what is in it."""
        return f"scenes-{WORLD_VERSION} {self.split} {self.holds} {self.captions_per_record}"

    @property
    def kinds(self) -> dict[str, int]:
        """Records by the kind of their text."""
        return {"questions" if self.holds == "instructions" else self.holds: self.num_records}

    @property
    def item_counts(self) -> list[int]:
        """Captions, questions, conversations or instructions of each record."""
        if self.holds == "captions":
            return [self.captions_per_record] * self.num_records
        if self.holds != "questions":
            return [1] * self.num_records
        if self._question_counts is None:
            scenes = (scene_of(self.split, index)[0] for index in range(self.num_records))
            self._question_counts = [len(self._questions(s, i)["questions"]) for i, s in enumerate(scenes)]
        return self._question_counts

    def read(self, index: int) -> dict:
        return self[index]  # it is made as it has to be

    def __getitem__(self, index: int) -> dict:
        """Return a record: `key`, `image` (PIL), and `captions`, `questions` or `conversations`.

        Questions come with `facts`, what an oracle would need to know of the picture.
        """
        record = {"key": f"{self.split}-{index:06d}"}
        if self.holds == "instructions":
            told = instruction(self._dice(index), held_out=self.split == "test")
            asked = {"question": told["instruction"], "answers": [told["response"]], "type": told["type"]}
            return record | {"questions": [asked | {"id": record["key"]}]}
        scene, dice = scene_of(self.split, index)
        record["image"] = render(scene, dice)
        if self.holds == "questions":
            return record | self._questions(scene, index)
        if self.holds == "conversations":
            return record | {"conversations": self._conversation(scene, index)}
        return record | {"captions": captions(scene, dice, self.captions_per_record)}

    def _questions(self, scene: Scene, index: int) -> dict:
        dice = self._dice(index)
        asked = [
            {
                "question": q["question"],
                "answers": [q["answer"]],
                "type": q["type"],
                "id": f"{self.split}-{index:06d}-{q['type']}",
            }
            for q in questions(scene, dice)
        ]
        return {"questions": asked, "facts": notes(scene, dice)}

    def _conversation(self, scene: Scene, index: int) -> list[dict[str, str]]:
        turns = []
        for asked in self._questions(scene, index)["questions"]:
            turns.append({"from": "human", "value": asked["question"]})
            turns.append({"from": "gpt", "value": asked["answers"][0]})
        turns[0]["value"] = f"{IMAGE_MARK}\n{turns[0]['value']}"
        return turns

    def _dice(self, index: int) -> Dice:
        """Return dice of their own: those of the scene go on to draw its captions."""
        return Dice(f"scenes-{WORLD_VERSION}/{self.holds}/{self.split}/{index}")
