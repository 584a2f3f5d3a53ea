# SPDX-License-Identifier: AGPL-3.0-only
"""The street that the simulated cameras look at: a pure function of (seed, time).

This module does not draw. Two camera processes with the same seed and time have the same persons,
vehicles and light, so that their frames are a registered pair.

World frame: metres, x right, y up, z forward, origin on the ground below the cameras. Both
cameras share one optical centre `CAMERA_HEIGHT` above it and look along +z without rotation, so
that one homography relates their pixels at every depth.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from math import hypot, pi, radians, tan

import numpy as np

CONDITIONS = ("day", "dusk", "night", "glare", "smoke", "headlamps", "snow", "faint", "noon")
SCENES = (*CONDITIONS, "tour")
CAMERA_HEIGHT = 1.5
CYCLE_S = 24.0  # one round of the traffic: through road, cross road, pedestrians
TOUR_STOP_S = 4.0  # seconds of `tour` for one condition, with the cross-fade
TOUR_FADE_S = 1.0


# --- cameras ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class CameraModel:
    """Pinhole camera without distortion; lengths in pixels, pixel centres at integers."""

    width: int
    height: int
    focal: float
    cx: float
    cy: float

    @classmethod
    def from_fov(cls, width: int, height: int, fov_deg: float) -> CameraModel:
        """Camera of `fov_deg` horizontal field of view, principal point in the middle."""
        if width < 32 or height < 32:
            raise ValueError(f"camera of {width}x{height} pixels: expected at least 32x32")
        if not 10.0 <= fov_deg <= 120.0:
            raise ValueError(f"field of view {fov_deg} degrees: expected 10 to 120")
        focal = 0.5 * width / tan(radians(fov_deg) / 2)
        return cls(width, height, focal, (width - 1) / 2, (height - 1) / 2)

    @property
    def matrix(self) -> np.ndarray:
        """Intrinsics K, (3, 3) float64."""
        return np.array([[self.focal, 0, self.cx], [0, self.focal, self.cy], [0, 0, 1.0]])

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (..., 3) in front of the camera -> pixels (..., 2)."""
        scale = self.focal / points[..., 2]
        return np.stack(
            [self.cx + points[..., 0] * scale, self.cy + (CAMERA_HEIGHT - points[..., 1]) * scale],
            axis=-1,
        )


RGB_CAMERA = CameraModel.from_fov(640, 480, 60.0)
THERMAL_CAMERA = CameraModel.from_fov(320, 256, 66.0)


def thermal_to_rgb(
    thermal: CameraModel = THERMAL_CAMERA, rgb: CameraModel = RGB_CAMERA
) -> np.ndarray:
    """Ground-truth homography (3, 3): thermal pixel -> RGB pixel, exact at every depth."""
    return rgb.matrix @ np.linalg.inv(thermal.matrix)


# --- light and temperature -------------------------------------------------------------------


@dataclass(frozen=True)
class Climate:
    """Light and temperatures of one condition. Colours are linear BGR, temperatures Celsius."""

    ambient: tuple  # light from the whole sky
    sun: tuple  # light from `sun_direction`
    sun_direction: tuple  # towards the sun
    sky_low: tuple  # sky radiance at the horizon
    sky_high: tuple  # ... and overhead
    clouds: float  # 0 none .. 1 heavy
    lamps: float  # street lamps, windows and signs: 0 off .. 1 on
    headlights: float  # 0 off .. 1 on
    exposure: float  # display = tone(exposure * radiance)
    noise: float  # standard deviation of the RGB noise, in counts of 255
    haze: float  # share of haze per metre
    smoke: float  # 0 clear .. 1 RGB blocked
    glare: float  # 0 none .. 1 RGB blinded by a low sun
    air: float  # temperatures
    road: float
    pavement: float
    wall: float
    sunlit: float  # extra of surfaces in the sun
    foliage: float
    sky: float  # at the horizon; overhead it is 6 K colder
    dazzle: float = 0.0  # 0 none .. 1 RGB blinded by the head lamps of oncoming vehicles
    snow: float = 0.0  # share of the ground, of trees and of parked vehicles under snow
    winter: float = 0.0  # clothes: 0 thin, of any colour .. 1 thick and dark

    def blend(self, other: Climate, share: float) -> Climate:
        """This climate with `share` of another mixed in."""
        if share <= 0 or other is self:
            return self
        mixed = {}
        for field in fields(self):
            a, b = getattr(self, field.name), getattr(other, field.name)
            if isinstance(a, tuple):
                mixed[field.name] = tuple(x + (y - x) * share for x, y in zip(a, b))
            else:
                mixed[field.name] = a + (b - a) * share
        return replace(self, **mixed)


