import torch

from visllama.model.loss import token_loss_sum
from visllama.text.tokens import IGNORE_INDEX


def test_sum_over_supervised_tokens_of_minus_log_probability():
    logits = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [5.0, 5.0]]])
    labels = torch.tensor([[1, IGNORE_INDEX, 0]])
    # The label at 0 has nothing before it; the one at 2 is predicted at 1: log(1 + e^-2).
    assert torch.isclose(token_loss_sum(logits, labels), torch.tensor(0.126928))


def test_nothing_supervised_is_zero_with_a_gradient():
    logits = torch.randn(1, 3, 4, requires_grad=True)
    loss = token_loss_sum(logits, torch.full((1, 3), IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().max() == 0


def test_half_precision_is_summed_in_fp32():
    logits, labels = torch.randn(2, 5, 7, dtype=torch.bfloat16), torch.randint(0, 7, (2, 5))
    assert torch.equal(token_loss_sum(logits, labels), token_loss_sum(logits.float(), labels))
