# SPDX-License-Identifier: AGPL-3.0-only
"""Still pairs with exact masks: four kinds of scene in which fusion fails, and ordinary ones.

`render("glare", seed=3, size=Size(320, 240))` gives one pair: thermal and visible picture of
one camera's pixels, and every object that either of them shows, as mask and box.

glare  a low sun or the head lamps of a car blind the visible; persons in it are clear in thermal
snow   dark coats on snow: bright in thermal, dark in visible
faint  at night, with 8-bit thermal without gain control: all of it within some 20 grey levels
noon   hot road: persons are no warmer than it, or colder, and clear in the visible (variant
       `road`); a bright wall behind persons in light clothes, who are clear in thermal (`wall`)

The ordinary kinds are `day`, `dusk`, `night` and `smoke`.

A picture is a pure function of kind, seed and size. `BLOCK` seeds in a row have the same street,
camera and light; only persons and vehicles differ. So training and validation take seeds of
different blocks, for example from 0 and from 100000 on.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import log, pi

import cv2
import numpy as np

from fusion_ros.cameras.street import scene
from fusion_ros.cameras.street.backdrop import Backdrop
from fusion_ros.cameras.street.scene import PLAIN, CameraModel, Climate, Moment, Street, Weather
from fusion_ros.cameras.street.simulated import SimulatedRgb, SimulatedThermal
from fusion_ros.size import Size

__all__ = ["BLOCK", "CLASSES", "KINDS", "ORDINARY", "Scene", "Target", "render", "variant"]

KINDS = ("glare", "snow", "faint", "noon")
ORDINARY = ("day", "dusk", "night", "smoke")
CLASSES = ("person", "bicycle", "car", "bus")
BLOCK = 5
VARIANTS = {"glare": ("sun", "headlamps"), "noon": ("road", "wall")}
CLEAR = 15.0
"""Least contrast of an object, or of a third of it, that counts as visible, in grey levels."""
_LEAST_PIXELS, _LEAST_SHARE = 24, 0.3
_ATTEMPTS = 6
_CLASS_OF = {"person": 0, "bicycle": 1, "car": 2, "truck": 2, "bus": 3}


@dataclass(frozen=True)
class Target:
    """One object that at least one of the cameras shows.

    `box` is (left, top, right, bottom) in pixels, right and bottom outside, tight around the
    pixels that show the object. Contrast is the object's mean less that of its surroundings, in
    grey levels. `thermal_shown` and `visible_shown` are the largest contrast, without its sign, of
    the object as a whole and of its upper, middle and lower third, each with what is beside it: a
    white shirt over dark trousers shows, although both together may have the mean of the
    surroundings. Thermal is measured on the picture stretched to its full range, so that a faint
    one counts as what gain control would make of it.
    """

    name: str
    kind: str  # one of CLASSES
    box: tuple[int, int, int, int]
    share: float  # of the object, what is in the picture and not hidden, 0..1
    distance: float  # metres
    thermal_contrast: float
    visible_contrast: float
    thermal_shown: float
    visible_shown: float

    @property
    def in_thermal(self) -> bool:
        """Whether the thermal picture shows the object."""
        return self.thermal_shown >= CLEAR

    @property
    def in_visible(self) -> bool:
        """Whether the visible picture shows the object."""
        return self.visible_shown >= CLEAR


@dataclass(frozen=True)
class Scene:
    """A registered pair of pictures and what is in it."""

    kind: str
    variant: str  # '' where the kind has one only
    seed: int
    thermal: np.ndarray  # (H, W) uint8
    visible: np.ndarray  # (H, W, 3) uint8 BGR
    masks: np.ndarray  # (H, W) uint8: 0, or the place in `targets` + 1
    targets: tuple[Target, ...]

    def mask(self, index: int) -> np.ndarray:
        """Pixels (H, W) bool that show `targets[index]`."""
        return self.masks == index + 1

    @property
    def boxes(self) -> np.ndarray:
        """Boxes (N, 4) float32 of the targets: left, top, right, bottom in pixels."""
        return np.array([t.box for t in self.targets], np.float32).reshape(-1, 4)

    @property
    def classes(self) -> np.ndarray:
        """Classes (N,) int64 of the targets, places in `CLASSES`."""
        return np.array([CLASSES.index(t.kind) for t in self.targets], np.int64)


def render(kind: str, seed: int, size: Size = Size(640, 480)) -> Scene:
    """The pair of a kind and a seed; the same arguments give the same pixels.

    Raises ValueError for an unknown kind, a negative seed or a size under 32x32.
    """
    if kind not in KINDS + ORDINARY:
        raise ValueError(f"kind '{kind}': expected one of {', '.join(KINDS + ORDINARY)}")
    if seed < 0:
        raise ValueError(f"seed {seed}: expected 0 or more")
    view = _view(kind, seed // BLOCK, Size(*size))
    best, most = None, -1
    for attempt in range(_ATTEMPTS):
        rng = _rng(kind, seed, 1 + attempt)
        found = view.shoot(seed, rng)
        count = sum(map(_FAILURE.get(view.key, lambda t: True), found.targets))
        if count > most:
            best, most = found, count
        if count >= 2:
            break
    return best


def variant(kind: str, seed: int) -> str:
    """Which variant of the kind a seed shows, '' where there is one only."""
    choices = VARIANTS.get(kind, ("",))
    return choices[seed // BLOCK % len(choices)]


# For one target: whether it shows what its kind is made for.
_FAILURE: dict[str, Callable[[Target], bool]] = {
    "glare": lambda t: t.kind == "person" and t.in_thermal and not t.in_visible,
    "snow": lambda t: (
        t.kind == "person" and t.thermal_contrast > CLEAR and t.visible_contrast < -CLEAR
    ),
    "faint": lambda t: t.kind == "person" and t.in_thermal and not t.in_visible,
    "road": lambda t: t.kind == "person" and t.in_visible and t.thermal_contrast < CLEAR,
    "wall": lambda t: t.kind == "person" and t.in_thermal and not t.in_visible,
}


def _rng(kind: str, seed: int, salt: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(kind.encode()), seed, salt])


# --- one street in one light -----------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    kind: str
    variant: str
    rgb: SimulatedRgb
    thermal: SimulatedThermal
    weather: Weather

    @property
    def key(self) -> str:
        """Name of the failure that the pair is to show."""
        return self.variant if self.kind == "noon" else self.kind

    def shoot(self, seed: int, rng: np.random.Generator) -> Scene:
        now = _Stage(self, rng).moment()
        time_s = float(rng.uniform(0, 1000))
        visible = self.rgb.draw(now, time_s)
        frame = self.thermal.draw(now, time_s)
        stretched = _stretched(frame)
        thermal = frame if frame.dtype == np.uint8 else stretched
        labels, truths = self.rgb.labels(now)
        grey = cv2.cvtColor(visible, cv2.COLOR_BGR2GRAY)
        masks, targets = np.zeros(labels.shape, np.uint8), []
        for index, truth in enumerate(truths, start=1):
            mask = labels == index
            if mask.sum() < _LEAST_PIXELS or truth.visible < _LEAST_SHARE:
                continue
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            (thermal_contrast, thermal_shown), (visible_contrast, visible_shown) = _contrasts(
                (stretched, grey), mask, labels, box
            )
            target = Target(
                truth.name,
                CLASSES[_CLASS_OF[truth.kind]],
                tuple(map(int, box)),
                truth.visible,
                truth.distance,
                thermal_contrast,
                visible_contrast,
                thermal_shown,
                visible_shown,
            )
            if target.in_thermal or target.in_visible:
                targets.append(target)
                masks[mask] = len(targets)
        return Scene(self.kind, self.variant, seed, thermal, visible, masks, tuple(targets))


def _stretched(frame: np.ndarray) -> np.ndarray:
    """Thermal counts (H, W) of 8 or 16 bits as a camera's own gain control shows them, uint8."""
    low, high = np.percentile(frame, (0.5, 99.5))
    return np.clip(np.rint((frame - low) * (255 / max(high - low, 1))), 0, 255).astype(np.uint8)


