"""Wrong configurations, made from the config itself: each is refused before any weight is loaded, and its key named."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from tests.support.refusals import refusal
from visllama.config.explain import known_config, known_groups
from visllama.config.schema import conf_dir, register


class Wrong(NamedTuple):
    """A wrong command line, and what its error must say. `FILES` stands for a folder of wrong files."""

    typed: str
    says: tuple[str, ...]
    verb: str = "train"


def leaves(node: DictConfig, prefix: str = "") -> dict[str, object]:
    """Return the values of a config by their dotted keys."""
    found = {}
    for name, value in OmegaConf.to_container(node).items():
        key = f"{prefix}{name}"
        found |= leaves(node[name], f"{key}.") if isinstance(value, dict) and value else {key: value}
    return found


def typo(word: str) -> str:
    """Swap the first two letters that differ, after the first letter."""
    start = 1 if len(set(word[1:])) > 1 else 0
    at = next(i for i in range(start, len(word) - 1) if word[i] != word[i + 1])
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


register()
VALUES = {verb: leaves(known_config(verb)) for verb in ("train", "evaluate", "caption")}
TRAIN = {key: value for key, value in VALUES["train"].items() if value != {}}


def key_typos():
    for verb, values in VALUES.items():
        for key in values:
            if verb != "train" and key in VALUES["train"]:
                continue
            parent, dot, name = key.rpartition(".")
            wrong = f"{parent}{dot}{typo(name)}"
            yield Wrong(f"{wrong}=1", (wrong, key), verb)


def option_typos():
    for group, options in known_groups().items():
        for option in options if group not in ("source", "tuned") else ():
            wrong = f"{group}={typo(option)}"
            yield Wrong(wrong, (wrong, option))


WRONG_TYPES = {bool: "maybe", int: "many", float: "many", str: "[a]", list: "7"}


def type_errors():
    """A text for a number, a list for a text, ...; where nothing is set, a list (no key but one takes one)."""
    for key, value in TRAIN.items():
        yield Wrong(f"{key}={WRONG_TYPES.get(type(value), '[a]')}", (key,))
    for key, value in TRAIN.items():
        if type(value) is int and not key.startswith(("optim", "trainer.val")):
            yield Wrong(f"{key}=1.5", (key,))


def range_errors():
    """Numbers less than 0 wherever there is one, and 0 wherever something is counted."""
    for key, value in TRAIN.items():
        name = key.rpartition(".")[2]
        if type(value) in (int, float) and name != "feature_layer":
            yield Wrong(f"{key}=-1", (f"{key}=-1",))
        counted = name.startswith("num_") or name.endswith(("_steps", "_size", "_dim", "_per_record"))
        if (type(value) is int or value is None) and counted and name not in ("num_workers", "seed"):
            yield Wrong(f"{key}=0", (f"{key}=0",))
    for path in sorted((conf_dir() / "model" / "connector").glob("*.yaml")):
        for name, value in OmegaConf.load(path).items():
            if isinstance(value, int) and path.stem != "mlp":
                yield Wrong(f"model/connector={path.stem} model.connector.{name}=0", (f"model.connector.{name}=0",))


RANGES = [
    "seed=4294967296", "stage.epochs=0", "stage.epochs=inf", "stage.epochs=nan",
    "stage.max_text_tokens=0", "stage.max_text_tokens=500", "stage.global_batch_size=1000000", "optim.lr=0",
    "optim.lr=inf", "optim.lr=nan", "optim.warmup_fraction=1", "optim.warmup_fraction=1e9", "optim.clip_norm=0",
    "optim.betas=[2,0.9]", "optim.betas=[0.9]", "optim.betas=[a,b]", "optim.lr_by_part.markers=0", "optim.schedule=cosin",
    "trainer.val_check_interval=0", "trainer.val_check_interval=1.01", "trainer.devices=0", "trainer.devices=-2",
    "trainer.threads=0", "trainer.threads=1000000000", "trainer.accelerator=tpu", "trainer.precision=8",
    "trainer.strategy=fsdp", "model.connector.num_image_tokens=500",
    "evaluation.scenes_caption.split=dev", "evaluation.scenes_caption.task=vqa",
    "stage.trainable=[]", "decoding.max_new_tokens=0", "data.max_bad_fraction=1.5", "data.sources.scenes.weight=inf",
    "data.sources.scenes.weight=0", "data.max_consecutive_bad=0", "stage.template=vicunna", "stage.template={human: hi}",
    "evaluation.scenes_caption.template=vicunna", "evaluation.scenes_caption.decoding.max_new_tokens=0",
]  # fmt: skip

FILES = [
    ("data=shards", "data.sources.shards.path"),
    ("data=shards data.sources.shards.path=/nowhere/x.tar", "data.sources.shards path=/nowhere/x.tar"),
    ("data=shards data.sources.shards.path=FILES/nothing_inside", "data.sources.shards nothing_inside"),
    ("data=shards data.sources.shards.path=FILES/text.tar", "data.sources.shards text.tar"),
    ("data=shards data.sources.shards.path=FILES/empty.tar", "data.sources.shards empty.tar"),
    ("data=shards data.sources.shards.path=FILES/damaged_header.tar", "data.sources.shards damaged_header.tar"),
    ("data=shards data.sources.shards.path=FILES/cut_short.tar", "data.sources.shards cut_short.tar"),
    ("data=shards data.sources.shards.path=FILES/empty_caption.tar", "data.sources.shards empty_caption.tar 'b'"),
    ("data=shards data.sources.shards.path=FILES/no_image.tar", "data.sources.shards no_image.tar 'b'"),
    ("data=shards data.sources.shards.path=FILES/no_caption.tar", "data.sources.shards no_caption.tar 'b'"),
    ("data=shards data.sources.shards.path=FILES/no_json.tar", "data.sources.shards no_json.tar 'b'"),
    ("data=shards data.sources.shards.path='pipe:cat x.tar'", "data.sources.shards pipe:cat"),
    ("data=shards data.sources.shards.path=FILES/good.tar data.sources.shards.val_path=no.tar", "data.sources.shards no.tar"),
    ("data=shards data.sources.shards.path=FILES/good.tar data.sources.shards.val_fraction=0",
     "data.sources.shards val_path=FILE val_fraction=0.01 trainer.val_check_interval=null"),
    ("data=shards data.sources.shards.path=FILES/good.tar data.sources.shards.val_fraction=null trainer.val_check_interval=null stage.global_batch_size=2",
     "evaluation.shards_caption.source val_path=FILE val_fraction=0.01 judge=false"),
    ("objective=CIDEr", "objective=CIDEr scenes_caption/CIDEr val/loss"),
    ("data=coco", "data.sources.coco data/coco/train"),
    ("evaluation=[coco_karpathy]", "evaluation.coco_karpathy data/coco/test"),
    ("evaluation=[shards_caption] evaluation.shards_caption.source.path=no.tar", "evaluation.shards_caption no.tar"),
    ("evaluation=[shards_caption]", "evaluation.shards_caption.source path"),
    ("model.vision_encoder.path=./nowhere", "model.vision_encoder path=./nowhere"),
    ("model.vision_encoder.path=visllama:nope", "model.vision_encoder path=visllama:nope visllama:clip"),
    ("model.vision_encoder.path=FILES/nothing_inside", "model.vision_encoder nothing_inside"),
    ("model.vision_encoder.path=visllama:llama", "model.vision_encoder 'llama'"),
    ("model.language_model.path=/nowhere", "model.language_model path=/nowhere"),
    ("model.language_model.path=FILES/nothing_inside", "model.language_model nothing_inside"),
    ("model.language_model.path=a/b/c", "model.language_model path=a/b/c"),
    ("model=real", "model.vision_encoder path=openai/clip-vit-large-patch14 --revision hf_download paths.models"),
    ("model/language_model=qwen2_5_7b", "model.language_model path=Qwen/Qwen2.5-7B hf_download"),
    ("plugins=[nosuchpkg]", "plugins nosuchpkg"),
]  # fmt: skip

CONTRADICTIONS = [
    ("stage=finetune model/lora=none", "stage.trainable adapter model/lora=qv"),
    ("model/lora=qv", "model.lora stage.trainable"),
    ("model/lora=qv stage.trainable=[adapter,language_model]", "stage.trainable language_model model.lora"),
    ("stage=finetune model.lora.r=0", "model.lora.r=0"),
    ("stage=finetune model.lora.target_modules=[qq]", "model.lora.target_modules qq q_proj"),
    ("stage=finetune +model.lora.modules_to_save=[lm_head]", "model.lora.modules_to_save"),
    ("stage=finetune stage.template=tokenizer", "stage.template=tokenizer chat_template"),
    ("+evaluation.scenes_caption.template=tokenizer", "evaluation.scenes_caption.template=tokenizer chat_template"),
    ("stage=finetune data/source=[scenes_questions]", "data.sources.scenes data/source"),
    ("init_from=/nowhere", "init_from=/nowhere visllama.json"),
    ("stage.trainable=[conector]", "stage.trainable conector connector"),
    ("optim.lr_by_part.vision_encoder=1e-3", "optim.lr_by_part vision_encoder stage.trainable"),
    ("stage.trainable=[markers] optim.lr_by_part.connector=1e-3", "optim.lr_by_part connector stage.trainable"),
    ("+optim.lr_by_part.head=1e-3", "optim.lr_by_part head"),
    ("model/connector=patch_mlp model.connector.num_image_tokens=5", "model.connector num_image_tokens=5"),
    ("model/connector=resampler model.connector.num_heads=7", "model.connector num_heads=7 hidden_dim=256"),
    ("model/connector=transformer model.connector.num_heads=7", "model.connector num_heads=7"),
    ("model/connector=resampler model.connector.hidden_dim=100", "model.connector hidden_dim=100"),
    ("+model.connector.foo=1", "model.connector foo hidden_dim"),
    ("+model.projector=1", "model.projector connector"),
    ("+data.sources.mine=1", "data.sources.mine"),
    ("+stage.epoch=1", "stage.epoch stage.epochs"),
    ("+trainer.max_step=1", "trainer.max_step trainer.max_steps"),
    ("+evaluation.scenes_caption.metric=1", "evaluation.scenes_caption.metric evaluation.scenes_caption.metrics"),
    ("+jugde=false", "jugde judge"),
    ("+optim.momentum=0.9", "optim.momentum AdamW"),
    ("+optim.foreach=true +optim.fused=true", "optim.foreach optim.fused"),
    ("callbacks=early_stopping +callbacks.early_stopping.on=true", "callbacks.early_stopping on EarlyStopping"),
    ("logger=wandb logger.wandb.offline=perhaps", "logger.wandb.offline"),
    ("callbacks=early_stopping callbacks.early_stopping.patience=long", "callbacks.early_stopping.patience=long"),
    ("+callbacks.mine._target_=lightning.pytorch.loggers.CSVLogger", "callbacks.mine._target_ callbacks.Callback"),
    ("profiler=simple profiler.filename=[1]", "profiler.filename=[1]"),
    ("+profiler._target_=lightning.pytorch.loggers.CSVLogger", "profiler._target_ profilers.Profiler"),
    ("profiler=3", "profiler=3 simple"),
    ("+callbacks.mine=3", "callbacks.mine=3 callbacks=OPTION"),
    ("+decoding.num_beam=5", "decoding.num_beam"),
    ("+decoding.num_return_sequences=2", "decoding.num_return_sequences"),
    ("evaluation/decoding=beam5 +decoding.num_return_sequences=2", "decoding.num_return_sequences"),
    ("evaluation/decoding=beam5 decoding.length_penalty=long", "decoding.length_penalty"),
    ("+decoding.custom_generate=somebody/code", "decoding.custom_generate"),
    ("optim._target_=torch.optim.SGD", "optim.betas SGD"),
    ("optim._target_=torch.optim.Nope", "optim._target_=torch.optim.Nope"),
    ("optim._target_=torch.optim.lr_scheduler.LambdaLR", "optim._target_=torch.optim.lr_scheduler.LambdaLR"),
    ("optim._target_=os.system", "optim._target_ os.system plugins"),
    ("logger=wandb logger.wandb._target_=builtins.exec", "logger.wandb._target_ builtins.exec"),
    ("data.sources.scenes._target_=os.system", "data.sources.scenes._target_ os.system"),
    ("data.sources.scenes._target_=visllama.model.connector.MLPConnector", "data.sources.scenes._target_ __getitem__"),
    ("+data.sources.scenes.deep={_target_:os.system}", "data.sources.scenes os.system"),
    ("model.connector._target_=json.loads", "model.connector._target_ json.loads"),
    ("plugins=[json] model.connector._target_=json.JSONDecoder", "plugins=[json] Python"),
    ("plugins=[json] model.connector._target_=os.system", "model.connector._target_ os.system"),
    ("model.vision_encoder._target_=visllama.model.vision_encoder.SiglipVisionEncoder", "model.vision_encoder SiglipVisionEncoder 'clip'"),
    ("model.vision_encoder._target_=visllama.model.connector.MLPConnector", "model.vision_encoder._target_ encode"),
    ("model.language_model._target_=visllama.model.nope.X", "model.language_model._target_ visllama.model.nope.X"),
    ("model.connector=mlp", "model.connector=mlp model/connector=mlp"),
    ("~model.connector", "model.connector"),
    ("~optim.clip_norm", "optim.clip_norm"),
    ("~stage.epochs", "~stage.epochs"),
    ("~data", "~data"),
    ("~optim", "optim"),
    ("logger=null", "logger=null wandb"),
    ("stage=3", "stage=3 pretrain"),
    ("trainer.accelerator=cpu trainer.devices=[0,1]", "trainer.devices"),
    ("trainer.accelerator=cpu trainer.devices=-1", "trainer.devices=-1"),
    ("trainer.accelerator=cpu trainer.precision=16-mixed", "trainer.precision=16-mixed bf16-mixed"),
    ("trainer.precision=16-true", "trainer.precision=16-true trainer.precision=bf16-true"),
    ("model.vision_encoder.feature_layer=99", "model.vision_encoder feature_layer=99"),
    ("data.sources.scenes.num_records=5", "stage.epochs stage.global_batch_size trainer.max_steps"),
    ("stage.epochs=0.001", "stage.epochs=0.001 stage.global_batch_size"),
]  # fmt: skip

OTHER_VERBS = [
    ("evaluate", "seed=1", "weights= predictions="),
    ("evaluate", "weights=FILES predictions=FILES/text.tar", "weights predictions"),
    ("evaluate", "weights=FILES/no", "weights="),
    ("evaluate", "predictions=FILES/text.tar", "references=FILE"),
    ("evaluate", "predictions=FILES/text.tar references=no.json", "references=no.json"),
    ("evaluate", "predictions=FILES references=FILES/text.tar", "predictions= folder"),
    ("evaluate", "predictions=FILES/text.tar questions=FILES/text.tar", "references=FILE answers annotations"),
    ("evaluate", "predictions=FILES/text.tar references=FILES/text.tar questions=no.json", "questions=no.json"),
    ("evaluate", "weights=FILES questions=FILES/text.tar", "questions= predictions= evaluation="),
    ("evaluate", "questions=FILES/text.tar", "weights= predictions="),
    ("evaluate", "weights=FILES evaluation/decoding=beam", "evaluation/decoding=beam beam5"),
    ("evaluate", "weights=FILES decoding.num_beams=0", "decoding.num_beams=0"),
    ("evaluate", "weights=FILES +decoding.num_beam=5", "decoding.num_beam=5"),
    ("evaluate", "weights=FILES evaluation.scenes_caption.metrics=[cider]", "evaluation.scenes_caption.metrics CIDEr"),
    ("evaluate", "weights=FILES evaluation=[scenes]", "evaluation=scenes scenes_caption"),
    ("evaluate", "weights=FILES evaluation=[files] evaluation.files.images=FILES", "evaluation.files.references=PATH"),
    (
        "evaluate",
        "weights=FILES evaluation=[files] evaluation.files.images=FILES evaluation.files.references=a.json "
        "evaluation.files.questions=q.json",
        "evaluation.files.questions=q.json files_vqa",
    ),
    ("evaluate", "weights=FILES evaluation.scenes_caption.images=FILES", "evaluation.scenes_caption.images files"),
    ("evaluate", "weights=FILES evaluation=[pope] evaluation.pope.metrics=[f1]", "evaluation.pope.metrics=f1 F1"),
    (
        "evaluate",
        "weights=FILES evaluation=[nocaps] evaluation.nocaps.metrics=[recall]",
        "evaluation.nocaps.metrics recall",
    ),
    ("evaluate", "weights=FILES trainer.precision=16", "trainer.precision=16 16-true"),
    *[
        ("evaluate", f"weights=FILES trainer.{key}", f"trainer.{key.partition('=')[0]} trainer.devices")
        for key in (
            "max_steps=3",
            "val_check_interval=0.5",
            "log_every_steps=1",
            "checkpoint_every_steps=2",
            "keep_checkpoints=1",
            "max_skipped_steps=2",
            "preempted_exit_code=9",
            "requeue=true",
            "activation_checkpointing=true",
        )
    ],
    ("evaluate", "predictions=FILES/text.tar references=FILES/text.tar trainer.threads=2", "trainer.threads"),
    *[
        ("caption", f"weights=FILES images=x.jpg {word}", f"{word.partition('=')[0]} trainer.precision")
        for word in (
            "trainer.devices=2",
            "trainer.num_nodes=2",
            "trainer/strategy=fsdp",
            "trainer.timeout_s=60",
            "trainer.max_steps=3",
        )
    ],
    ("caption", "images=x.jpg", "weights="),
    ("caption", "weights=FILES", "images"),
    ("caption", "weights=FILES/no images=x.jpg", "weights="),
    ("caption", "weights=FILES images=x.jpg batch_size=0", "batch_size=0"),
    ("caption", "weights=FILES images=x.jpg batch_size=all", "batch_size=all"),
    ("caption", "weights=FILES images=x.jpg +decoding.num_beam=5", "decoding.num_beam=5"),
    ("caption", "weights=FILES images=x.jpg json=perhaps", "json=perhaps"),
]


def says(text: str) -> tuple[str, ...]:
    return tuple(word.replace("hf_download", "hf download") for word in text.split())


GENERATED = [*key_typos(), *type_errors(), *range_errors()]
WRONG = [
    *GENERATED,
    *option_typos(),
    *[Wrong(typed, (typed.partition("=")[0],)) for typed in RANGES],
    *[Wrong(typed, says(text)) for typed, text in FILES + CONTRADICTIONS],
    *[Wrong(typed, says(text), verb) for verb, typed, text in OTHER_VERBS],
]
BY_HAND = {wrong.typed for number, wrong in enumerate(GENERATED) if number % 3}
"""Two of three of those that are made of the keys: -m proof has them, and the gate the third."""


def write_tar(path: Path, records: dict[str, dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as file:
        for key, members in records.items():
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of files that are not what they should be."""
    folder = tmp_path_factory.mktemp("files")
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "png")
    good = {"png": picture.getvalue(), "json": json.dumps({"captions": ["a square"]}).encode()}
    (folder / "nothing_inside").mkdir()
    (folder / "text.tar").write_text("this is no tar\n" * 100)
    write_tar(folder / "empty.tar", {})
    data = write_tar(folder / "good.tar", {"a": good, "b": good}).read_bytes()
    (folder / "damaged_header.tar").write_bytes(data[:2048] + b"x" * 512 + data[2560:])
    (folder / "cut_short.tar").write_bytes(data[:600])
    for name, wrong in {
        "empty_caption": {"png": good["png"], "txt": b" \n"},
        "no_image": {"json": good["json"]},
        "no_caption": {"png": good["png"], "json": b"{}"},
        "no_json": {"png": good["png"], "json": b"{captions: none}"},
    }.items():
        write_tar(folder / f"{name}.tar", {"a": good, "b": wrong})
    return folder