_DAY = Climate(
    ambient=(0.37, 0.31, 0.27),
    sun=(0.95, 1.16, 1.28),
    sun_direction=(-0.50, 0.74, -0.45),
    sky_low=(0.98, 0.84, 0.70),
    sky_high=(0.66, 0.34, 0.15),
    clouds=0.9,
    lamps=0.0,
    headlights=0.0,
    exposure=1.15,
    noise=2.0,
    haze=0.0013,
    smoke=0.0,
    glare=0.0,
    air=15.0,
    road=14.5,
    pavement=14.0,
    wall=14.0,
    sunlit=4.0,
    foliage=12.0,
    sky=10.0,
)
_DUSK = replace(
    _DAY,
    ambient=(0.150, 0.105, 0.092),
    sun=(0.0, 0.0, 0.0),
    sky_low=(0.24, 0.36, 0.66),
    sky_high=(0.22, 0.115, 0.075),
    clouds=0.9,
    lamps=0.75,
    headlights=0.8,
    exposure=1.7,
    noise=4.0,
    haze=0.0016,
    air=12.0,
    road=12.5,
    pavement=11.5,
    wall=12.0,
    sunlit=1.5,
    foliage=9.5,
    sky=7.0,
)
_NIGHT = replace(
    _DAY,
    ambient=(0.0016, 0.0010, 0.0008),
    sun=(0.0, 0.0, 0.0),
    sky_low=(0.012, 0.010, 0.011),
    sky_high=(0.0040, 0.0020, 0.0016),
    clouds=0.6,
    lamps=1.0,
    headlights=1.0,
    exposure=1.6,
    noise=6.0,
    haze=0.0016,
    air=6.0,
    road=6.5,
    pavement=5.5,
    wall=6.5,
    sunlit=0.0,
    foliage=4.0,
    sky=1.0,
)
_GLARE = replace(
    _DAY,
    ambient=(0.22, 0.24, 0.28),
    sun=(0.16, 0.34, 0.52),
    sun_direction=(-0.10, 0.16, 0.98),
    sky_low=(0.75, 1.00, 1.30),
    sky_high=(0.50, 0.42, 0.38),
    clouds=0.5,
    headlights=0.3,
    exposure=1.05,
    noise=2.0,
    haze=0.0045,
    glare=1.0,
    air=16.0,
    road=15.5,
    pavement=15.0,
    wall=15.0,
    sunlit=3.0,
    foliage=13.0,
    sky=10.0,
)
_SMOKE = replace(
    _DAY,
    ambient=(0.36, 0.35, 0.34),
    sun=(0.10, 0.12, 0.14),
    sky_low=(0.62, 0.62, 0.62),
    sky_high=(0.45, 0.40, 0.36),
    clouds=1.0,
    noise=2.5,
    haze=0.0080,
    smoke=1.0,
    air=17.0,
    road=16.0,
    pavement=15.5,
    wall=15.5,
    sunlit=2.0,
    foliage=13.5,
    sky=11.5,
)
_HEADLAMPS = replace(_NIGHT, dazzle=1.0, air=9.0, road=10.0, pavement=9.0, wall=9.5, sky=3.0)
_SNOW = replace(
    _DAY,
    ambient=(0.66, 0.60, 0.56),
    sun=(0.22, 0.24, 0.25),
    sky_low=(0.80, 0.78, 0.76),
    sky_high=(0.62, 0.56, 0.52),
    clouds=0.7,
    exposure=1.5,
    noise=2.5,
    haze=0.0035,
    air=-3.0,
    road=-2.5,
    pavement=-4.0,
    wall=-1.0,
    sunlit=1.0,
    foliage=-4.0,
    sky=-9.0,
    snow=1.0,
    winter=1.0,
)
# A mild, wet night: everything has the air's temperature, and coats insulate well.
_FAINT = replace(
    _NIGHT,
    noise=7.0,
    haze=0.0030,
    air=9.0,
    road=9.6,
    pavement=9.2,
    wall=9.8,
    foliage=8.6,
    sky=6.0,
    winter=0.6,
)
_NOON = replace(
    _DAY,
    ambient=(0.40, 0.34, 0.30),
    sun=(1.15, 1.36, 1.48),
    sun_direction=(-0.30, 0.88, -0.37),
    clouds=0.3,
    exposure=1.15,
    haze=0.0018,
    air=33.0,
    road=42.0,
    pavement=38.0,
    wall=33.0,
    sunlit=11.0,
    foliage=32.0,
    sky=22.0,
)
CLIMATES = dict(
    zip(
        CONDITIONS,
        (_DAY, _DUSK, _NIGHT, _GLARE, _SMOKE, _HEADLAMPS, _SNOW, _FAINT, _NOON),
    )
)
EIGHT_BIT = ("faint",)
"""Scenes whose thermal camera gives 8 bits of a wide fixed range, without gain control."""


