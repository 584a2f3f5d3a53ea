# SPDX-License-Identifier: AGPL-3.0-only
"""Objects followed from frame to frame: ByteTrack (Zhang et al., ECCV 2022) in numpy.

A track predicts its box by a constant velocity. Strong detections are matched with all tracks
first, then weak ones with the tracks that are left, so that an object that fades, as behind smoke,
keeps its number. The packages that track either need torch, an older numpy, or a second OpenCV.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fusion_ros.frame.detector import Detection

__all__ = ["Tracker"]

_RATE = 30.0
"""Frames per second of the paper, in whose frames the spread of a motion is given."""
_POSITION, _VELOCITY = 1 / 20, 1 / 160
"""Standard deviation of position and velocity for each frame, of the object's height."""
_NEAR, _NEAR_WEAK, _NEAR_NEW = 0.2, 0.5, 0.3
"""Least IoU of a strong detection with a track, of a weak one, of one with a track of one frame."""


class Tracker:
    """Gives detections of one camera the numbers of their objects.

    A new object has no number in its first frame; it gets one when the next frame confirms it. Of
    each class, boxes are matched by their overlap with the predictions, the largest first.

    Args:
        strong: share of the way from the detector's lowest score to 1 from which a detection
            begins a track; weaker ones only continue one.
        remember_s: for how long an object may be out of sight and keep its number.
    """

    def __init__(self, strong: float = 0.25, remember_s: float = 1.0) -> None:
        self.strong, self.remember_s = strong, remember_s
        self._numbers = itertools.count(1)
        self.clear()

    def clear(self) -> None:
        """Forget all objects; numbers go on."""
        self._mean = np.zeros((0, 8))  # centre, width, height, and their changes a frame
        self._spread = np.zeros((0, 4, 2, 2))  # covariance of each of the four with its change
        self._class = np.zeros(0, np.int64)
        self._number = np.zeros(0, np.int64)  # 0: seen in one frame only
        self._seen = np.zeros(0)
        self._now: float | None = None

    def update(
        self, detections: Sequence[Detection], seconds: float, lowest: float = 0.0
    ) -> list[Detection]:
        """Return the detections in their order, with `track_id` where an object is known.

        Args:
            seconds: time of the image. Time that runs backwards, as of a bag that starts again,
                forgets all objects.
            lowest: score below which the detector reports nothing.
        """
        if self._now is not None and seconds < self._now:
            self.clear()
        self._predict(0.0 if self._now is None else (seconds - self._now) * _RATE)
        self._now = seconds
        boxes = np.array(
            [(d.x + d.width / 2, d.y + d.height / 2, d.width, d.height) for d in detections], float
        ).reshape(-1, 4)
        kinds = np.array([d.class_id for d in detections], np.int64)
        strong = np.array([d.score for d in detections]) >= lowest + self.strong * (1 - lowest)
        strong = strong.reshape(-1)
        overlap = _iou(boxes, self._mean[:, :4]) * (kinds[:, None] == self._class[None])
        known = self._number > 0
        recent = known & (self._seen >= self._seen.max(initial=0.0))
        owner = np.full(len(boxes), -1)
        for which, tracks, least in (
            (strong, known, _NEAR),
            (~strong, recent, _NEAR_WEAK),
            (strong, ~known, _NEAR_NEW),
        ):
            free = which & (owner < 0)
            left = tracks.copy()
            left[owner[owner >= 0]] = False
            for box, track in _largest_first(overlap * free[:, None] * left[None], least):
                owner[box] = track
        matched = owner >= 0
        self._correct(owner[matched], boxes[matched])
        for track in owner[matched]:
            if not self._number[track]:
                self._number[track] = next(self._numbers)
        self._seen[owner[matched]] = seconds
        result = [
            replace(d, track_id=int(self._number[track])) if track >= 0 else d
            for d, track in zip(detections, owner)
        ]
        # An object of one frame that the next does not show was none.
        kept = np.where(
            self._number > 0, seconds - self._seen <= self.remember_s, self._seen == seconds
        )
        self._keep(kept)
        self._begin(boxes[strong & ~matched], kinds[strong & ~matched], seconds)
        return result

    def _predict(self, frames: float) -> None:
        height = np.maximum(self._mean[:, 3], 1.0)
        self._mean[:, :4] += frames * self._mean[:, 4:]
        self._mean[:, 2:4] = np.maximum(self._mean[:, 2:4], 1.0)
        move = np.array([[1.0, frames], [0.0, 1.0]])
        self._spread = move @ self._spread @ move.T
        noise = (np.array([_POSITION, _VELOCITY])[None] * height[:, None]) ** 2 * frames
        self._spread[:, :, 0, 0] += noise[:, None, 0]
        self._spread[:, :, 1, 1] += noise[:, None, 1]

    def _correct(self, tracks: np.ndarray, boxes: np.ndarray) -> None:
        """Kalman update; the four numbers of a box are independent of each other."""
        mean, spread = self._mean[tracks], self._spread[tracks]
        noise = (_POSITION * np.maximum(boxes[:, 3], 1.0))[:, None] ** 2
        gain = spread[:, :, :, 0] / (spread[:, :, 0, 0] + noise)[:, :, None]
        surprise = boxes - mean[:, :4]
        mean[:, :4] += gain[:, :, 0] * surprise
        mean[:, 4:] += gain[:, :, 1] * surprise
        self._mean[tracks] = mean
        self._spread[tracks] = spread - gain[..., None] * spread[:, :, None, 0, :]

    def _begin(self, boxes: np.ndarray, kinds: np.ndarray, seconds: float) -> None:
        height = np.maximum(boxes[:, 3], 1.0)
        spread = np.zeros((len(boxes), 4, 2, 2))
        spread[:, :, 0, 0] = ((2 * _POSITION * height) ** 2)[:, None]
        spread[:, :, 1, 1] = ((10 * _VELOCITY * height) ** 2)[:, None]
        self._mean = np.vstack((self._mean, np.hstack((boxes, np.zeros_like(boxes)))))
        self._spread = np.concatenate((self._spread, spread))
        self._class = np.concatenate((self._class, kinds))
        self._number = np.concatenate((self._number, np.zeros(len(boxes), np.int64)))
        self._seen = np.concatenate((self._seen, np.full(len(boxes), seconds)))

    def _keep(self, kept: np.ndarray) -> None:
        self._mean, self._spread = self._mean[kept], self._spread[kept]
        self._class, self._number = self._class[kept], self._number[kept]
        self._seen = self._seen[kept]


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Overlap of each of N boxes with each of M, centre and size, `[N, M]`."""
    low = np.maximum(*np.broadcast_arrays(_low(first)[:, None], _low(second)[None]))
    high = np.minimum(*np.broadcast_arrays(_high(first)[:, None], _high(second)[None]))
    common = (high - low).clip(0).prod(2)
    areas = first[:, None, 2:4].prod(2) + second[None, :, 2:4].prod(2) - common
    return common / np.maximum(areas, 1e-9)


def _low(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, :2] - boxes[:, 2:4] / 2


def _high(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, :2] + boxes[:, 2:4] / 2


def _largest_first(overlap: np.ndarray, least: float) -> list[tuple[int, int]]:
    """Pairs of a row and a column, each used once, by falling overlap down to `least`."""
    pairs: list[tuple[int, int]] = []
    rows, columns = np.nonzero(overlap >= least)
    order = np.argsort(-overlap[rows, columns], kind="stable")
    used_rows, used_columns = set(), set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist()):
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            pairs.append((row, column))
    return pairs
