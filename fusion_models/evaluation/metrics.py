# SPDX-License-Identifier: AGPL-3.0-only
"""Fusion metrics of a pair and its fused image, as the evaluation of CDDFuse defines them.

Images are `(H, W)`, uint8 or floats in [0, 255], at least 65 pixels a side for VIF; histograms
round to grey levels. No metric is a goal alone: the pixel-wise maximum wins VIF, Qabf and MI on
every data set. Numpy and OpenCV only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import cv2
import numpy as np

Image = np.ndarray


@dataclass(frozen=True)
class Metrics:
    """All metrics of one fused image; see the functions of the same names.

    Attributes are lower case; :meth:`as_dict` has the names of the literature.
    """

    en: float
    sd: float
    sf: float
    ag: float
    mi: float
    scd: float
    vif: float
    qabf: float
    ssim: float
    psnr: float
    cc: float

    def as_dict(self) -> dict[str, float]:
        """Values by the field's names (EN, SD, SF, AG, MI, SCD, VIF, Qabf, SSIM, PSNR, CC)."""
        return {NAMES[key]: value for key, value in asdict(self).items()}


NAMES = {
    "en": "EN", "sd": "SD", "sf": "SF", "ag": "AG", "mi": "MI", "scd": "SCD", "vif": "VIF",
    "qabf": "Qabf", "ssim": "SSIM", "psnr": "PSNR", "cc": "CC",
}  # fmt: skip


def evaluate(fused: Image, ir: Image, vi: Image) -> Metrics:
    """All metrics of a fused image and its two sources.

    Raises:
        ValueError: the three are not `(H, W)` of one size.
    """
    _check(fused, ir, vi)
    f, i, v = (np.asarray(x, np.float64) for x in (fused, ir, vi))
    return Metrics(
        en=entropy(f), sd=standard_deviation(f), sf=spatial_frequency(f), ag=average_gradient(f),
        mi=mutual_information(f, i, v), scd=scd(f, i, v), vif=vif(f, i, v), qabf=qabf(f, i, v),
        ssim=ssim(f, i, v), psnr=psnr(f, i, v), cc=correlation(f, i, v),
    )  # fmt: skip


def entropy(fused: Image) -> float:
    """EN: Shannon entropy of the 256-bin histogram in bits, 0 to 8."""
    share = _histogram(fused) / np.size(fused)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def standard_deviation(fused: Image) -> float:
    """SD: population standard deviation in grey levels."""
    return float(np.std(fused))


def spatial_frequency(fused: Image) -> float:
    """SF: ``sqrt(mean(dx^2) + mean(dy^2))`` of neighbours in grey levels (Eskicioglu 1995)."""
    f = np.asarray(fused, np.float64)
    rows, columns = (np.square(np.diff(f, axis=axis)).mean() for axis in (0, 1))
    return float(np.sqrt(rows + columns))


def average_gradient(fused: Image) -> float:
    """AG: mean of ``sqrt((gx^2 + gy^2) / 2)``, central differences, in grey levels (Cui 2015)."""
    gy, gx = np.gradient(np.asarray(fused, np.float64))
    return float(np.sqrt((gx * gx + gy * gy) / 2.0).mean())


def mutual_information(fused: Image, ir: Image, vi: Image) -> float:
    """MI: ``I(F; ir) + I(F; vi)`` of 256-bin histograms, in nats (Qu et al. 2002)."""
    return _mutual_information(fused, ir) + _mutual_information(fused, vi)


def scd(fused: Image, ir: Image, vi: Image) -> float:
    """SCD: ``corr(F - vi, ir) + corr(F - ir, vi)``, -2 to 2 (Aslantas and Bendes 2015)."""
    f, i, v = (np.asarray(x, np.float64) for x in (fused, ir, vi))
    return _pearson(i, f - v) + _pearson(v, f - i)