@dataclass(frozen=True)
class Weather:
    """Which conditions hold at a moment: `first`, with `share` of `second` faded in."""

    first: str
    second: str
    share: float
    climate: Climate


def weather(scene: str, time_s: float) -> Weather:
    """Condition of `scene` at a time; `tour` passes through all of them and starts over."""
    if scene in CONDITIONS:
        return Weather(scene, scene, 0.0, CLIMATES[scene])
    if scene != "tour":
        raise ValueError(f"scene '{scene}': expected one of {', '.join(SCENES)}")
    stop, within = divmod(time_s, TOUR_STOP_S)
    first = CONDITIONS[int(stop) % len(CONDITIONS)]
    second = CONDITIONS[(int(stop) + 1) % len(CONDITIONS)]
    share = max(0.0, 1 - (TOUR_STOP_S - within) / TOUR_FADE_S)
    share = share * share * (3 - 2 * share)
    return Weather(first, second, share, CLIMATES[first].blend(CLIMATES[second], share))


# --- what stands still -----------------------------------------------------------------------


PLASTER, BRICK, GLAZED, PLAIN = range(4)
"""Styles of buildings: plaster, brick, glass and concrete, plaster without shops."""


@dataclass(frozen=True)
class Building:
    """Box along the street: face at `x`, from z0 to z1, `side` -1 left or +1 right."""

    side: int
    x: float
    z0: float
    z1: float
    height: float
    colour: tuple  # linear BGR albedo
    style: int  # PLASTER, BRICK, ...
    seed: int


@dataclass(frozen=True)
class Tree:
    """A tree with its trunk at (x, z); lengths in metres."""

    x: float
    z: float
    height: float
    radius: float
    seed: int


@dataclass(frozen=True)
class Lamp:
    """A street lamp with its pole at (x, z); lengths in metres."""

    x: float
    z: float
    reach: float  # x of the lamp head minus x of the pole
    height: float = 5.6


@dataclass(frozen=True)
class Sign:
    """Upright board facing the cameras, as warm as its background and so invisible in thermal."""

    text: str
    x: float  # of the board's middle
    y: float
    z: float
    width: float
    height: float
    board: tuple  # linear BGR albedo
    ink: tuple
    pole: bool

    @property
    def round(self) -> bool:
        """Octagon or disc rather than a rectangle."""
        return self.text == "STOP" or self.text.isdigit()


