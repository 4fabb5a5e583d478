import torch
from torch.nn import functional as F

from visllama.model.loss import token_loss_by_sample, token_loss_sum
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


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


def test_a_loss_of_ones_own_sees_the_supervised_tokens_alone():
    logits = torch.randn(2, 5, 7, requires_grad=True)
    labels = torch.randint(0, 7, (2, 5))
    labels[0, 2:] = IGNORE_INDEX
    seen = []

    def token_loss(given, targets):
        seen.append((given.shape, targets.tolist()))
        return cross_entropy(given, targets)

    loss = token_loss_sum(logits, labels, token_loss)
    expected = [*labels[0, 1:2].tolist(), *labels[1, 1:].tolist()]
    assert seen == [((5, 7), expected)]
    # The same sum in another order: fp32 has 7 digits.
    torch.testing.assert_close(loss, token_loss_sum(logits, labels), rtol=1e-6, atol=1e-6)
    gradients = [
        torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (loss, token_loss_sum(logits, labels))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_a_loss_of_ones_own_is_not_asked_of_a_dummy():
    logits = torch.randn(1, 3, 4, requires_grad=True)
    loss = token_loss_sum(logits, torch.full((1, 3), IGNORE_INDEX), lambda *_: 1 / 0)
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().max() == 0


def test_the_losses_of_samples_add_up_to_the_whole():
    logits, labels = torch.randn(3, 6, 7), torch.randint(0, 7, (3, 6))
    by_sample = token_loss_by_sample(logits, labels, lambda given, targets: 2 * cross_entropy(given, targets))
    torch.testing.assert_close(by_sample.sum(), 2 * token_loss_sum(logits, labels), rtol=1e-6, atol=1e-6)
