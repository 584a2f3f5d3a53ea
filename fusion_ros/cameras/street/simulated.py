# SPDX-License-Identifier: AGPL-3.0-only
"""Simulated RGB and thermal cameras that look at the same moving street, with ground truth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from fusion_ros.cameras.street import scene
from fusion_ros.cameras.street.backdrop import Backdrop, add_glow
from fusion_ros.cameras.street.persons import person_facets
from fusion_ros.cameras.street.raster import (
    BEAM_COLOUR,
    beam_light,
    blend,
    facet_celsius,
    facet_colours,
    lamp_light,
    rgb_sprite,
    thermal_sprite,
)
from fusion_ros.cameras.street.scene import (
    CLIMATES,
    EIGHT_BIT,
    Bicycle,
    CameraModel,
    Climate,
    Moment,
    Person,
    Vehicle,
)
from fusion_ros.cameras.street.shapes import Facets, Light
from fusion_ros.cameras.street.vehicles import bicycle_facets, vehicle_facets

COUNTS_PER_KELVIN = 100.0  # thermal counts are hundredths of a kelvin over absolute zero
ZERO_CELSIUS = 273.15
NETD = 0.06  # temporal noise, kelvin
_BANK_SIGMA = 40.0  # counts; fine enough to be scaled down
_LIT_LAMPS = 0.3  # head lamps weaker than that light nothing
_FARTHEST = 75.0  # metres; objects beyond are too small to draw


def to_celsius(counts: np.ndarray) -> np.ndarray:
    """Thermal counts -> degrees Celsius."""
    return counts / COUNTS_PER_KELVIN - ZERO_CELSIUS


_MAKERS = {Person: person_facets, Bicycle: bicycle_facets, Vehicle: vehicle_facets}


def _actors(actors: tuple, camera: CameraModel) -> list:
    """(actor, facets) of persons, bicycles and vehicles in the picture, farthest first."""
    pairs = []
    for actor in sorted(actors, key=lambda a: -a.z):
        if actor.z > _FARTHEST or (actor.z < 1.5 and not isinstance(actor, Vehicle)):
            continue
        facets = _MAKERS[type(actor)](actor, camera)
        if facets is not None:
            pairs.append((actor, facets))
    return pairs


def _needed(scene_name: str) -> tuple:
    return scene.CONDITIONS if scene_name == "tour" else (scene_name,)


def _cross_fade(stills: dict, weather: scene.Weather) -> np.ndarray:
    """The still street in the weather of the moment, a fresh array."""
    first = stills[weather.first]
    if weather.share == 0:
        return first.copy()
    return cv2.addWeighted(first, 1 - weather.share, stills[weather.second], weather.share, 0)


def _noise_offset(time_s: float, room: int, salt: int) -> tuple:
    """Offset into the noise bank: another one for each frame, a function of the arguments."""
    key = round(time_s * 1000) * 2654435761 + salt * 40503
    key = (key ^ (key >> 15)) * 2246822519 & 0xFFFFFFFF
    return (key >> 8) % room, (key >> 20) % room


class SimulatedRgb:
    """RGB camera. `render` is a pure function of the scene time."""

    encoding = "bgr8"

    def __init__(
        self,
        camera: CameraModel = scene.RGB_CAMERA,
        scene_name: str = "tour",
        seed: int = 0,
        *,
        climates: dict[str, Climate] = CLIMATES,
        backdrop: Backdrop | None = None,
    ) -> None:
        """Light the street once for each condition of the scene.

        `climates` replaces the light and temperatures of the conditions. `backdrop` is the
        street as this camera sees it, where one was traced already; the caller releases it.
        """
        scene.weather(scene_name, 0.0)
        self.camera, self.scene_name, self.seed = camera, scene_name, seed
        self._backdrop = backdrop or Backdrop(camera, seed)
        names = _needed(scene_name)
        self._stills = {name: self._backdrop.rgb(climates[name]) for name in names}
        lit = any(climates[name].headlights > _LIT_LAMPS for name in names)
        self._beam_lit = self._backdrop.rgb(_BEAM_CLIMATE) if lit else None
        if backdrop is None:
            self._backdrop.release()
        self._sun = self._glare(climates["glare"]) if "glare" in names else None
        self._dazzle_template = (
            self._dazzle() if any(climates[name].dazzle for name in names) else None
        )
        self._noise = self._noise_bank()
        small = self._small = self._small_size()
        v = (np.arange(small[1]) * 4 + 1.5 - camera.cy) / camera.focal
        u = (np.arange(small[0]) * 4 + 1.5 - camera.cx) / camera.focal
        depth = np.where(v > 0.005, scene.CAMERA_HEIGHT / np.maximum(v, 0.005), 1e6)
        self._first_row = int(np.argmax(v > 0.02))
        self._ground_z = depth[self._first_row :, None].astype(np.float32)
        self._ground_x = (depth[:, None] * u)[self._first_row :].astype(np.float32)
        rng = np.random.default_rng([seed, 7])
        self._puffs = [self._puff(rng) for _ in range(2)]

    def render(self, time_s: float) -> np.ndarray:
        """Frame (H, W, 3) uint8 BGR at a scene time in seconds."""
        return self.draw(scene.moment(self.seed, self.scene_name, time_s), time_s)

    def draw(self, now: Moment, time_s: float) -> np.ndarray:
        """Frame (H, W, 3) uint8 BGR of a moment; the time sets smoke and noise."""
        climate = now.weather.climate
        picture = _cross_fade(self._stills, now.weather)
        lit = tuple(
            v for v in now.vehicles if isinstance(v, Vehicle) and v.z < 60 and climate.headlights
        )
        if lit and climate.headlights > _LIT_LAMPS:
            self._beams(picture, lit, climate)
        lamps = []
        size = (self.camera.width, self.camera.height)
        shadow = (0.25 + 0.40 * min(1.0, 3 * sum(climate.ambient))) * (1 - 0.55 * climate.snow)
        for actor, facets in _actors((*now.persons, *now.vehicles), self.camera):
            others = tuple(v for v in lit if v is not actor)
            beam = 0.5 * climate.headlights * float(beam_light(actor.x, actor.z, others))
            share = self._backdrop.sun_share(actor.x, 1.0, actor.z, climate)
            colours = facet_colours(
                facets,
                climate,
                share,
                float(lamp_light(actor.x, 1.0, actor.z)),
                beam,
                climate.headlights,
            )
            large = facets.bounds[2] - facets.bounds[0] > 0.4 * self.camera.width
            sprite = rgb_sprite(facets, colours, size, 1 if large else 2, shadow)
            if sprite is not None:
                blend(picture, sprite, self._backdrop.depth)
            if climate.headlights > _LIT_LAMPS:
                for light in facets.lights:
                    if self._glow(picture, light, actor.z, climate.headlights):
                        lamps.append((light, actor.z))
        if climate.dazzle > 0:
            self._add_dazzle(picture, lamps, climate.dazzle)
        if climate.glare > 0:
            cv2.addWeighted(picture, 1.0, self._sun, climate.glare, 0, dst=picture)
        if climate.smoke > 0:
            self._smoke(picture, time_s, climate)
        self._add_noise(picture, time_s, climate.noise)
        return picture

    def truth(self, time_s: float) -> list[Truth]:
        """Boxes of persons, bicycles and vehicles in the frame of a scene time."""
        return self.labels(scene.moment(self.seed, self.scene_name, time_s))[1]

    @property
    def street(self) -> scene.Street:
        """The still objects of the street."""
        return self._backdrop.street

    def labels(self, now: Moment) -> tuple[np.ndarray, list[Truth]]:
        """Objects of a moment as a picture (H, W) uint16, 0 or the place in the list + 1."""
        return _labels(now, self.camera, self._backdrop)

    def _beams(self, picture: np.ndarray, vehicles: tuple, climate) -> None:
        """Head lamps on the road, as a share of the street under white light."""
        beam = np.zeros((self._small[1], self._small[0]), np.float32)
        beam[self._first_row :] = beam_light(self._ground_x, self._ground_z, vehicles)
        share = (255 * np.clip(climate.headlights * 0.75 * np.sqrt(beam), 0, 0.95)).astype(np.uint8)
        share = cv2.resize(share, (self.camera.width, self.camera.height))
        top = 4 * self._first_row
        road = cv2.multiply(self._beam_lit[top:], cv2.merge((share,) * 3)[top:], scale=1 / 255)
        area = picture[top:]
        cv2.max(area, road, dst=area)

    def _glow(self, picture: np.ndarray, light: Light, z: float, strength: float) -> bool:
        """Draw the glow of a vehicle's lamp; False where the lamp is hidden or out of view."""
        row, column = int(light.v), int(light.u)
        if (
            not (0 <= row < self.camera.height and 0 <= column < self.camera.width)
            or self._backdrop.depth[row, column] < z - 3
        ):
            return False
        if light.front:
            power = strength * light.facing**4
            add_glow(picture, light.u, light.v, 3.0 * light.radius + 4, 255 * power * BEAM_COLOUR)
            add_glow(picture, light.u, light.v, 11.0 * light.radius + 10, 90 * power * BEAM_COLOUR)
        else:
            add_glow(
                picture,
                light.u,
                light.v,
                3.5 * light.radius + 2,
                strength * light.facing * np.array([20.0, 20.0, 150.0]),
            )
        return True

    def _dazzle(self) -> np.ndarray:
        """A lamp's light in the lens, counts float32, in a quarter of the pixels.

        Twice as wide and high as the picture, the lamp in the middle: core, halo, veil, rays.
        """
        w, h = self._small_size()
        y, x = np.mgrid[-h : h + 1, -w : w + 1].astype(np.float32) / w
        r = np.hypot(x, y)
        rays = np.abs(np.cos(3 * np.arctan2(y, x) + 0.35)) ** 24
        light = (
            1400 * np.exp(-((r / 0.020) ** 2))
            + 300 * np.exp(-r / 0.050)
            + 95 * np.exp(-r / 0.17)
            + 22 * np.exp(-r / 0.6)
            + 110 * rays * np.exp(-r / 0.07)
        )
        return light.astype(np.float32)

    def _add_dazzle(self, picture: np.ndarray, lamps: list, strength: float) -> None:
        """Head lamps that shine into the lens: the nearer and straighter, the brighter."""
        w, h = self._small_size()
        veil = np.zeros((h, w), np.float32)
        for light, z in lamps:
            if not light.front or light.facing < 0.7:
                continue
            power = strength * ((light.facing - 0.7) / 0.3) ** 1.5 * min(1.0, (16.0 / z) ** 1.5)
            top, left = h - int(light.v / 4), w - int(light.u / 4)
            veil += power * self._dazzle_template[top : top + h, left : left + w]
        if not veil.any():
            return
        for channel, share in enumerate(BEAM_COLOUR):
            more = cv2.convertScaleAbs(veil, alpha=float(share))
            more = cv2.resize(more, (self.camera.width, self.camera.height))
            picture[..., channel] = cv2.add(picture[..., channel], more)

    def _small_size(self) -> tuple[int, int]:
        """A quarter of the camera's width and height, for light without edges."""
        return self.camera.width // 4, self.camera.height // 4

    def _glare(self, climate: Climate) -> np.ndarray:
        """A low sun in the lens: disc, halo, veil over the picture and its mirror on the road."""
        c = self.camera
        x, y, z = climate.sun_direction
        u0, v0 = c.cx + c.focal * x / z, c.cy - c.focal * y / z
        u, v = np.meshgrid(np.arange(c.width), np.arange(c.height))
        r = np.hypot(u - u0, v - v0) / c.width
        road = np.exp(
            -(((u - u0) / (0.05 * c.width + 0.25 * np.maximum(v - c.cy, 0))) ** 2)
        ) * np.clip((v - c.cy) / (0.08 * c.height), 0, 1)
        rays = 0.5 + 0.5 * np.cos(6 * np.arctan2(v - v0, u - u0) + 0.6)
        light = (
            900 * np.exp(-((r / 0.035) ** 2))
            + 230 * np.exp(-r / 0.13)
            + 75 * np.exp(-r / 0.5)
            + 60 * rays**8 * np.exp(-r / 0.16)
            + 95 * road
        )
        return np.clip(light[..., None] * (0.80, 0.93, 1.0), 0, 255).astype(np.uint8)

    @staticmethod
    def _puff(rng: np.random.Generator) -> np.ndarray:
        noise = np.zeros((256, 256), np.float32)
        for octave in range(5):
            cells = 3 << octave
            grid = np.pad(rng.standard_normal((cells, cells)).astype(np.float32), 2, mode="wrap")
            big = cv2.resize(
                grid, None, fx=256 / cells, fy=256 / cells, interpolation=cv2.INTER_CUBIC
            )
            edge = round(2 * 256 / cells)
            noise += 0.58**octave * big[edge : edge + 256, edge : edge + 256]
        return np.tile(noise / noise.std(), (2, 2))

    def _smoke(self, picture: np.ndarray, time_s: float, climate) -> None:
        """Drifting smoke: it dims the street and adds its own light."""
        w, h = self._small
        w, h = min(w, 255), min(h, 255)
        field = np.zeros((h, w), np.float32)
        for puff, (vx, vy), weight in zip(self._puffs, ((5.0, -2.0), (9.0, -5.0)), (0.6, 0.4)):
            left, top = (vx * time_s) % 256, (-vy * time_s) % 256
            i, j = int(top), int(left)
            shift = np.array([[1, 0, j - left], [0, 1, i - top]], np.float32)
            tile = puff[i : i + h + 1, j : j + w + 1]
            field += weight * cv2.warpAffine(tile, shift, (w, h), borderMode=cv2.BORDER_REPLICATE)
        rows = np.linspace(0, 1, h, dtype=np.float32)[:, None]
        thick = np.clip(
            1.25
            + 0.95 * field
            - 1.6 * np.clip(0.42 - rows, 0, 1)
            - 2.4 * np.clip(rows - 0.66, 0, 1),
            0.05,
            4,
        )
        through = np.exp(-1.5 * thick * climate.smoke)
        grey = 186 + 16 * field - 26 * rows
        small = (through * 255).astype(np.uint8)
        own = np.clip((1 - through) * grey, 0, 255).astype(np.uint8)
        size = (self.camera.width, self.camera.height)
        small, own = cv2.resize(small, size), cv2.resize(own, size)
        cv2.multiply(picture, cv2.merge((small,) * 3), dst=picture, scale=1 / 255)
        cv2.add(picture, cv2.merge((own,) * 3), dst=picture)

    def _noise_bank(self) -> tuple:
        """Positive and negative part of noise of standard deviation `_BANK_SIGMA`, uint8."""
        rng = np.random.default_rng([self.seed, 11])
        shape = (self.camera.height + 64, self.camera.width + 64, 3)
        noise = rng.standard_normal(shape, np.float32)
        noise = _BANK_SIGMA * (0.8 * noise + 0.6 * noise[..., :1])  # more luma than chroma
        return tuple(np.clip(np.rint(part), 0, 255).astype(np.uint8) for part in (noise, -noise))

    def _add_noise(self, picture: np.ndarray, time_s: float, sigma: float) -> None:
        i, j = _noise_offset(time_s, 64, 1)
        area = slice(i, i + self.camera.height), slice(j, j + self.camera.width)
        more, less = (
            cv2.convertScaleAbs(part[area], alpha=sigma / _BANK_SIGMA) for part in self._noise
        )
        cv2.add(picture, more, dst=picture)
        cv2.subtract(picture, less, dst=picture)


