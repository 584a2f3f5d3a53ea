# SPDX-License-Identifier: AGPL-3.0-only
"""The four networks: registry, contract of inputs and outputs, folding, export to ONNX."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the networks need torch: pip install .[train]")
pytest.importorskip("kornia", reason="the objectives need kornia: pip install .[train]")

import fusion_models  # noqa: E402
from fusion_models import create_model, create_objective, list_models, model_card  # noqa: E402
from fusion_models.data import Batch  # noqa: E402
from fusion_models.registry import deploy_form, register_model  # noqa: E402

METHODS = list_models()


def random_pair(height=64, width=96, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, batch, 1, height, width, generator=generator)


def settled(method):
    """A network whose batch norms are no longer the identity."""
    torch.manual_seed(1)
    model = create_model(method).train()
    with torch.no_grad():
        for step in range(3):
            model(*random_pair(seed=step, batch=2))
    return model.eval()


def test_the_four_published_methods_are_registered():
    assert {"baffm", "cfi", "caf", "refinefuse"} <= set(METHODS)


def test_an_unknown_method_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="unknown method 'nonsense'.*baffm.*refinefuse"):
        create_model("nonsense")


def test_a_method_cannot_be_registered_twice():
    with pytest.raises(ValueError, match="registered twice"):
        register_model(model_card("baffm"), objective=None)(torch.nn.Identity)


@pytest.mark.parametrize("method", METHODS)
def test_the_output_has_the_inputs_shape_and_range(method):
    model = settled(method)
    with torch.no_grad():
        for height, width in ((64, 96), (40, 128)):
            fused = model(*random_pair(height, width))
            assert fused.shape == (1, 1, height, width)
            assert 0.0 <= fused.min() and fused.max() <= 1.0


@pytest.mark.parametrize("method", METHODS)
def test_folding_constants_keeps_the_output(method):
    model = settled(method)
    pair = random_pair()
    with torch.no_grad():
        wanted = model(*pair)
        assert (deploy_form(model)(*pair) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_takes_part_in_the_objective(method):
    torch.manual_seed(0)
    model, objective = create_model(method), create_objective(method)
    ir, vi = random_pair(batch=2)
    terms = objective(model, Batch(ir, vi, torch.zeros_like(ir)))
    sum(terms.values()).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


@pytest.mark.parametrize("method", METHODS)
def test_the_noise_of_a_batch_is_in_what_the_network_takes(method, monkeypatch):
    model, objective = settled(method), create_objective(method)
    entry = "fuse_with_gates" if hasattr(model, "fuse_with_gates") else "forward"
    run, taken = getattr(model, entry), []
    monkeypatch.setattr(model, entry, lambda *images: taken.extend(images) or run(*images))
    ir, vi = (0.25 + 0.5 * image for image in random_pair(batch=2))
    noise = 0.05 * torch.ones(2, 2, *ir.shape[-2:])
    with torch.no_grad():
        objective(model, Batch(ir, vi, torch.zeros_like(ir), noise=noise))
    for fed, image in zip(taken, (ir, vi)):
        assert torch.allclose(fed[: len(ir)], image + 0.05)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(480, 640), (512, 640), (333, 501)])
def test_the_shipped_onnx_equals_the_shipped_parameters(method, size):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = fusion_models.WEIGHTS_DIR / f"{method}.onnx"
    assert path.is_file(), f"{method} ships no ONNX"
    height, width = size
    rng = np.random.default_rng(0)
    pair = torch.from_numpy(rng.random((2, 1, 1, height // 8, width // 8), np.float32))
    pair = torch.stack([torch.nn.functional.interpolate(p, size, mode="bilinear") for p in pair])
    padded = torch.nn.functional.pad(pair[:, 0], (0, -width % 8, 0, -height % 8), mode="reflect")[
        :, None
    ]
    with torch.inference_mode():
        wanted = create_model(method, pretrained=True)(*padded).numpy()[..., :height, :width]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = session.run(["fused"], {"ir": padded[0].numpy(), "vi": padded[1].numpy()})[0]
    assert np.abs(got[..., :height, :width] - wanted).mean() < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_the_shipped_onnx_keeps_the_contract(method):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(fusion_models.WEIGHTS_DIR / f"{method}.onnx")
    assert [i.name for i in model.graph.input] == ["ir", "vi"]
    assert [o.name for o in model.graph.output] == ["fused"]
    for tensor in (*model.graph.input, *model.graph.output):
        dims = tensor.type.tensor_type.shape.dim
        assert [d.dim_value for d in dims[:2]] == [1, 1]
        assert dims[2].dim_param and dims[3].dim_param, "height and width must be free"
        assert tensor.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata["method"] == method
    assert {"version", "training_data", "metrics", "source_commit"} <= set(metadata)


def test_the_baffm_extractor_is_the_unrolled_equation():
    from fusion_models.baffm.network import LowRankSparse

    torch.manual_seed(0)
    extractor = LowRankSparse(4)
    with torch.no_grad():
        extractor.threshold.uniform_(0.005, 0.05)
        extractor.memory.fill_(0.8)
        x = torch.rand(1, 1, 24, 24)
        t = extractor.threshold.abs() + 1e-4

        def shrink(y):
            return y.sign() * (y.abs() - t).clamp_min(0)

        z = shrink(extractor.first(x))
        for down, up in zip(extractor.down, extractor.up):
            z = shrink(extractor.memory * z + up(x - down(z)))
        assert (extractor(x) - z).abs().max() < 1e-5


def test_scene_weights_sum_to_one_and_ablations_are_one_setting_each():
    from fusion_models.baffm.network import BackdoorAdjustment, Baffm

    adjustment = BackdoorAdjustment(8, torch.randn(25, 16), torch.full((25,), 1 / 25))
    weights = adjustment.weights(torch.randn(2, 8, 40, 56))
    assert weights.shape == (2, 25, 5, 7), "a query for each 8 x 8 pixels"
    assert torch.allclose(weights.sum(1), torch.ones(2, 5, 7), atol=1e-5)
    for settings in (
        {"adjustment": "none"},
        {"adjustment": "bias"},
        {"adjustment": "memory"},
        {"prior": "frequency"},
        {"random_entries": 20},
    ):
        assert Baffm(**settings)(*random_pair()).shape == (1, 1, 64, 96)
    with pytest.raises(ValueError, match="'uniform' or 'frequency'"):
        Baffm(prior="none")


def test_interventions_mask_the_modality_that_they_name():
    from fusion_models.cfi.interventions import intervene

    ir = vi = torch.ones(3, 1, 64, 64)
    generator = torch.Generator().manual_seed(0)
    both = intervene(ir, vi, "complementary", generator)
    assert (both.ir + both.vi).min() >= 1.0, "complementary masks must be disjoint"
    assert both.ir.min() == 0.0 and both.vi.min() == 0.0
    common = intervene(ir, vi, "random", generator)
    assert torch.equal(common.ir, common.vi) and common.ir.min() == 0.0
    blocks = (common.ir == 0).sum((1, 2, 3)) / 16**2
    assert ((1 <= blocks) & (blocks <= 6)).all()
    assert intervene(ir, vi, "no_ir").ir.max() == 0 and intervene(ir, vi, "no_vi").vi.max() == 0
    with pytest.raises(ValueError, match="complementary, random, no_ir, no_vi"):
        intervene(ir, vi, "nothing")


def test_refinefuse_pairwise_convolution_is_a_grouped_convolution_of_interleaved_channels():
    from fusion_models.refinefuse.network import PairwiseConv

    torch.manual_seed(0)
    pairwise, channels = PairwiseConv(5), 5
    grouped = torch.nn.Conv2d(2 * channels, channels, 3, padding=1, groups=channels)
    with torch.no_grad():
        grouped.weight.copy_(torch.cat((pairwise.ir.weight, pairwise.vi.weight), 1))
        grouped.bias.copy_(pairwise.ir.bias)
        ir, vi = torch.rand(2, 1, channels, 9, 11)
        interleaved = torch.stack((ir, vi), 2).flatten(1, 2)
        assert torch.allclose(grouped(interleaved), pairwise(ir, vi), atol=1e-5)


def test_cfi_treats_thermal_and_visible_differently():
    ir, vi = random_pair()
    model = settled("cfi")
    with torch.no_grad():
        # An untrained network's norms hardly differ; what matters is that they can.
        model.encoders[0].norms["ir"][1].weight.mul_(3.0)
        assert (model(ir, vi) - model(vi, ir)).abs().max() > 1e-3


def test_the_perceptual_term_of_caf_reaches_the_fusion_network():
    pytest.importorskip("torchvision", reason="VGG-16 comes with torchvision")
    from fusion_models.caf.objective import Vgg16Perceptual

    torch.manual_seed(0)
    perceptual = Vgg16Perceptual(pretrained=False)
    fused, source = random_pair(32, 32)
    fused.requires_grad_()
    assert len(perceptual._layers(source)) == 5
    assert perceptual(source, source) == 0.0
    perceptual(fused, source).backward()
    assert fused.grad.abs().sum() > 0


def test_one_weight_of_caf_changes_no_other():
    weights = create_objective("caf", weights={"ssim_ir": 0.2}).weights
    assert weights["ssim_ir"] == 0.2 and weights["gradient_max"] > 0


def test_unknown_loss_terms_of_caf_are_named():
    with pytest.raises(ValueError, match="l1_moon"):
        create_objective("caf", weights={"l1_moon": 1.0})


def test_scd_and_information_losses_prefer_what_carries_both_sources():
    from fusion_models.losses import scd_loss, visual_information_loss

    torch.manual_seed(0)
    ir, vi = torch.rand(2, 2, 1, 48, 48)
    both, grey = (ir + vi) / 2, torch.full_like(ir, 0.5)
    assert scd_loss(both, ir, vi) < scd_loss(ir, ir, vi)
    assert visual_information_loss(both, ir, vi) < visual_information_loss(grey, ir, vi)
