# SPDX-License-Identifier: AGPL-3.0-only
"""Fusion metrics: equal to the reference evaluation and to independent code, at extremes too."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from fusion_models.evaluation.metrics import (
    average_gradient,
    correlation,
    distance,
    entropy,
    evaluate,
    mutual_information,
    over_exposure,
    psnr,
    qabf,
    scd,
    ssim,
    vif,
)  # fmt: skip

sys.path.insert(0, str(Path(__file__).parent))
from golden import FOLDER, SCENES, figures, fuse, read


def picture(seed=0, size=(120, 160)):
    noise = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)


@pytest.fixture(scope="module")
def reference(shared_data):
    return json.loads((shared_data / "peers" / "reference" / "metrics.json").read_text())["values"]


def read_pair(shared_data, stem):
    return [
        cv2.imread(str(next((shared_data / "data/tno/test" / m).glob(f"{stem}.*"))), 0)
        for m in ("ir", "vi")
    ]


def test_all_metrics_equal_the_reference_evaluation(shared_data, reference):
    assert len(reference) >= 12
    for key, wanted in reference.items():
        peer, stem = key.split("/")
        fused = cv2.imread(str(shared_data / "peers/reference" / peer / f"{stem}.png"), 0)
        got = evaluate(fused, *read_pair(shared_data, stem)).as_dict()
        for name, value in wanted.items():
            assert got[name] == pytest.approx(value, abs=1e-3), f"{key} {name}"


@pytest.mark.parametrize("scene", SCENES)
def test_all_metrics_equal_independent_implementations(scene):
    wanted = json.loads((FOLDER / "metrics.json").read_text())[scene]
    ir, vi = read("ir", scene), read("vi", scene)
    assert evaluate(fuse(ir, vi), ir, vi).as_dict() == pytest.approx(wanted, abs=1e-5)


def test_the_independent_figures_can_be_computed_again():
    for module in ("scipy", "sklearn"):
        pytest.importorskip(module, reason=f"the independent metrics need {module}")
    ir, vi = read("ir", "night"), read("vi", "night")
    wanted = json.loads((FOLDER / "metrics.json").read_text())["night"]
    assert figures(fuse(ir, vi), ir, vi) == pytest.approx(wanted, abs=1e-5)


def test_a_perfect_copy_of_equal_sources_has_the_perfect_scores():
    image = picture()
    assert vif(image, image, image) == pytest.approx(2.0, abs=1e-6)
    assert ssim(image, image, image) == pytest.approx(2.0)
    assert correlation(image, image, image) == pytest.approx(1.0)
    assert psnr(image, image, image) == np.inf
    assert qabf(image, image, image) == pytest.approx(0.9994 * 0.9879, abs=0.02)
    assert mutual_information(image, image, image) == pytest.approx(2 * entropy(image) * np.log(2))


def test_a_sum_of_both_sources_has_the_best_scd():
    ir, vi = picture(1) / 3.0, picture(2) / 3.0
    assert scd(ir + vi, ir, vi) == pytest.approx(2.0)


def test_flat_pictures_do_not_divide_by_zero():
    flat, image = np.full((80, 90), 128, np.uint8), picture(3, (80, 90))
    with np.errstate(all="raise", under="ignore"):
        for values in (evaluate(flat, flat, flat), evaluate(flat, image, flat)):
            assert np.isfinite([v for k, v in values.as_dict().items() if k != "PSNR"]).all()
    assert entropy(flat) == 0.0 and average_gradient(flat) == 0.0


def test_over_exposure_is_the_share_of_pixels_over_245():
    assert over_exposure(np.array([[245, 246], [255, 0]], np.uint8)) == 0.5


def test_distance_is_on_the_unit_scale():
    assert distance(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8)) == 1.0


@pytest.mark.parametrize("bad", [np.zeros((80, 81)), np.zeros((80, 90, 3))])
def test_other_shapes_are_refused_with_what_was_expected(bad):
    good = picture(0, (80, 90))
    with pytest.raises(ValueError, match="must be .H, W. of one size"):
        evaluate(bad, good, good)


def test_too_small_a_picture_for_vif_is_refused():
    tiny = picture(0, (40, 40))
    with pytest.raises(ValueError, match="65 x 65"):
        vif(tiny, tiny, tiny)


@pytest.mark.parametrize("data_range", [255.0, 2.0])
def test_ssim_is_wang_s_formula_at_either_data_range(data_range):
    fused, ir, vi = (picture(seed, (16, 18)).astype(np.float64) for seed in range(3))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    total = 0.0
    for source in (ir, vi):
        values = []
        for y in range(10):
            for x in range(12):
                a, b = (image[y : y + 7, x : x + 7].ravel() for image in (fused, source))
                (va, cov), (_, vb) = np.cov(a, b)
                top = (2 * a.mean() * b.mean() + c1) * (2 * cov + c2)
                values.append(top / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (va + vb + c2)))
        total += np.mean(values)
    assert ssim(fused, ir, vi, data_range) == pytest.approx(total, abs=1e-9)


def test_ssim_at_a_data_range_of_two_is_lower_where_windows_are_flat(shared_data, reference):
    """On real pairs the papers' values near 1.0 belong to it, and those near 1.4 to 255."""
    values = {255.0: [], 2.0: []}
    for key in reference:
        peer, stem = key.split("/")
        if peer in ("CDDFuse", "SeAFusion"):
            fused = cv2.imread(str(shared_data / "peers/reference" / peer / f"{stem}.png"), 0)
            for data_range, found in values.items():
                found.append(ssim(fused, *read_pair(shared_data, stem), data_range))
    assert 0.8 < np.mean(values[2.0]) < 1.1 < 1.2 < np.mean(values[255.0])