def _contrasts(pictures: tuple, mask: np.ndarray, labels: np.ndarray, box: tuple) -> list:
    """Contrast of the object, and the largest of it and its thirds, for each of the pictures.

    The surroundings are a ring of 0.4 of the object's shorter side, without other objects.
    """
    reach = max(3, round(0.4 * min(box[2] - box[0], box[3] - box[1])))
    top, left = max(0, box[1] - reach), max(0, box[0] - reach)
    area = slice(top, box[3] + reach), slice(left, box[2] + reach)
    own, crops = mask[area], [picture[area].astype(np.float32) for picture in pictures]
    near = cv2.dilate(own.astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8)) > 0
    touched = cv2.dilate((labels[area] > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    ring = near & ~touched
    if not ring.any():
        return [(0.0, 0.0)] * len(crops)
    whole = [float(crop[own].mean() - crop[ring].mean()) for crop in crops]
    largest = [abs(value) for value in whole]
    edges = np.linspace(box[1] - top, box[3] - top, 4).round().astype(int)
    for start, end in zip(edges, edges[1:]):
        part, beside = own[start:end], ring[start:end]
        if min(part.sum(), beside.sum()) < _LEAST_PIXELS // 3:
            continue
        for index, crop in enumerate(crops):
            rows = crop[start:end]
            value = abs(float(rows[part].mean() - rows[beside].mean()))
            largest[index] = max(largest[index], value)
    return list(zip(whole, largest))


@lru_cache(maxsize=4)
def _view(kind: str, block: int, size: Size) -> _View:
    rng = _rng(kind, block, 0)
    which = variant(kind, block * BLOCK)
    name = "headlamps" if which == "headlamps" else kind
    camera = CameraModel.from_fov(*size, float(rng.uniform(46, 68)))
    camera = replace(
        camera,
        cx=camera.cx + size.width * float(rng.uniform(-0.10, 0.06)),
        cy=camera.cy + size.height * float(rng.uniform(-0.08, 0.06)),
    )
    climate = _climate(name, which, rng)
    street_seed = int(rng.integers(1 << 30))
    street = Street.of(street_seed)
    if which == "wall":
        paint = rng.uniform(0.62, 0.78) * np.array([0.93, 0.98, 1.0])
        walls = tuple(replace(b, colour=tuple(paint), style=PLAIN) for b in street.buildings)
        street = replace(street, buildings=walls)
    backdrop = Backdrop(camera, street_seed, street)
    shared = {"climates": {name: climate}, "backdrop": backdrop}
    rgb = SimulatedRgb(camera, name, street_seed, **shared)
    blur = float(rng.uniform(0.7, 1.1)) * max(1.0, size.width / 320)
    thermal = SimulatedThermal(camera, name, street_seed, **shared, blur=blur)
    backdrop.release()
    return _View(kind, which, rgb, thermal, Weather(name, name, 0.0, climate))


def _climate(name: str, which: str, rng: np.random.Generator) -> Climate:
    """The climate of a condition with the differences between one day and another."""
    base = scene.CLIMATES[name]
    shift = float(rng.uniform(-3, 3))
    warmth = {
        part: getattr(base, part) + shift for part in ("air", "road", "pavement", "wall", "foliage")
    }
    climate = replace(
        base,
        **warmth,
        sky=base.sky + shift,
        exposure=base.exposure * float(rng.uniform(0.88, 1.15)),
        noise=base.noise * float(rng.uniform(0.7, 1.4)),
        clouds=base.clouds * float(rng.uniform(0.6, 1.0)),
    )
    if name == "glare":
        # Between the rows of houses, over the end of the street.
        azimuth, elevation = rng.uniform(-0.15, 0.03), rng.uniform(0.04, 0.15)
        return replace(climate, sun_direction=(float(azimuth), float(elevation), 0.98))
    if which == "wall":  # a clear, cold morning: walls and clothes are bright, the air is not warm
        cold = -18.0
        return replace(
            climate,
            air=climate.air + cold,
            road=climate.road + cold - 8,
            pavement=climate.pavement + cold - 5,
            wall=climate.wall + cold,
            foliage=climate.foliage + cold,
            sky=climate.sky + cold,
            sun_direction=(-0.60, 0.56, -0.57),
            sunlit=4.0,
            exposure=climate.exposure * 1.35,
        )
    if name == "noon":
        hotter = float(rng.uniform(-8, 3))
        return replace(climate, road=climate.road + hotter, pavement=climate.pavement + hotter)
    if name == "snow":
        return replace(climate, winter=float(rng.uniform(0.85, 1.0)))
    return climate


# --- places of persons and vehicles ----------------------------------------------------------


class _Stage:
    """Puts persons, cyclists and vehicles where the kind needs them, and some elsewhere."""

    def __init__(self, view: _View, rng: np.random.Generator) -> None:
        self._view, self._rng = view, rng
        self._camera = view.rgb.camera
        self._persons: list = []
        self._vehicles: list = []
        self._taken: list = []  # (left, right) in pixels of persons already placed

    def moment(self) -> Moment:
        """All persons and vehicles at one moment."""
        rng, kind, which = self._rng, self._view.kind, self._view.variant
        lamps = self._traffic(dazzling=which == "headlamps")
        if which == "sun":
            x, _, z = self._view.weather.climate.sun_direction
            light = [self._camera.cx + self._camera.focal * x / z]
        else:
            light = lamps
        if kind == "glare":
            for _ in range(int(rng.integers(3, 6))):
                at = light[int(rng.integers(len(light)))]
                self._person(at + rng.normal(0, 0.09) * self._camera.width, (9, 26))
            extra = int(rng.integers(0, 3))
        elif which == "wall":
            for _ in range(int(rng.integers(3, 6))):
                self._person(None, (5, 15), zone=(2.0, 4.9), light=True)
            extra = int(rng.integers(0, 3))
        elif kind == "faint":
            for _ in range(int(rng.integers(1, 4))):  # outside the light of the lamps
                self._person(None, (4.5, 9.5), zone=(2.4, 4.9))
            extra = int(rng.integers(2, 6))
        else:
            extra = int(rng.integers(3, 8))
        for _ in range(extra):
            self._person(None, (4.5, 26), light=which == "wall")
        for _ in range(int(rng.random() < 0.5) + int(rng.random() < 0.3)):
            self._cyclist()
        return scene.arrange(self._persons, self._vehicles, self._view.weather)

    def _traffic(self, dazzling: bool) -> list:
        """Vehicles on both lanes; returns the columns of the head lamps that dazzle."""
        rng, lamps = self._rng, []
        kinds = ("hatchback", "sedan", "suv", "sedan", "van")
        z = float(rng.uniform(9, 20) if dazzling else rng.uniform(8, 30))
        while z < 60:
            x = float(rng.uniform(-6.6, -5.0))
            if dazzling or rng.random() < 0.6:
                yaw = pi + float(rng.normal(0, 0.03))
                if dazzling and not lamps:  # its beam hits the camera
                    yaw = pi + float(np.arctan2(x, z)) + float(rng.normal(0, 0.05))
                self._vehicle(_pick(rng, kinds), x, z, yaw)
                if dazzling:
                    lamps.append(self._camera.cx + self._camera.focal * x / (z - 2))
            z += float(rng.uniform(9, 22))
        z = float(rng.uniform(10, 40))
        while z < 60:
            if rng.random() < 0.6:
                self._vehicle(_pick(rng, kinds), float(rng.uniform(-3.1, -2.4)), z, 0.0)
            z += float(rng.uniform(12, 30))
        if rng.random() < 0.15:
            self._vehicle("bus", float(rng.uniform(-16, 8)), 33.6, pi / 2)
        return lamps[:1]

    def _vehicle(self, kind: str, x: float, z: float, yaw: float) -> None:
        rng = self._rng
        self._vehicles.append(
            scene.Vehicle(
                f"vehicle{len(self._vehicles)}",
                kind,
                x,
                z,
                yaw,
                scene.paint(float(rng.random())),
                float(rng.uniform(0, 6)),
                float(rng.uniform(0.5, 1.0)),
                True,
            )
        )

    def _person(
        self,
        column: float | None,
        depths: tuple,
        zone: tuple = (scene.FACADE_LEFT + 0.5, scene.FACADE_RIGHT - 0.5),
        light: bool = False,
    ) -> None:
        """A person near a column of the picture (None: anywhere), on free ground."""
        rng = self._rng
        place = self._place(column, depths, zone)
        if place is None:
            return
        walking = bool(rng.random() < 0.75)
        along = abs(place[0] - 3.4) < 2.0 and rng.random() < 0.6
        yaw = float(rng.choice((0.0, pi)) if along else rng.choice((-pi / 2, pi / 2)))
        who = scene.person(
            f"person{len(self._persons)}",
            *place,
            yaw + float(rng.normal(0, 0.25)),
            float(rng.uniform(0, 2 * pi)),
            walking,
            rng.random(7).tolist(),
        )
        if light:
            shade = float(rng.uniform(0.48, 0.66))
            tint = np.array([0.90, 0.97, 1.0]) + rng.normal(0, 0.03, 3)
            who = replace(
                who,
                top=tuple(shade * tint),
                trousers=tuple(0.9 * shade * tint),
                bag=False,
            )
        self._persons.append(who)

    def _cyclist(self) -> None:
        rng = self._rng
        place = self._place(None, (6, 22), (-9.0, 1.0))
        if place is None:
            return
        yaw = float(rng.choice((0.0, pi, pi / 2, -pi / 2)) + rng.normal(0, 0.2))
        name = f"cyclist{len(self._persons)}"
        rider, bicycle = scene.cyclist(
            name, *place, yaw, float(rng.uniform(0, 9)), rng.random(7).tolist()
        )
        self._persons.append(rider)
        self._vehicles.append(bicycle)

    def _place(self, column: float | None, depths: tuple, zone: tuple) -> tuple | None:
        """Free ground (x, z) within the zone of x that the picture shows, or None."""
        rng, camera = self._rng, self._camera
        for _ in range(30):
            z = float(np.exp(rng.uniform(log(depths[0]), log(depths[1]))))
            half = 0.30 * camera.focal / z
            u = float(rng.uniform(half, camera.width - half)) if column is None else column
            x = (u - camera.cx) / camera.focal * z
            if not zone[0] <= x <= zone[1]:
                if column is not None:
                    column += float(rng.normal(0, 0.04)) * camera.width
                continue
            if any(left < u + half and u - half < right for left, right in self._taken):
                continue
            if any(self._runs_over(v, x, z) for v in (*self._vehicles, *self._parked())):
                continue
            self._taken.append((u - 0.7 * half, u + 0.7 * half))
            return x, z
        return None

    def _parked(self) -> tuple:
        return self._view.rgb.street.parked

    @staticmethod
    def _runs_over(vehicle, x: float, z: float) -> bool:
        length = scene.VEHICLE_LENGTH.get(getattr(vehicle, "kind", ""), 1.8)
        long, wide = abs(np.cos(vehicle.yaw)), abs(np.sin(vehicle.yaw))
        reach_z = 0.5 * (length * long + 2.0 * wide) + 0.4
        reach_x = 0.5 * (length * wide + 2.0 * long) + 0.4
        return abs(x - vehicle.x) < reach_x and abs(z - vehicle.z) < reach_z


def _pick(rng: np.random.Generator, choices: tuple):
    return choices[int(rng.integers(len(choices)))]
