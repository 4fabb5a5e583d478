from types import SimpleNamespace

from visllama.training.callbacks.consumed import ConsumedKeys, read_consumed


def test_the_last_writer_of_a_step_wins_and_torn_lines_are_none(tmp_path):
    path, trainer = tmp_path / "consumed.jsonl", SimpleNamespace(is_global_zero=True, world_size=1)
    first = ConsumedKeys(path)
    first.on_train_start(trainer, None)
    for step, keys in enumerate((["a"], ["b"], ["c"])):
        first.on_train_batch_end(trainer, None, None, {"keys": keys}, step)
    with open(path, "a") as file:
        file.write('{"step": 3, "ke')  # killed here
    second = ConsumedKeys(path)
    second.on_train_start(trainer, None)
    for step, keys in ((2, ["C"]), (3, ["d", "é"])):
        second.on_train_batch_end(trainer, None, None, {"keys": keys}, step)
    assert read_consumed(path) == {0: ["a"], 1: ["b"], 2: ["C"], 3: ["d", "é"]}
