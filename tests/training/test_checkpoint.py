import csv

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from visllama.config import ConfigError
from visllama.training.checkpoint import AtomicCheckpointIO, Checkpoint, keep_metrics, keep_only

DATA = {"samples_seen": 64, "rests_on": {"seed": 1}}
CONTENT = {"global_step": 4, "loops": {"fit_loop": {"state_dict": {"combined_loader": [DATA]}}}}


def test_written_whole_and_found_again(tmp_path):
    io, folder = AtomicCheckpointIO(), tmp_path / "checkpoints"
    for step in (4, 12):
        io.save_checkpoint(CONTENT | {"global_step": step}, folder / f"step_{step:08d}.ckpt")
    last = Checkpoint.last_of(tmp_path)
    assert last.step == 12 and last.data == DATA and len(list(folder.iterdir())) == 2
    assert io.load_checkpoint(last.path)["global_step"] == 12
    (folder / ".step_00000016.ckpt.99").write_bytes(b"half")
    keep_only(last, tmp_path)
    assert list(folder.iterdir()) == [last.path]
    keep_only(None, tmp_path)
    assert not list(folder.iterdir()), "a run that begins anew"


def test_a_save_that_fails_leaves_the_last_one(tmp_path, monkeypatch):
    io, path = AtomicCheckpointIO(), tmp_path / "checkpoints" / "step_00000004.ckpt"
    io.save_checkpoint(CONTENT, path)
    before = path.read_bytes()

    def torn(content, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="No space"):
        io.save_checkpoint(CONTENT, path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert Checkpoint.last_of(tmp_path) is None, "stopped before it wrote one"
    path = tmp_path / "checkpoints" / "step_00000004.ckpt"
    for content in (b"", b"no checkpoint", None):
        if content is None:
            torch.save({"global_step": 4}, path)
        else:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"step_00000004\.ckpt: no checkpoint to go on from"):
            Checkpoint.last_of(tmp_path)


def test_rows_before_the_checkpoint_are_kept(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,step\n1,0\n2,1\n3,2\n4\n")
    logger = CSVLogger(tmp_path, "", "", flush_logs_every_n_steps=1)
    keep_metrics(logger, tmp_path, 2)
    logger.log_metrics({"a": 9.0, "b": 8.0}, 2)
    logger.save()
    with open(tmp_path / "metrics.csv") as file:
        rows = [(row["a"], row["b"], row["step"]) for row in csv.DictReader(file)]
    assert rows == [("1", "", "0"), ("2", "", "1"), ("9.0", "8.0", "2")]