KERB_LEFT, KERB_RIGHT = -10.3, 1.4
FACADE_LEFT, FACADE_RIGHT = -13.6, 5.4
CROSSROAD = (31.0, 40.5)
ZEBRA = (6.6, 9.6)
STREET_END = 104.0
LAMPS = (
    Lamp(1.75, 18.0, -1.9),
    Lamp(-10.6, 25.0, 1.9),
    Lamp(1.75, 44.0, -1.9),
    Lamp(-10.6, 54.0, 1.9),
    Lamp(1.75, 70.0, -1.9),
)
SIGNS = (
    Sign("CAFE", 4.15, 3.15, 11.5, 1.9, 0.95, (0.03, 0.04, 0.30), (0.80, 0.88, 0.92), False),
    Sign("HOTEL", 4.35, 4.6, 21.0, 1.6, 0.75, (0.42, 0.10, 0.02), (0.85, 0.90, 0.90), False),
    Sign("STOP", 2.05, 2.25, 14.2, 0.74, 0.74, (0.03, 0.03, 0.48), (0.85, 0.85, 0.85), True),
    Sign("CITY 2", -11.3, 3.3, 24.0, 3.0, 1.15, (0.40, 0.13, 0.02), (0.85, 0.85, 0.85), True),
    Sign("30", -10.75, 2.5, 29.0, 0.8, 0.8, (0.80, 0.80, 0.80), (0.02, 0.02, 0.02), True),
)
_PALETTE = (
    (0.42, 0.55, 0.62),
    (0.10, 0.16, 0.33),
    (0.50, 0.52, 0.50),
    (0.22, 0.38, 0.55),
    (0.55, 0.60, 0.60),
    (0.14, 0.20, 0.26),
    (0.40, 0.45, 0.36),
    (0.30, 0.36, 0.48),
)


@lru_cache(maxsize=4096)
def _chance(seed: int, name: str, index: int = 0, count: int = 16) -> tuple:
    """`count` random numbers in [0, 1), a function of the arguments."""
    key = [seed & 0xFFFFFFFF, zlib.crc32(name.encode()), index & 0xFFFFFFFF]
    return tuple(np.random.default_rng(key).random(count).tolist())


@dataclass(frozen=True)
class Street:
    """The still objects of a seed."""

    buildings: tuple
    trees: tuple
    parked: tuple  # of Vehicle

    @classmethod
    def of(cls, seed: int) -> Street:
        """The street of a seed."""
        buildings = []
        for side, x in ((-1, FACADE_LEFT), (1, FACADE_RIGHT)):
            for block, (start, end) in enumerate(
                ((-12.0, CROSSROAD[0] - 0.5), (CROSSROAD[1] + 0.5, STREET_END))
            ):
                z, index = start, 0
                while z < end - 1:
                    r = _chance(seed, f"building{side}{block}", index)
                    z1 = min(z + 8 + 7 * r[0], end)
                    z1 = end if end - z1 < 6 else z1
                    colour = _PALETTE[int(r[1] * len(_PALETTE))]
                    height = 3.4 * (2 + int(3.2 * r[2])) + 0.9
                    buildings.append(
                        Building(
                            side,
                            x + side * 0.25 * int(3 * r[3]),
                            z,
                            z1,
                            height,
                            colour,
                            int(r[4] * 3),
                            int(r[5] * 1e6),
                        )
                    )
                    z, index = z1, index + 1
        trees = []
        for index, (x, z) in enumerate(
            (
                (-11.2, 18.5),
                (2.3, 27.5),
                (-11.2, 46.0),
                (2.3, 50.0),
                (-11.2, 60.0),
                (2.3, 60.0),
                (-11.2, 72.0),
                (2.3, 80.0),
            )
        ):
            r = _chance(seed, "tree", index)
            trees.append(
                Tree(x + 0.3 * r[0], z, 5.2 + 1.8 * r[1], 1.7 + 0.7 * r[2], int(r[3] * 1e6))
            )
        parked = []
        places = (
            (0.35, 19.5, 0.0),
            (0.35, 25.6, 0.0),
            (0.35, 47.5, 0.0),
            (0.35, 54.0, 0.0),
            (-9.25, 20.2, pi),
            (-9.25, 26.4, pi),
            (-9.25, 44.5, pi),
            (-9.25, 51.0, pi),
            (-9.25, 57.5, pi),
        )
        for index, (x, z, yaw) in enumerate(places):
            r = _chance(seed, "parked", index)
            parked.append(
                Vehicle(
                    f"parked{index}",
                    _kind(r[0]),
                    x,
                    z,
                    yaw,
                    paint(r[1]),
                    0.0,
                    0.6 * r[2] if r[2] > 0.6 else 0.0,
                    False,
                )
            )
        return cls(tuple(buildings), tuple(trees), tuple(parked))


