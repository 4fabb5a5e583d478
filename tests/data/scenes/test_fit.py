import torch
from torch import nn

from visllama.data.scenes.fit import fit


def test_fits_and_reports_every_step():
    torch.manual_seed(0)
    model, said = nn.Linear(2, 1), []
    x = torch.randn(64, 2)
    y = x @ torch.tensor([[1.0], [-2.0]])

    def losses():
        while True:
            yield lambda: (model(x) - y).square().mean()

    fit("line", model, losses(), 200, 0.1, lambda *report: said.append(report))
    assert [done for _, done, _, _ in said] == list(range(1, 201)) and said[0][0] == "line"
    assert (model(x) - y).square().mean() < 1e-2 and not model.training
