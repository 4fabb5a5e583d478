import json

from visllama.evaluation.index_page import write_index

EVALUATION = {
    "task": "caption", "split": "test", "n": 200, "metrics": {"CIDEr": 3.997}, "intervals": {"CIDEr": [3.9, 4.1]},
    "controls": {"blank_images": {"CIDEr": 0.468}},
}  # fmt: skip


def test_a_runs_page_shows_its_scores_and_links_all_it_holds(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"evaluations": {"scenes_caption": EVALUATION}}))
    judged = tmp_path / "evaluations" / "scenes_caption"
    judged.mkdir(parents=True)
    for path in (tmp_path / "curves.png", tmp_path / "mine & <yours>.txt", judged / "gallery.html"):
        path.touch()

    write_index(tmp_path)

    page = (tmp_path / "index.html").read_text()
    for text in ("scenes_caption: test, n = 200", "399.7", "390.0 - 410.0", "46.8", '<img src="curves.png"'):
        assert text in page, text
    for link in (
        "metrics.json",
        "curves.png",
        "mine%20%26%20%3Cyours%3E.txt",
        "evaluations/scenes_caption/gallery.html",
    ):
        assert f'<a href="{link}">' in page, link
    assert "<yours>" not in page and "index.html" not in page, "it does not link itself"


def test_a_sweeps_page_links_the_pages_of_its_jobs(tmp_path):
    for job in ("0", "1", "10"):
        (tmp_path / job).mkdir()
        (tmp_path / job / "index.html").touch()
    (tmp_path / "sweep.json").touch()
    write_index(tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert page.index('"0/index.html"') < page.index('"1/index.html"') < page.index('"10/index.html"')
    assert "sweep.json" in page