# --- what moves ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    """A person standing on the ground at (x, z), facing `yaw` (0 away from the cameras)."""

    name: str
    x: float
    z: float
    yaw: float
    height: float
    stride: float  # phase of the walk, radians; legs are together at 0
    walking: bool
    top: tuple  # linear BGR albedos
    trousers: tuple
    skin: tuple
    hair: tuple
    bag: bool
    insulation: float = 0.0  # share of the clothes' warmth that does not reach their outside
    riding: bool = False  # sits on a bicycle; `stride` is the phase of the pedals


@dataclass(frozen=True)
class Bicycle:
    """A bicycle with its middle over (x, z), facing `yaw` (0 away from the cameras)."""

    name: str
    x: float
    z: float
    yaw: float
    paint: tuple  # linear BGR albedo
    roll: float  # angle of the wheels, radians


@dataclass(frozen=True)
class Vehicle:
    """A vehicle with its middle over (x, z), facing `yaw` (0 away from the cameras)."""

    name: str
    kind: str  # 'hatchback', 'sedan', 'suv', 'van', 'bus'
    x: float
    z: float
    yaw: float
    paint: tuple  # linear BGR albedo
    roll: float  # angle of the wheels, radians
    warmth: float  # 0 cold .. 1 engine and tyres at working temperature
    driving: bool


VEHICLE_LENGTH = {"hatchback": 4.1, "sedan": 4.6, "suv": 4.5, "van": 5.2, "bus": 10.5}
_PAINTS = (
    (0.62, 0.62, 0.62),
    (0.03, 0.03, 0.45),
    (0.42, 0.15, 0.04),
    (0.78, 0.78, 0.76),
    (0.05, 0.05, 0.05),
    (0.22, 0.20, 0.19),
    (0.06, 0.42, 0.62),
    (0.16, 0.24, 0.06),
)
_TOPS = (
    (0.04, 0.04, 0.42),
    (0.45, 0.16, 0.05),
    (0.06, 0.45, 0.60),
    (0.60, 0.60, 0.58),
    (0.06, 0.05, 0.05),
    (0.10, 0.28, 0.08),
    (0.30, 0.10, 0.28),
    (0.20, 0.30, 0.42),
)
_TROUSERS = ((0.16, 0.07, 0.04), (0.03, 0.03, 0.03), (0.20, 0.26, 0.30), (0.10, 0.10, 0.11))
_SKINS = ((0.30, 0.42, 0.66), (0.20, 0.30, 0.52), (0.10, 0.16, 0.30))
_HAIRS = ((0.02, 0.02, 0.03), (0.05, 0.10, 0.18), (0.16, 0.27, 0.36), (0.30, 0.32, 0.33))


def _pick(choices: tuple, chance: float):
    return choices[int(chance * len(choices))]


def _kind(chance: float) -> str:
    return _pick(("hatchback", "sedan", "suv", "hatchback", "sedan", "van"), chance)


def paint(chance: float) -> tuple:
    """One of the usual colours of vehicles, linear BGR albedo, by a number in [0, 1)."""
    return _pick(_PAINTS, chance)


@dataclass(frozen=True)
class _Walk:
    """Route of a walker, repeated with another person each time."""

    name: str
    start: tuple  # (x, z)
    end: tuple
    speed: float  # m/s; 0 stands still
    period: float
    offset: float

    def at(self, seed: int, time_s: float) -> Person | None:
        distance = hypot(self.end[0] - self.start[0], self.end[1] - self.start[1])
        turn, within = divmod(time_s - self.offset, self.period)
        r = _chance(seed, self.name, int(turn))
        if self.speed and within * self.speed > distance:
            return None
        share = within * self.speed / distance if distance else 0.0
        height = 1.60 + 0.28 * r[0]
        x = self.start[0] + (self.end[0] - self.start[0]) * share
        z = self.start[1] + (self.end[1] - self.start[1]) * share
        yaw = float(np.arctan2(self.end[0] - self.start[0], self.end[1] - self.start[1]))
        if not self.speed:
            x, z = self.start
            yaw = pi + 0.35 * float(np.sin(0.5 * time_s))
        return person(
            self.name,
            x,
            z,
            yaw,
            within * self.speed * 2 * pi / (0.80 * height) + 6 * r[1],
            self.speed > 0,
            r,
        )


