# SPDX-License-Identifier: AGPL-3.0-only
"""Terms of fusion losses, unweighted, and losses read from the file of a search."""

from __future__ import annotations

import pytest

for module in ("torch", "kornia"):
    pytest.importorskip(module, reason=f"training needs {module}: pip install .[train]")

import torch  # noqa: E402
from torch import nn  # noqa: E402

from fusion_models.data import Batch  # noqa: E402
from fusion_models.search.search import write_loss  # noqa: E402
from fusion_models.search.terms import (  # noqa: E402
    FIXED,
    OWN,
    PAPER,
    LossTerms,
    SearchedObjective,
    saliency,
    salient_mask,
)

EVERY = PAPER + FIXED + OWN


@pytest.fixture
def batch():
    torch.manual_seed(0)
    ir, vi = torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32)
    return Batch(ir, vi, torch.zeros_like(ir))


def values(fused, batch, names=EVERY):
    terms = LossTerms(names, perceptual="none")
    return dict(zip(terms.names, terms(fused, batch).tolist()))


def test_the_fifteen_terms_of_the_paper_and_their_order():
    assert len(PAPER) == 15
    assert LossTerms(PAPER, perceptual="none").names == PAPER[:13]


def test_terms_are_zero_where_the_fused_image_is_what_they_ask_for(batch):
    of_ir, of_vi = values(batch.ir, batch), values(batch.vi, batch)
    of_max = values(torch.maximum(batch.ir, batch.vi), batch)
    for name in ("l1", "mse", "ssim", "gradient"):
        assert abs(of_ir[f"{name}_ir"]) < 1e-5 < of_ir[f"{name}_vi"]
        assert abs(of_vi[f"{name}_vi"]) < 1e-5 < of_vi[f"{name}_ir"]
    assert of_max["l1_max"] == of_max["mse_max"] == 0 < of_max["gradient_max"]
    assert of_ir["l1_masked_ir"] == 0 < of_ir["l1_masked_vi"]


def test_masked_terms_share_the_image_between_them(batch):
    mask = salient_mask(batch.ir, batch.vi)
    fused = torch.rand_like(batch.ir)
    found = values(fused, batch)
    assert found["l1_masked_ir"] == pytest.approx((mask * (fused - batch.ir)).abs().mean().item())
    assert found["mse_masked_vi"] == pytest.approx(
        ((1 - mask) * (fused - batch.vi)).square().mean().item()
    )


def test_saliency_is_the_mean_distance_to_all_grey_levels():
    image = torch.full((1, 1, 8, 8), 0.2)
    image[..., 2:4, 2:4] = 1.0  # 4 of 64 pixels
    found = saliency(image)
    assert found[..., 2, 2].item() == pytest.approx(1)
    assert found[..., 0, 0].item() == pytest.approx(4 / 60, rel=1e-3)
    assert not saliency(torch.full((1, 1, 8, 8), 0.4)).any()
    flat = torch.full((1, 1, 8, 8), 0.4)
    assert salient_mask(flat, flat).unique().tolist() == [0.5]
    assert salient_mask(image, flat)[..., 2, 2] > 0.99


def test_every_term_has_a_gradient_by_the_fused_image(batch):
    fused = torch.rand_like(batch.ir).requires_grad_()
    found = LossTerms(EVERY, perceptual="none")(fused, batch)
    for value in found:
        (gradient,) = torch.autograd.grad(value, fused, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_perceptual_terms_by_the_network_at_hand_see_structure(batch):
    pytest.importorskip("efficientnet_lite_pytorch")
    terms = LossTerms(("perceptual_ir", "perceptual_vi"), perceptual="efficientnet_lite0")
    fused = batch.ir.clone().requires_grad_()
    of_ir, of_vi = terms(fused, batch)
    assert abs(of_ir.item()) < 1e-5 < of_vi.item()
    assert torch.autograd.grad(of_vi, fused)[0].abs().sum() > 0
    assert not any(p.requires_grad for p in terms.parameters())


def test_a_searched_loss_is_the_weighted_sum_of_its_terms_for_any_network(batch, tmp_path):
    write_loss(tmp_path / "loss.yaml", ("l1_ir", "ssim_vi"), (2.0, 0.25), {"perceptual": "none"})
    objective = SearchedObjective.from_file(tmp_path / "loss.yaml")

    class Mean(nn.Module):
        def forward(self, ir, vi):
            return (ir + vi) / 2

    parts = objective(Mean(), batch)
    plain = values((batch.ir + batch.vi) / 2, batch)
    assert set(parts) == {"l1_ir", "ssim_vi", *FIXED}
    assert parts["l1_ir"].item() == pytest.approx(2 * plain["l1_ir"])
    assert parts["mse_masked_ir"].item() == pytest.approx(0.5 * plain["mse_masked_ir"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weights: {l1_it: 1}", "unknown terms l1_it"),
        ("weights: {l1_ir: -1}", "none of them negative"),
        ("weights: {l1_ir: 0}", "expected some"),
        ("weights: {perceptual_ir: 1}\nperceptual: none", "but perceptual is 'none'"),
        ("[1, 2]", "expected a YAML with 'weights'"),
        ("weights: {l1_ir: many}", "expected a YAML with 'weights'"),
    ],
)
def test_a_loss_file_that_cannot_be_used_is_refused_with_the_reason(tmp_path, text, message):
    (tmp_path / "loss.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        SearchedObjective.from_file(tmp_path / "loss.yaml")
