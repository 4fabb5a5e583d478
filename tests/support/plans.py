"""Plans: jobs that they are made for, published models on a cluster, and what a plan's lines say."""

from __future__ import annotations

from visllama.plan.job import Job, Precision

CLUSTER = ("model=real", "trainer=node", "trainer.num_nodes=8", "trainer.devices=8", "data=coco")


SIZES = {"language_model/llama_7b": 6_738_415_616, "language_model/llama_13b": 13_015_864_320,
         "language_model/llama_30b": 32_528_943_616, "language_model/llama_65b": 65_285_660_672,
         "language_model/llama2_7b": 6_738_415_616, "language_model/vicuna_7b": 6_738_415_616,
         "language_model/llama3_8b": 8_030_261_248, "language_model/mistral_7b": 7_241_732_096,
         "language_model/qwen2_5_7b": 7_615_616_512, "vision_encoder/clip_l14": 303_966_208,
         "vision_encoder/clip_l14_336": 304_293_888, "vision_encoder/dinov2_l14": 304_368_640,
         "vision_encoder/siglip_so400m": 428_225_600}  # fmt: skip
"""As published."""


def job(precision: str = "bf16-mixed", samples: int = 8, at_once: int = 8, strategy="one", ranks=1, recomputes=False):
    own = Precision.named(precision)
    own = own._replace(mask=own.trained)  # on the CPU, dropout's mask is of numbers
    return Job(1, ranks, samples, at_once, strategy, own, recomputes, (2.0 * own.trained, 4), True)


def lines(found, kind: str = "mean") -> dict[str, int]:
    return {line.name: line.num_bytes for line in getattr(found, kind).lines}
