import torch

from tests.support.tiny import collator_of, maker_of
from visllama.data.scenes.source import ScenesSource
from visllama.training.loss_by_source import LossBySource


def test_each_sources_mean_is_over_its_own_tokens(make_model):
    model = make_model()
    maker = maker_of(model).as_judged(None, "question_answer")
    pictures, language = ScenesSource("train", 3, 1), ScenesSource("train", 2, holds="instructions")
    samples = [maker(pictures[i]) for i in range(3)] + [maker(language[i]) for i in range(2)]
    names = ["pictures"] * 3 + ["language"] * 2
    sums = LossBySource(["pictures", "language", "unseen"], torch.device("cpu"))
    with torch.no_grad():
        for chosen in ([0, 3, 1], [4, 2]):
            batch = collator_of(model).training_batch([samples[i] for i in chosen])
            sums.add(model(**batch).logits, batch["labels"], [names[i] for i in chosen])
        alone = [float(model(**collator_of(model).training_batch([s])).loss_sum) for s in samples]
    expected = {
        "pictures": sum(alone[:3]) / sum(s.num_targets for s in samples[:3]),
        "language": sum(alone[3:]) / sum(s.num_targets for s in samples[3:]),
    }
    found = sums.means(lambda tensor: tensor)
    assert found.keys() == expected.keys(), "of a source without tokens nothing is said"
    assert all(abs(found[name] - expected[name]) < 1e-6 for name in found)  # summed in fp32