@dataclass(frozen=True)
class _Ride:
    """Route of a cyclist, ridden once a traffic cycle by another one each time."""

    name: str
    start: tuple  # (x, z)
    end: tuple
    speed: float
    offset: float  # start within the cycle, seconds

    def at(self, seed: int, time_s: float) -> tuple[Person, Bicycle] | None:
        distance = hypot(self.end[0] - self.start[0], self.end[1] - self.start[1])
        turn, within = divmod(time_s - self.offset, CYCLE_S)
        travelled = within * self.speed
        if travelled > distance:
            return None
        share = travelled / distance
        return cyclist(
            self.name,
            self.start[0] + (self.end[0] - self.start[0]) * share,
            self.start[1] + (self.end[1] - self.start[1]) * share,
            float(np.arctan2(self.end[0] - self.start[0], self.end[1] - self.start[1])),
            travelled,
            _chance(seed, self.name, int(turn)),
        )


def cyclist(
    name: str, x: float, z: float, yaw: float, travelled: float, chances: Sequence[float]
) -> tuple[Person, Bicycle]:
    """A rider and a bicycle at (x, z) after `travelled` metres.

    `chances` are at least seven numbers in [0, 1), which choose size and colours.
    """
    rider = person(f"{name}_rider", x, z, yaw, 0.75 * travelled / 0.34, True, chances)
    bicycle = Bicycle(f"{name}_bicycle", x, z, yaw, paint(chances[1]), travelled / 0.34)
    return replace(rider, riding=True), bicycle


def person(
    name: str,
    x: float,
    z: float,
    yaw: float,
    stride: float,
    walking: bool,
    chances: Sequence[float],
) -> Person:
    """A person whose size, colours and bag at least seven numbers in [0, 1) choose."""
    return Person(
        name,
        x,
        z,
        yaw,
        1.60 + 0.28 * chances[0],
        stride,
        walking,
        _pick(_TOPS, chances[2]),
        _pick(_TROUSERS, chances[3]),
        _pick(_SKINS, chances[4]),
        _pick(_HAIRS, chances[5]),
        chances[6] < 0.4,
    )


def dressed(person: Person, climate: Climate) -> Person:
    """The person in clothes for the climate: in winter they are darker and insulate better."""
    if climate.winter <= 0:
        return person
    dark = 1 - 0.95 * climate.winter
    return replace(
        person,
        top=tuple(dark * c for c in person.top),
        trousers=tuple(dark * c for c in person.trousers),
        insulation=0.6 * climate.winter,
    )


PERSON_IN_THE_DARK = "waiting"  # stands outside the light of the lamps
_WALKS = (
    # Across the road while the lanes are free, seconds 17 to 36 of the cycle.
    _Walk("crossing_right", (-10.6, 7.4), (2.4, 7.4), 1.30, CYCLE_S, -6.8),
    _Walk("crossing_left", (2.6, 8.9), (-10.8, 8.9), 1.25, CYCLE_S, -7.6),
    _Walk("crossing_late", (3.0, 8.2), (-10.8, 8.2), 1.50, CYCLE_S, -3.8),
    _Walk("crossing_last", (2.8, 7.8), (-10.8, 7.8), 1.35, CYCLE_S, 3.0),
    _Walk(PERSON_IN_THE_DARK, (3.65, 7.7), (3.65, 7.7), 0.0, 3600.0, 0.0),
    _Walk("towards", (2.5, 38.0), (2.5, 3.9), 1.35, 27.0, -17.0),
    _Walk("towards_next", (2.1, 24.0), (2.1, 3.4), 1.40, CYCLE_S, 2.5),
    _Walk("away", (2.9, 4.6), (3.0, 40.0), 1.25, 29.0, -3.5),
    _Walk("away_next", (2.4, 4.0), (2.8, 34.0), 1.30, 31.0, 10.5),
    _Walk("left_towards", (-11.9, 42.0), (-11.9, 17.0), 1.30, 21.0, -12.0),
    _Walk("left_away", (-12.6, 19.0), (-12.6, 60.0), 1.20, 36.0, -7.0),
    # Across the road farther away: in front of the low sun, and of head lamps at night.
    _Walk("far_crossing_right", (-9.8, 16.5), (2.2, 16.5), 1.35, 12.0, 7.2),
    _Walk("far_crossing_left", (1.9, 15.4), (-9.8, 15.4), 1.25, 12.0, -0.8),
)
_RIDES = (
    _Ride("riding_away", (0.9, 4.0), (0.2, 17.0), 3.6, 1.0),
    _Ride("riding_across", (-11.0, 12.3), (6.0, 12.3), 3.8, -3.0),
    _Ride("riding_towards", (-8.4, 40.0), (-8.4, 9.0), 4.2, 8.5),
)