def vif(fused: Image, ir: Image, vi: Image) -> float:
    """VIF: sum of the pixel-domain visual information fidelities to both sources, from 0 on.

    To a source s, over four scales: ``sum(log(1 + g^2 var_s / (var_r + 2))) / sum(log(1 + var_s /
    2))`` with ``g = cov(s, F) / var_s``, ``var_r = var_F - g cov(s, F)`` in Gaussian windows of 17,
    9, 5 and 3 pixels (Sheikh and Bovik 2006). 1 is a copy of s, more is a copy of more contrast.

    Raises:
        ValueError: less than 65 pixels a side, or unequal sizes.
    """
    _check(fused, ir, vi)
    if min(np.shape(fused)) < 65:  # next to nothing would be left of the smallest scale
        raise ValueError(f"VIF needs at least 65 x 65 pixels, got {np.shape(fused)}")
    f = np.asarray(fused, np.float64)
    sources = [np.asarray(x, np.float64) for x in (ir, vi)]
    kept, there = np.zeros(2), np.zeros(2)
    for scale in range(4):
        size = 2 ** (4 - scale) + 1
        kernel = cv2.getGaussianKernel(size, size / 5.0, cv2.CV_64F)

        def blur(x: Image, kernel=kernel, half=size // 2) -> Image:
            return cv2.sepFilter2D(x, cv2.CV_64F, kernel, kernel)[half:-half, half:-half]

        if scale:
            f, *sources = (blur(x)[::2, ::2] for x in (f, *sources))
        mean_f = blur(f)
        var_f = np.maximum(blur(f * f) - mean_f * mean_f, 0.0)
        for k, s in enumerate(sources):
            mean_s = blur(s)
            var_s = np.maximum(blur(s * s) - mean_s * mean_s, 0.0)
            cov = blur(f * s) - mean_f * mean_s
            kept_k, there_k = _information(var_s, var_f, cov)
            kept[k] += kept_k
            there[k] += there_k
    # A source without any contrast has no information to lose.
    return float(np.where(there > 0, kept / np.maximum(there, 1e-300), 1.0).sum())


def _information(var_s: Image, var_f: Image, cov: Image, noise=2.0, eps=1e-10):
    gain = cov / (var_s + eps)
    rest = var_f - gain * cov
    flat = var_s < eps
    gain[flat], rest[flat] = 0.0, var_f[flat]
    var_s = np.where(flat, 0.0, var_s)
    blank = var_f < eps
    gain[blank] = rest[blank] = 0.0
    inverse = gain < 0
    rest[inverse], gain[inverse] = var_f[inverse], 0.0
    np.maximum(rest, eps, out=rest)
    kept = np.log1p(gain * gain * var_s / (rest + noise)).sum()
    return kept, np.log1p(var_s / noise).sum()


def qabf(fused: Image, ir: Image, vi: Image) -> float:
    """Qabf: share of the sources' edges kept, 0 to 1 (Xydeas and Petrovic 2000).

    The mean over pixels and sources, weighted by the sources' Sobel strength, of
    ``0.9994 / (1 + exp(-15 (G - 0.5))) 0.9879 / (1 + exp(-22 (A - 0.8)))``; G is the ratio of the
    edges' strengths, weaker over stronger, and A one minus their angle over pi / 2.
    """
    _check(fused, ir, vi)
    strength_f, angle_f = _edges(fused)
    total = wanted = 0.0
    for source in (ir, vi):
        strength, angle = _edges(source)
        low, high = np.minimum(strength, strength_f), np.maximum(strength, strength_f)
        # Equal strengths count with their value, as in the reference evaluation.
        ratio = np.divide(low, high, out=strength.copy(), where=low != high)
        align = 1.0 - np.abs(angle - angle_f) * np.float32(2.0 / np.pi)
        kept = 0.9994 / (1.0 + np.exp(-15.0 * (ratio - 0.5)))
        kept *= 0.9879 / (1.0 + np.exp(-22.0 * (align - 0.8)))
        total += float((kept * strength).sum(dtype=np.float64))
        wanted += float(strength.sum(dtype=np.float64))
    return total / wanted if wanted else 0.0


def _edges(image: Image) -> tuple[Image, Image]:
    # Single precision is exact for the Sobel of grey levels, and twice as fast from there on.
    image = np.asarray(image, np.float32)
    gx = cv2.Sobel(image, cv2.CV_32F, 1, 0, ksize=3, borderType=cv2.BORDER_CONSTANT)
    gy = cv2.Sobel(image, cv2.CV_32F, 0, 1, ksize=3, borderType=cv2.BORDER_CONSTANT)
    # Edges have no sign: angles lie in (-pi/2, pi/2].
    angle = np.full_like(gx, np.pi / 2)
    np.divide(gy, gx, out=angle, where=gx != 0)
    np.arctan(angle, out=angle, where=gx != 0)
    return np.sqrt(gx * gx + gy * gy), angle


def ssim(fused: Image, ir: Image, vi: Image, data_range: float = 255.0) -> float:
    """SSIM: sum of the structural similarities to both sources, -2 to 2 (Wang et al. 2004).

    Uniform 7 x 7 windows, sample covariances, borders left out.

    Args:
        data_range: R of the constants ``(0.01 R)^2`` and ``(0.03 R)^2`` that keep flat windows from
            dividing by nothing. 255 is the range of the images. CDDFuse's evaluator, and the papers
            whose values lie near 1.0, let it be 2, the range of floats in scikit-image: noise in
            flat windows then counts in full, and all values are lower.
    """
    _check(fused, ir, vi)
    c1, c2, size = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2, 7
    unbiased = size * size / (size * size - 1.0)
    half = size // 2

    def mean(x: Image) -> Image:
        return cv2.blur(x, (size, size))[half:-half, half:-half]

    f = np.asarray(fused, np.float64)
    mean_f = mean(f)
    var_f = unbiased * (mean(f * f) - mean_f * mean_f)
    total = 0.0
    for source in (ir, vi):
        s = np.asarray(source, np.float64)
        mean_s = mean(s)
        var_s = unbiased * (mean(s * s) - mean_s * mean_s)
        cov = unbiased * (mean(f * s) - mean_f * mean_s)
        top = (2.0 * mean_f * mean_s + c1) * (2.0 * cov + c2)
        total += float((top / ((mean_f**2 + mean_s**2 + c1) * (var_f + var_s + c2))).mean())
    return total


def psnr(fused: Image, ir: Image, vi: Image) -> float:
    """PSNR: ``10 log10(255^2 / MSE)`` in dB, MSE the mean of those to both sources."""
    f, i, v = (np.asarray(x, np.float64) for x in (fused, ir, vi))
    mse = (np.square(f - i).mean() + np.square(f - v).mean()) / 2.0
    return float(10.0 * np.log10(255.0**2 / mse)) if mse else float("inf")


def correlation(fused: Image, ir: Image, vi: Image) -> float:
    """CC: mean of the Pearson correlations with both sources, -1 to 1."""
    return (_pearson(ir, fused) + _pearson(vi, fused)) / 2.0


def over_exposure(image: Image) -> float:
    """Share of pixels over 245, 0 to 1: what a washed-out picture has too many of."""
    return float(np.mean(np.asarray(image) > 245))


def distance(a: Image, b: Image) -> float:
    """Mean absolute difference of two images on the [0, 1] scale; small means a copy."""
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean() / 255.0)


def _check(*images: Image) -> None:
    shapes = {np.shape(x) for x in images}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(
            f"fused, ir and vi must be (H, W) of one size, got {sorted(map(str, shapes))}; "
            "give the luminance of colour images"
        )


def _histogram(image: Image) -> np.ndarray:
    return np.bincount(np.rint(image).astype(np.uint8).ravel(), minlength=256)


def _mutual_information(a: Image, b: Image) -> float:
    index = np.rint(a).astype(np.uint16).ravel() * 256 + np.rint(b).astype(np.uint16).ravel()
    joint = np.bincount(index, minlength=65536).reshape(256, 256) / np.size(a)
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / expected[seen])).sum())


def _pearson(a: Image, b: Image) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt(np.square(a).sum() * np.square(b).sum())
    return float((a * b).sum() / norm) if norm else 0.0
