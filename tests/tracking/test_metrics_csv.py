import csv

from lightning.pytorch.loggers import CSVLogger

from visllama.tracking.metrics_csv import keep_metrics, logged_names


def test_rows_before_the_checkpoint_are_kept(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,step\n1,0\n2,1\n3,2\n4\n")
    logger = CSVLogger(tmp_path, "", "", flush_logs_every_n_steps=1)
    keep_metrics(logger, tmp_path, 2)
    logger.log_metrics({"a": 9.0, "b": 8.0}, 2)
    logger.save()
    with open(tmp_path / "metrics.csv") as file:
        rows = [(row["a"], row["b"], row["step"]) for row in csv.DictReader(file)]
    assert rows == [("1", "", "0"), ("2", "", "1"), ("9.0", "8.0", "2")]


def test_what_was_logged_of_steps_that_come_again_is_known_also_after_a_second_stop(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("train/loss,val/loss,step\n1,,3\n2,,4\n2,5,4\n3,,5\n4\n")
    assert logged_names(tmp_path, 4) == {4: {"train/loss", "val/loss"}, 5: {"train/loss"}}
    path.write_text("train/loss,val/loss,step\n1,,3\n2,,4\n")  # it went on at step 4, and got less far
    assert logged_names(tmp_path, 4) == {4: {"train/loss", "val/loss"}, 5: {"train/loss"}}
    assert logged_names(tmp_path, 5) == {5: {"train/loss"}}


def test_a_damaged_file_of_what_was_logged_hinders_nobody(tmp_path):
    (tmp_path / "logged.json").write_text("[1, 2")
    assert logged_names(tmp_path, 0) == {}
