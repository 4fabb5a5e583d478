from visllama.config.objective import VAL_LOSS, Objective
from visllama.sweep.plot import error_bars, is_log_axis, numeric_keys, plot_scores

CIDER = Objective("scenes_caption/CIDEr", scale=100)


def row(score: float, interval=None, **swept) -> dict:
    made = {"swept": swept, "scores": {CIDER.name: score}}
    return made if interval is None else made | {"intervals": {CIDER.name: interval}}


def test_keys_of_several_numbers_have_a_panel():
    rows = [row(1.0, lr=1e-3, connector="mlp", seed=1, flag=True), row(2.0, lr=1e-2, connector="x", seed=1, flag=False)]
    assert numeric_keys(["lr", "connector", "seed", "flag"], rows) == ["lr"]
    assert numeric_keys(["lr"], rows[:1]) == []


def test_rates_and_decades_have_a_logarithmic_axis():
    assert is_log_axis("optim.lr", [1e-3, 2e-3], ())
    assert is_log_axis("optim.lr_by_part.connector", [1e-3, 2e-3], ())
    assert is_log_axis("optim.weight_decay", [0.01, 0.1], ())
    assert is_log_axis("optim.clip_norm", [1.0, 2.0], ["optim.clip_norm"])
    assert not is_log_axis("optim.clip_norm", [1.0, 2.0], ())
    assert not is_log_axis("optim.warmup_fraction", [0.0, 0.2], ["optim.warmup_fraction"]), "a logarithm has no 0"


def test_error_bars_are_the_intervals_in_the_scale_of_the_plot():
    rows = [row(1.0, [0.9, 1.2]), row(2.0), row(3.0, [3.1, 3.2])]
    below, above = error_bars(rows, CIDER)
    # In floats 1.0 - 0.9 is 0.1 to 17 digits.
    assert [round(each, 9) for each in below] == [10, 0, 0] and [round(each, 9) for each in above] == [20, 0, 20]
    assert error_bars([row(1.0)], CIDER) is None


def test_a_picture_of_one_key_and_of_two(tmp_path, monkeypatch):
    from matplotlib import pyplot as plt

    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    rows = [row(2.0, [1.8, 2.1], lr=4e-3, warmup=0.1), row(1.0, [0.9, 1.2], lr=1e-4, warmup=0.0)]
    plot_scores(["lr"], rows, CIDER, "val CIDEr x100", [], tmp_path / "one.png")
    plot_scores(["lr", "warmup"], rows, CIDER, "val CIDEr x100", [], tmp_path / "two.png")
    assert (tmp_path / "one.png").stat().st_size > 1000 and (tmp_path / "two.png").stat().st_size > 1000
    one, two = figures
    (axes,) = one.axes
    assert axes.get_xscale() == "log" and axes.get_ylabel() == "val CIDEr x100"
    assert axes.lines[0].get_xydata().tolist() == [[1e-4, 100], [4e-3, 200]], "sorted by the key"
    assert axes.lines[0].get_linestyle() == "-" and [panel.get_xscale() for panel in two.axes] == ["log", "linear"]
    assert two.axes[0].lines[0].get_linestyle() == "None", "jobs that differ in two keys are joined by no line"
    assert axes.lines[-1].get_xydata().tolist() == [[4e-3, 200]], "the best is marked"


def test_a_loss_has_no_interval():
    assert error_bars([{"swept": {}, "scores": {VAL_LOSS: 1.0}}], Objective(VAL_LOSS)) is None
