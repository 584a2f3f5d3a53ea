# SPDX-License-Identifier: AGPL-3.0-only
"""The hypergradient of a searched loss against closed solutions and exact differentiation."""

from __future__ import annotations

import pytest

for module in ("torch", "kornia"):
    pytest.importorskip(module, reason=f"training needs {module}: pip install .[train]")

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.func import functional_call  # noqa: E402

from fusion_models.search.hypergradient import (  # noqa: E402
    SignalToNoise,
    exact_hypergradient,
    hypergradient,
    through_softmax,
)
from fusion_models.search.terms import OWN, PAPER, LossTerms  # noqa: E402


class Pair:
    """A batch of two images, as smooth as photographs; 32 px is the least that the losses take."""

    def __init__(self, seed, size=32):
        torch.manual_seed(seed)
        noise = torch.rand(2, 2, size, size)
        self.ir, self.vi = torch.nn.functional.avg_pool2d(noise, 5, 1, 2).chunk(2, 1)


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), 0).item()


def test_a_quadratic_problem_has_the_gradient_that_can_be_written_down():
    # T_i = |w - a_i|^2 / 2 and task |w - b|^2 / 2: w' = w - eta sum_i beta_i (w - a_i), and the
    # task's loss changes with beta_i by -eta (w' - b) . (w - a_i).
    torch.manual_seed(0)
    w, b, anchors = torch.randn(6), torch.randn(6), torch.randn(3, 6)
    beta, eta = torch.tensor([0.5, 2.0, 0.5]), 0.1
    after = w - eta * (beta[:, None] * (w - anchors)).sum(0)
    expected = torch.stack([-eta * (after - b) @ (w - a) for a in anchors])
    result = hypergradient(
        beta,
        {"w": w},
        lambda p: (p["w"] - anchors).square().sum(1) / 2,
        lambda p: (p["w"] - b).square().sum() / 2,
        eta,
    )
    assert torch.allclose(result.by_weights, expected, rtol=1e-3, atol=1e-5)
    assert result.task_loss == pytest.approx(((after - b).square().sum() / 2).item())


def test_descent_finds_the_weights_whose_optimum_the_task_wants():
    # The terms pull w to 0 and to 1, the task wants .3: weights of .7 and .3 are the solution.
    anchors = torch.tensor([0.0, 1.0])
    logits, w = torch.zeros(2), torch.tensor([0.9])
    optimizer = torch.optim.Adam([logits], 0.1)

    def terms(p):
        return (p["w"] - anchors).square() / 2

    for _ in range(120):
        weights = 2 * logits.softmax(0)
        w = w - 0.3 * (weights * (w - anchors)).sum()
        result = hypergradient(
            weights, {"w": w}, terms, lambda p: (p["w"] - 0.3).square().sum(), eta=0.3
        )
        logits.grad = through_softmax(result.by_weights, weights)
        optimizer.step()
    assert logits.softmax(0).tolist() == pytest.approx([0.7, 0.3], abs=0.02)


def test_the_gradient_of_the_logits_is_that_of_the_softmax():
    torch.manual_seed(1)
    logits, by_weights = torch.randn(5, requires_grad=True), torch.randn(5)
    weights = 5 * logits.softmax(0)
    (expected,) = torch.autograd.grad(weights @ by_weights, logits)
    assert torch.allclose(through_softmax(by_weights, weights.detach()), expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(2))
def test_finite_differences_agree_with_exact_differentiation_on_a_fusion_network(seed):
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 1, 3, padding=1), nn.Sigmoid()
    )
    judge = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(1))
    train, held = Pair(seed), Pair(seed + 100)
    terms = LossTerms(PAPER + OWN, perceptual="none")
    weights = torch.rand(len(terms.names)) + 0.5
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def fused(p, batch):
        return functional_call(network, dict(p), (torch.cat((batch.ir, batch.vi), 1),))

    arguments = (
        weights,
        parameters,
        lambda p: terms(fused(p, train), train),
        lambda p: judge(fused(p, held)).square().mean(),
        0.05,
    )
    approximate = hypergradient(*arguments).by_weights
    exact = exact_hypergradient(*arguments)
    assert cosine(approximate, exact) > 0.99
    assert approximate.norm().item() == pytest.approx(exact.norm().item(), rel=0.05)
    assert exact.norm() > 1e-7
    half = hypergradient(*arguments, differentiated=lambda: torch.autocast("cpu", torch.bfloat16))
    assert cosine(half.by_weights, exact) > 0.95  # a coarse direction, but an exact difference


def test_a_task_that_does_not_look_at_the_image_gives_no_gradient():
    result = hypergradient(
        torch.ones(2),
        {"w": torch.ones(3)},
        lambda p: torch.stack((p["w"].sum(), p["w"].square().sum())),
        lambda p: torch.zeros(()) * p["w"].sum(),
        0.1,
    )
    assert result.direction_norm == 0 and result.by_weights.tolist() == [0, 0]


def test_signal_to_noise_tells_a_trend_from_chance_and_survives_a_restart():
    torch.manual_seed(0)
    noise, later = SignalToNoise(2), SignalToNoise(2)
    for _ in range(100):
        noise.add(torch.randn(2) + torch.tensor([1.0, 0.0]))
    later.load_state_dict(noise.state_dict())
    trend, chance = later.ratio.tolist()
    assert 7 < trend < 13 and abs(chance) < 3
    assert SignalToNoise(2).ratio.tolist() == [0, 0]