# The street in the light of head lamps alone.
_BEAM_CLIMATE = replace(
    CLIMATES["night"], ambient=tuple(0.55 * BEAM_COLOUR), sky_low=(0, 0, 0), sky_high=(0, 0, 0)
)


class SimulatedThermal:
    """Uncooled long-wave camera. `render` is a pure function of the scene time."""

    def __init__(
        self,
        camera: CameraModel = scene.THERMAL_CAMERA,
        scene_name: str = "tour",
        seed: int = 0,
        *,
        climates: dict[str, Climate] = CLIMATES,
        backdrop: Backdrop | None = None,
        blur: float = 0.65,
    ) -> None:
        """Trace the street's temperatures once for each condition of the scene.

        `climates` and `backdrop` are those of `SimulatedRgb`; `blur` is the standard deviation
        of the lens blur in pixels.
        """
        scene.weather(scene_name, 0.0)
        self.camera, self.scene_name, self.seed = camera, scene_name, seed
        self.encoding = "mono8" if scene_name in EIGHT_BIT else "mono16"
        self._blur = blur
        self._backdrop = backdrop or Backdrop(camera, seed)
        self._stills = {
            name: self._backdrop.celsius(climates[name]) for name in _needed(scene_name)
        }
        if backdrop is None:
            self._backdrop.release()
        rng = np.random.default_rng([seed, 13])
        shape = (camera.height, camera.width)
        self._fixed = (
            0.05 * rng.standard_normal(shape)
            + 0.06 * rng.standard_normal(shape[1])
            + 0.03 * rng.standard_normal((shape[0], 1))
        ).astype(np.float32)
        self._noise = NETD * rng.standard_normal((shape[0] + 64, shape[1] + 64), np.float32)

    def render(self, time_s: float) -> np.ndarray:
        """Frame (H, W) at a scene time in seconds: uint16 in hundredths of a kelvin.

        The scenes in `EIGHT_BIT` give uint8: about one grey level a kelvin.
        """
        return self.draw(scene.moment(self.seed, self.scene_name, time_s), time_s)

    def draw(self, now: Moment, time_s: float) -> np.ndarray:
        """Frame of a moment, as `render` gives it; the time sets drift and noise."""
        counts = self.counts(self.temperatures(now), time_s)
        if self.encoding == "mono16":
            return counts
        chance = np.random.default_rng([self.seed, 17]).random(3)
        gain, middle = 0.85 + 0.35 * chance[0], 70 + 60 * chance[1]
        levels = middle + gain * (to_celsius(counts) - now.weather.climate.air)
        i, j = _noise_offset(time_s, 64, 3)
        noise = self._noise[i : i + self.camera.height, j : j + self.camera.width]
        levels += noise * np.float32((0.3 + 0.3 * chance[2]) / NETD)
        return np.clip(np.rint(levels), 0, 255).astype(np.uint8)

    def celsius(self, time_s: float) -> np.ndarray:
        """The scene's temperatures (H, W) float32 as an ideal camera would read them."""
        return self.temperatures(scene.moment(self.seed, self.scene_name, time_s))

    def temperatures(self, now: Moment) -> np.ndarray:
        """The temperatures (H, W) float32 of a moment as an ideal camera would read them."""
        climate = now.weather.climate
        picture = _cross_fade(self._stills, now.weather)
        size = (self.camera.width, self.camera.height)
        for actor, facets in _actors((*now.persons, *now.vehicles), self.camera):
            share = self._backdrop.sun_share(actor.x, 1.0, actor.z, climate)
            sprite = thermal_sprite(facets, facet_celsius(facets, climate, share), size)
            if sprite is not None:
                blend(picture, sprite, self._backdrop.depth)
        return picture

    def counts(self, celsius: np.ndarray, time_s: float) -> np.ndarray:
        """Lens blur, drift, fixed-pattern and temporal noise of the sensor, then counts."""
        picture = cv2.GaussianBlur(celsius, (0, 0), self._blur)
        drift = 0.35 * np.sin(2 * np.pi * time_s / 61.0) + 0.15 * np.sin(2 * np.pi * time_s / 17.0)
        i, j = _noise_offset(time_s, 64, 2)
        picture += self._fixed
        picture += self._noise[i : i + self.camera.height, j : j + self.camera.width]
        scaled = (picture + np.float32(drift + ZERO_CELSIUS)) * np.float32(COUNTS_PER_KELVIN)
        return np.clip(scaled, 0, 65535).astype(np.uint16)

    def truth(self, time_s: float) -> list[Truth]:
        """Boxes of persons, bicycles and vehicles in the frame, in thermal pixels."""
        return self.labels(scene.moment(self.seed, self.scene_name, time_s))[1]

    def labels(self, now: Moment) -> tuple[np.ndarray, list[Truth]]:
        """Objects of a moment as a picture (H, W) uint16, 0 or the place in the list + 1."""
        return _labels(now, self.camera, self._backdrop)


