import csv

from lightning.pytorch.loggers import CSVLogger

from visllama.tracking.metrics_csv import keep_metrics


def test_rows_before_the_checkpoint_are_kept(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,step\n1,0\n2,1\n3,2\n4\n")
    logger = CSVLogger(tmp_path, "", "", flush_logs_every_n_steps=1)
    keep_metrics(logger, tmp_path, 2)
    logger.log_metrics({"a": 9.0, "b": 8.0}, 2)
    logger.save()
    with open(tmp_path / "metrics.csv") as file:
        rows = [(row["a"], row["b"], row["step"]) for row in csv.DictReader(file)]
    assert rows == [("1", "", "0"), ("2", "", "1"), ("9.0", "8.0", "2")]
