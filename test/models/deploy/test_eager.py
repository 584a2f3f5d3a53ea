# SPDX-License-Identifier: AGPL-3.0-only
"""The plain eager forms, yardstick of the benchmark, are the networks they are compared with."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the networks need torch: pip install .[train]")
pytest.importorskip("kornia", reason="the objectives need kornia: pip install .[train]")

from fusion_models import create_model, list_models  # noqa: E402
from fusion_models.deploy.eager import eager_form  # noqa: E402

# Where adaptive pooling and the networks' own are the same; refinefuse needs 16 tokens of 32.
SIZES = {"cfi": (256, 512), "refinefuse": (512, 512)}


@pytest.mark.parametrize("method", list_models())
def test_the_eager_form_equals_the_network(method):
    torch.manual_seed(1)
    model = create_model(method).train()
    height, width = SIZES.get(method, (64, 96))
    with torch.no_grad():
        for _ in range(3):  # batch norms away from the identity
            model(*torch.rand(2, 2, 1, 64, 96))
        eager = eager_form(model)
        pair = torch.rand(2, 1, 1, height, width)
        wanted = model.eval()(*pair)
        assert (eager(*pair) - wanted).abs().max() < 1e-4
        assert (wanted - (pair[0] + pair[1]) / 2).abs().max() > 1e-3, "an idle network shows little"


def test_the_eager_form_shares_the_parameters():
    model = create_model("caf")
    assert {id(p) for p in eager_form(model).parameters()} == {id(p) for p in model.parameters()}


def test_an_unknown_network_has_no_eager_form():
    with pytest.raises(ValueError, match="no plain form of Identity: .*Baffm, Caf, Cfi"):
        eager_form(torch.nn.Identity())