@dataclass(frozen=True)
class _Drive:
    """Route of a vehicle, driven once a traffic cycle by another vehicle each time.

    A route with a halt waits after `halt_at` metres for `halt_s` seconds.
    """

    name: str
    start: tuple  # (x, z)
    end: tuple
    speed: float
    offset: float  # start within the cycle, seconds
    kinds: tuple
    halt_at: float = 0.0
    halt_s: float = 0.0

    def at(self, seed: int, time_s: float) -> Vehicle | None:
        distance = hypot(self.end[0] - self.start[0], self.end[1] - self.start[1])
        turn, within = divmod(time_s - self.offset, CYCLE_S)
        r = _chance(seed, self.name, int(turn))
        if self.halt_s:
            arrival = self.halt_at / self.speed
            within -= min(max(within - arrival, 0.0), self.halt_s)
        travelled = within * self.speed
        if travelled > distance:
            return None
        share = travelled / distance
        yaw = float(np.arctan2(self.end[0] - self.start[0], self.end[1] - self.start[1]))
        return Vehicle(
            self.name,
            _pick(self.kinds, r[0]),
            self.start[0] + (self.end[0] - self.start[0]) * share,
            self.start[1] + (self.end[1] - self.start[1]) * share,
            yaw,
            paint(r[1]),
            travelled / 0.32,
            0.75 + 0.25 * r[2],
            True,
        )


_CARS = ("hatchback", "sedan", "suv", "sedan", "van")
_DRIVES = (
    _Drive("oncoming", (-6.3, 100.0), (-6.3, 1.0), 9.0, 4.4, _CARS),
    _Drive("oncoming_second", (-6.3, 100.0), (-6.3, 1.0), 9.0, 7.0, _CARS),
    # It waits at the line while persons cross, its head lamps towards the cameras.
    _Drive("oncoming_waits", (-6.3, 100.0), (-6.3, 1.0), 9.0, 12.0, _CARS, 80.5, 10.0),
    _Drive("leaving", (-2.8, 0.0), (-2.8, 100.0), 8.5, 11.4, _CARS),
    _Drive("leaving_second", (-2.8, 0.0), (-2.8, 100.0), 8.5, 13.8, _CARS),
    _Drive("crossing_bus", (-48.0, 33.6), (34.0, 33.6), 8.0, 15.6, ("bus",)),
    _Drive("crossing_car", (32.0, 37.6), (-46.0, 37.6), 9.0, 18.5, _CARS),
    _Drive("crossing_van", (-44.0, 33.6), (34.0, 33.6), 9.0, 20.5, ("van", "suv")),
    _Drive("crossing_last", (32.0, 37.6), (-46.0, 37.6), 9.5, 0.3, _CARS),
)


@dataclass(frozen=True)
class Moment:
    """The world at one time: what moves, farthest first, and the weather."""

    persons: tuple
    vehicles: tuple  # bicycles too
    weather: Weather


def moment(seed: int, scene: str, time_s: float) -> Moment:
    """State of the world at a scene time in seconds; the same arguments, the same state."""
    now = weather(scene, time_s)
    persons = [p for p in (walk.at(seed, time_s) for walk in _WALKS) if p is not None]
    vehicles = [v for v in (drive.at(seed, time_s) for drive in _DRIVES) if v is not None]
    for pair in (ride.at(seed, time_s) for ride in _RIDES):
        if pair is not None:
            persons.append(pair[0])
            vehicles.append(pair[1])
    return arrange(persons, vehicles, now)


def arrange(persons: Iterable[Person], vehicles: Iterable, weather: Weather) -> Moment:
    """The moment of these persons, dressed for the weather, and vehicles, farthest first."""
    return Moment(
        tuple(sorted((dressed(p, weather.climate) for p in persons), key=lambda p: -p.z)),
        tuple(sorted(vehicles, key=lambda v: -v.z)),
        weather,
    )