def words(typed: str, files: Path) -> list[str]:
    """Split a command line at spaces outside quotes."""
    parts, quoted = [""], False
    for letter in typed:
        quoted ^= letter == "'"
        if letter == " " and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.replace("FILES", str(files)) for part in parts]


def test_there_are_many_and_each_is_another():
    typed = [(wrong.verb, wrong.typed) for wrong in WRONG]
    assert [words for words in typed if typed.count(words) > 1] == []
    assert sum(wrong.typed not in BY_HAND for wrong in WRONG) >= 200


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(wrong, id=f"{wrong.verb} {wrong.typed}", marks=[pytest.mark.proof] * (wrong.typed in BY_HAND))
        for wrong in WRONG
    ],
)
def test_wrong_configurations_are_refused_and_their_key_is_named(compose_config, files, wrong):
    message = refusal(compose_config, wrong.verb, *words(wrong.typed, files))
    assert message is not None, "it was accepted"
    assert [text for text in wrong.says if text not in message] == [], message
    assert "Traceback" not in message and len(message) < 1500


@pytest.mark.parametrize(
    "typed",
    ["seed=0", "model/connector=resampler", "evaluation/decoding=beam5", "~optim.betas optim._target_=torch.optim.SGD",
     "logger=wandb", "trainer/strategy=ddp", "data=shards data.sources.shards.path=FILES/good.tar stage.global_batch_size=2",
     "data=shards data.sources.shards.path=FILES/good.tar data.sources.shards.val_fraction=null trainer.val_check_interval=null judge=false stage.global_batch_size=2",
     "optim.lr_by_part.markers=1e-3", "stage.trainable=[connector]", "+decoding.repetition_penalty=1.2",
     "+decoding.do_sample=true", "+optim.amsgrad=true", "evaluation=[]", "trainer=cpu trainer.devices=2"],
)  # fmt: skip
def test_right_configurations_are_not_refused(compose_config, files, typed):
    assert refusal(compose_config, "train", *words(typed, files)) is None


PROGRAM = [
    ("optim.rl=1e-3", "optim.rl"),
    ("stage=pretrian", "stage=pretrian"),
    ("stage.epochs=many", "stage.epochs=many"),
    ("optim.lr=0", "optim.lr=0"),
    ("model.connector=mlp", "model/connector=mlp"),
    ("optim.betas=[2,0.9]", "optim.betas"),
    ("trainer.accelerator=cpu trainer.devices=[0,1]", "trainer.devices"),
    ("data=shards data.sources.shards.path=no.tar", "data.sources.shards"),
    ("model.vision_encoder.path=./no", "model.vision_encoder"),
]


@pytest.mark.parametrize(("typed", "key"), PROGRAM)
def test_the_program_ends_with_the_message_alone_and_leaves_nothing(tmp_path, typed, key):
    command = [sys.executable, "-m", "visllama", "train", *typed.split()]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert ended.returncode == 2 and key in ended.stderr and "Traceback" not in ended.stdout + ended.stderr
    assert list(tmp_path.iterdir()) == [], "what is refused leaves nothing behind"