# --- ground truth ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """One person, bicycle or vehicle in a frame. The box is clipped to the picture."""

    name: str
    kind: str  # 'person', 'bicycle', 'car', 'truck', 'bus': the COCO class
    x: float  # left, pixels
    y: float  # top
    width: float
    height: float
    visible: float  # share of the object in the picture and not hidden, 0..1
    distance: float  # metres


def _silhouette(facets: Facets, shape: tuple, origin: tuple) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    outlines = [np.rint((o - origin) * 16).astype(np.int32) for o in facets.outlines]
    for outline in outlines:
        cv2.fillPoly(mask, [outline], 1, cv2.LINE_8, 4)
    return mask


def _labels(
    moment: Moment, camera: CameraModel, backdrop: Backdrop
) -> tuple[np.ndarray, list[Truth]]:
    """Which object each pixel shows (0 none, else place in the list + 1), and the objects."""
    depth = backdrop.depth
    owner = np.zeros((camera.height, camera.width), np.uint16)
    found = []
    for actor, facets in _actors(
        (*moment.persons, *moment.vehicles, *backdrop.street.parked), camera
    ):
        left, top, right, bottom = facets.bounds
        x0, y0 = max(0.0, left), max(0.0, top)
        x1, y1 = min(camera.width - 1.0, right), min(camera.height - 1.0, bottom)
        if x1 - x0 < 2 or y1 - y0 < 2:
            continue
        mask = _silhouette(facets, owner.shape, (0, 0)) > 0
        owner[mask & (depth >= facets.position[2] - 0.4)] = len(found) + 1
        whole = _silhouette(
            facets,
            (int(min(bottom - top, 4000)) + 2, int(min(right - left, 4000)) + 2),
            (left, top),
        ).sum()
        found.append((actor, (x0, y0, x1 - x0, y1 - y0), float(whole)))
    shown = np.bincount(owner.ravel(), minlength=len(found) + 1)
    truths = []
    for index, (actor, box, whole) in enumerate(found, start=1):
        visible = min(1.0, float(shown[index]) / max(whole, 1.0))
        truths.append(Truth(actor.name, _coco_class(actor), *box, visible, actor.z))
    return owner, truths


def _coco_class(actor: Person | Bicycle | Vehicle) -> str:
    if isinstance(actor, Person):
        return "person"
    if isinstance(actor, Bicycle):
        return "bicycle"
    return {"bus": "bus", "van": "truck"}.get(actor.kind, "car")
