# SPDX-License-Identifier: AGPL-3.0-only
"""Pairs of the simulated cameras and their metrics by independent implementations.

    python test/models/evaluation/golden.py           # writes test/data/ again

The figures are computed with scipy and scikit-learn, in the form in which the metrics are usually
published, and not with the code under test: entropy, mutual information and correlations by library
functions, VIF by full two-dimensional convolutions (Sheikh and Bovik's vifp_mscale), SSIM by window
sums, Qabf by the formulas of Xydeas and Petrovic pixel by pixel. The pictures are drawn by
`fusion_ros.cameras.street` at 160x120; the fused image is .6 thermal + .4 visible.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np

FOLDER = Path(__file__).resolve().parents[2] / "data"
SCENES = ("day", "night")


def read(kind: str, scene: str) -> np.ndarray:
    """Luminance of a shipped picture, `(H, W)` uint8."""
    return cv2.imread(str(FOLDER / kind / f"{scene}.png"), cv2.IMREAD_GRAYSCALE)


def fuse(ir: np.ndarray, vi: np.ndarray) -> np.ndarray:
    """Fused image of the figures, `(H, W)` uint8."""
    return np.rint(0.6 * ir.astype(np.float64) + 0.4 * vi).astype(np.uint8)


def figures(fused: np.ndarray, ir: np.ndarray, vi: np.ndarray) -> dict[str, float]:
    """All metrics of one fused image by the independent implementations."""
    from scipy.stats import entropy, pearsonr
    from sklearn.metrics import mutual_info_score

    f, i, v = (x.astype(float) for x in (fused, ir, vi))
    rows, columns = f[1:] - f[:-1], f[:, 1:] - f[:, :-1]
    gy, gx = np.gradient(f)
    mse = (((f - i) ** 2).mean() + ((f - v) ** 2).mean()) / 2

    def correlated(a, b):
        return pearsonr(a.ravel(), b.ravel())[0]

    return {
        "EN": entropy(np.bincount(fused.ravel(), minlength=256), base=2),
        "SD": math.sqrt(((f - f.mean()) ** 2).mean()),
        "SF": math.sqrt((rows**2).mean() + (columns**2).mean()),
        "AG": np.sqrt((gx**2 + gy**2) / 2).mean(),
        "MI": sum(mutual_info_score(fused.ravel(), x.ravel()) for x in (ir, vi)),
        "SCD": correlated(i, f - v) + correlated(v, f - i),
        "VIF": vifp(i, f) + vifp(v, f),
        "Qabf": xydeas_petrovic(f, i, v),
        "SSIM": ssim_7x7(f, i) + ssim_7x7(f, v),
        "PSNR": 10 * math.log10(255**2 / mse),
        "CC": (correlated(i, f) + correlated(v, f)) / 2,
    }


def vifp(source: np.ndarray, fused: np.ndarray, noise: float = 2.0) -> float:
    """Pixel-domain VIF of an image to its source over four scales (vifp_mscale)."""
    from scipy.signal import convolve2d

    kept = there = 0.0
    for scale in range(1, 5):
        size = 2 ** (5 - scale) + 1
        axis = np.arange(size) - size // 2
        window = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * (size / 5) ** 2))
        window /= window.sum()

        def mean(x, window=window):
            return convolve2d(x, window, mode="valid")

        if scale > 1:
            source, fused = mean(source)[::2, ::2], mean(fused)[::2, ::2]
        m_s, m_f = mean(source), mean(fused)
        s = np.maximum(mean(source * source) - m_s * m_s, 0)
        t = np.maximum(mean(fused * fused) - m_f * m_f, 0)
        st = mean(source * fused) - m_s * m_f
        g = st / (s + 1e-10)
        rest = t - g * st
        g[s < 1e-10] = 0
        rest[s < 1e-10] = t[s < 1e-10]
        s[s < 1e-10] = 0
        g[t < 1e-10] = 0
        rest[t < 1e-10] = 0
        rest[g < 0] = t[g < 0]
        g[g < 0] = 0
        rest[rest <= 1e-10] = 1e-10
        kept += np.log10(1 + g * g * s / (rest + noise)).sum()
        there += np.log10(1 + s / noise).sum()
    return kept / there


def ssim_7x7(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM with uniform 7x7 windows and sample covariances, mean over all whole windows."""
    windows = [np.lib.stride_tricks.sliding_window_view(x, (7, 7)) for x in (a, b)]
    x, y = (w.reshape(*w.shape[:2], 49) for w in windows)
    m_x, m_y = x.mean(2), y.mean(2)
    covariance = ((x - m_x[..., None]) * (y - m_y[..., None])).sum(2) / 48
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * m_x * m_y + c1) * (2 * covariance + c2)
    return float(
        (top / ((m_x**2 + m_y**2 + c1) * (x.var(2, ddof=1) + y.var(2, ddof=1) + c2))).mean()
    )


def xydeas_petrovic(fused: np.ndarray, *sources: np.ndarray) -> float:
    """Qabf, pixel by pixel."""
    from scipy.signal import convolve2d

    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], float)

    def edges(x):
        gx, gy = convolve2d(x, kernel, mode="same"), convolve2d(x, kernel.T, mode="same")
        angles = [math.atan(b / a) if a else math.pi / 2 for a, b in zip(gx.flat, gy.flat)]
        return np.hypot(gx, gy).ravel(), np.array(angles)

    strength_f, angle_f = edges(fused)
    total = weights = 0.0
    for source in sources:
        for g_a, a_a, g_f, a_f in zip(*edges(source), strength_f, angle_f):
            ratio = g_f / g_a if g_a > g_f else (g_f if g_a == g_f else g_a / g_f)
            align = 1 - abs(a_a - a_f) / (math.pi / 2)
            kept_g = 0.9994 / (1 + math.exp(-15 * (ratio - 0.5)))
            kept_a = 0.9879 / (1 + math.exp(-22 * (align - 0.8)))
            total += kept_g * kept_a * g_a
            weights += g_a
    return total / weights


def draw() -> None:
    """Write the pictures: thermal after gain control in the visible camera's view, and visible."""
    from fusion_ros.cameras.street.scene import CameraModel, thermal_to_rgb
    from fusion_ros.cameras.street.simulated import SimulatedRgb, SimulatedThermal
    from fusion_ros.frame.registration import Registration
    from fusion_ros.frame.thermal import GainControl

    camera = CameraModel.from_fov(160, 120, 60.0)
    registration = Registration(thermal_to_rgb(rgb=camera).ravel())
    for scene in SCENES:
        counts = SimulatedThermal(scene_name=scene).render(4.0)
        thermal = registration.warp(GainControl().apply(counts), (160, 120))
        visible = SimulatedRgb(camera, scene_name=scene).render(4.0)
        for kind, image in (("ir", thermal), ("vi", visible)):
            (FOLDER / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(FOLDER / kind / f"{scene}.png"), image)


def main() -> None:
    """Write pictures and figures."""
    draw()
    values = {}
    for scene in SCENES:
        ir, vi = read("ir", scene), read("vi", scene)
        values[scene] = {k: round(float(x), 6) for k, x in figures(fuse(ir, vi), ir, vi).items()}
    (FOLDER / "metrics.json").write_text(json.dumps(values, indent=1) + "\n")
    print(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
