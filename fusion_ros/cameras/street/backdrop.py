# SPDX-License-Identifier: AGPL-3.0-only
"""The still part of the street: traced once per camera, lit once per condition."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from fusion_ros.cameras.street import scene
from fusion_ros.cameras.street.facades import bricks, hashed, shops, windows
from fusion_ros.cameras.street.furniture import lamp_facets, tree_facets
from fusion_ros.cameras.street.raster import (
    LAMP_COLOUR,
    SNOW_ALBEDO,
    blend,
    facet_celsius,
    facet_colours,
    lamp_light,
    rgb_sprite,
    thermal_sprite,
    tone,
)
from fusion_ros.cameras.street.scene import (
    BRICK,
    CAMERA_HEIGHT,
    GLAZED,
    Building,
    CameraModel,
    Climate,
    Street,
)
from fusion_ros.cameras.street.signs import paste, sign_board
from fusion_ros.cameras.street.vehicles import vehicle_facets
from fusion_ros.size import Size

SUPERSAMPLE = 2
SKY, ROAD, PAVEMENT, WALL, GLASS = range(5)
_UP, _LEFT, _RIGHT, _BACK = (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, -1.0)


def _noise_texture(rng: np.random.Generator, size: int = 512, octaves: int = 6) -> np.ndarray:
    """Tileable noise (size, size) float32, mean 0, about -1..1."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        cells = 4 << octave
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        grid = np.pad(grid, 2, mode="wrap")
        step = size // cells
        big = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        total += big[2 * step : -2 * step, 2 * step : -2 * step] * 0.6**octave
    return total / (3 * total.std())


@dataclass
class Surfaces:
    """The surface in every (supersampled) pixel of a camera; arrays (h, w) or (h, w, 3)."""

    material: np.ndarray  # SKY, ROAD, ...
    position: np.ndarray  # world x, y, z; for the sky its direction
    normal: np.ndarray
    albedo: np.ndarray  # linear BGR
    emission: np.ndarray  # linear BGR at full lamps
    gloss: np.ndarray  # share of mirrored sky
    kelvin: np.ndarray  # thermal texture


class _Tracer:
    """Fills Surfaces plane by plane, nearest first wins by depth."""

    def __init__(self, camera: CameraModel, seed: int) -> None:
        h, w = camera.height, camera.width
        self.dx = ((np.arange(w, dtype=np.float32) - camera.cx) / camera.focal)[None, :]
        self.dy = (-(np.arange(h, dtype=np.float32) - camera.cy) / camera.focal)[:, None]
        self.noise = _noise_texture(np.random.default_rng(seed))
        self.depth = np.full((h, w), np.inf, np.float32)
        direction = np.stack(np.broadcast_arrays(self.dx, self.dy, np.float32(1)), axis=2)
        three = (h, w, 3)
        self.out = Surfaces(
            np.zeros((h, w), np.uint8),
            direction.astype(np.float32),
            np.zeros(three, np.float32),
            np.zeros(three, np.float32),
            np.zeros(three, np.float32),
            np.zeros((h, w), np.float32),
            np.zeros((h, w), np.float32),
        )

    def sample(self, a, b, metres: float):
        """Noise of period `metres` at coordinates (a, b)."""
        n = len(self.noise)
        return self.noise[
            (a * (n / metres)).astype(np.int32) % n, (b * (n / metres)).astype(np.int32) % n
        ]

    def plane(self, depth: np.ndarray, inside, normal: tuple, texture) -> None:
        """Add a surface at `depth` (h, w), in metres, where `inside(x, y, z)` holds.

        `texture(x, y, z)` returns (material, albedo, emission, gloss, kelvin).
        """
        with np.errstate(invalid="ignore", over="ignore"):
            seen = (depth > 0.5) & (depth < self.depth)
            rows, columns = np.nonzero(seen)
            z = depth[rows, columns]
            x, y = self.dx[0, columns] * z, CAMERA_HEIGHT + self.dy[rows, 0] * z
            keep = inside(x, y, z)
        rows, columns, x, y, z = rows[keep], columns[keep], x[keep], y[keep], z[keep]
        if not len(z):
            return
        out = self.out
        self.depth[rows, columns] = z
        out.position[rows, columns] = np.stack([x, y, z], axis=1)
        out.normal[rows, columns] = normal
        values = texture(x, y, z)
        for name, value in zip(("material", "albedo", "emission", "gloss", "kelvin"), values):
            getattr(out, name)[rows, columns] = value

    def ground(self) -> None:
        """Add road, pavements and markings."""
        with np.errstate(divide="ignore"):
            depth = np.where(self.dy < -1e-4, -CAMERA_HEIGHT / self.dy, np.inf)
        depth = np.broadcast_to(depth, self.depth.shape)
        self.plane(depth, lambda x, y, z: z < 400, _UP, self._ground)

    def _ground(self, x, y, z):
        fade = 1 / (1 + z / 30)
        coarse, fine = self.sample(x, z, 23.0), self.sample(x, z, 3.1) * fade
        grain = self.sample(x, z, 0.9) / (1 + z / 6)
        cross = (z > scene.CROSSROAD[0] + 1.5) & (z < scene.CROSSROAD[1] - 1.5)
        road = (x > scene.KERB_LEFT) & (x < scene.KERB_RIGHT) | cross
        grey = 0.115 + 0.020 * coarse + 0.045 * fine + 0.045 * grain
        tracks = sum(np.exp(-(((x - lane) / 0.22) ** 2)) for lane in (-3.5, -2.1, -7.0, -5.6))
        grey = grey * (1 - 0.13 * tracks * ~cross)
        patch = (self.sample(z + 40, x, 47.0) > 0.42) & (x > -8)
        grey = np.where(patch, grey * 0.72, grey)
        crack = (np.abs(self.sample(x + 9, z, 17.0)) < 0.006) & (self.sample(z, x, 31.0) > 0.05)
        grey = np.where(crack & (z < 30), 0.75 * grey, grey)
        albedo = grey[:, None] * np.array([1.05, 1.0, 0.97])

        worn = 0.72 + 0.5 * fine
        dash = (np.abs(x + 4.55) < 0.075) & (z % 5.0 < 2.4)
        edge = (np.abs(x + 8.05) < 0.06) | (np.abs(x + 1.05) < 0.06) & (z % 2.4 < 1.2)
        zebra = (
            (z > scene.ZEBRA[0])
            & (z < scene.ZEBRA[1])
            & ((x + 0.25) % 1.1 < 0.55)
            & (x > scene.KERB_LEFT + 0.3)
            & (x < scene.KERB_RIGHT - 0.3)
        )
        stop = (np.abs(z - 14.3) < 0.22) & (x < -4.6) & (x > -8.0)
        stop |= (np.abs(z - 29.6) < 0.22) & (x > -4.5) & (x < -1.1)
        marks = ((dash | edge) & (z > 16) & ((z < 29) | (z > 42)) | zebra | stop) & road & ~cross
        albedo[marks] = (np.clip(worn, 0.3, 1)[:, None] * (0.56, 0.60, 0.60))[marks]

        slab = np.minimum(np.abs((x % 0.75) - 0.02), np.abs((z % 0.75) - 0.02)) < 0.025
        tile = hashed(np.floor(x / 0.75), np.floor(z / 0.75), 3.0)
        stone = 0.26 + 0.05 * tile * fade + 0.03 * coarse + 0.03 * fine
        stone = np.where(slab & (z < 35), 0.72 * stone, stone)
        near_kerb = np.minimum(
            np.abs(x - scene.KERB_RIGHT - 0.08), np.abs(x - scene.KERB_LEFT + 0.08)
        )
        stone = np.where(near_kerb < 0.14, 0.40, stone)
        paved = ~road
        albedo[paved] = (stone[:, None] * (0.92, 0.98, 1.0))[paved]
        gutter = (near_kerb > 0.14) & (near_kerb < 0.26) & road & ~cross
        albedo[gutter] *= 0.5
        wall = np.minimum(np.abs(x - scene.FACADE_RIGHT), np.abs(x - scene.FACADE_LEFT))
        albedo *= (1 - 0.45 * np.exp(-wall / 0.5))[:, None]

        material = np.where(road, ROAD, PAVEMENT)
        kelvin = (
            0.8 * coarse
            + 0.6 * fine
            + 0.3 * grain
            - 1.3 * marks
            + 0.9 * patch
            + 0.7 * tracks * road
        )
        kelvin = (
            kelvin
            + np.where(near_kerb < 0.14, 1.3, 0.0)
            - 0.5 * (slab & paved)
            + 1.6 * np.exp(-wall / 0.6)
        )
        return material, albedo, 0.0, 0.015 * road, kelvin

    def building(self, b: Building) -> None:
        """Add the facade along the street and the one across it."""
        with np.errstate(divide="ignore"):
            face = np.where(self.dx * b.side > 1e-4, b.x / self.dx, np.inf)
        face = np.broadcast_to(face, self.depth.shape)
        self.plane(
            face,
            lambda x, y, z: (z > b.z0) & (z < b.z1) & (y > 0) & (y < b.height),
            _LEFT if b.side > 0 else _RIGHT,
            lambda x, y, z: self._facade(z - b.z0, y, z, b, b.z1 - b.z0),
        )
        if b.z0 > 0.5:
            self.plane(
                np.full_like(self.depth, b.z0),
                lambda x, y, z: (
                    (x * b.side > b.x * b.side)
                    & (x * b.side < b.x * b.side + 14)
                    & (y > 0)
                    & (y < b.height)
                ),
                _BACK,
                lambda x, y, z: self._facade(b.side * (x - b.x), y, z, b, 14.0),
            )

    def end(self, seed: int) -> None:
        """The house across the far end of the street."""
        b = Building(
            0, -4.0, scene.STREET_END + 4, scene.STREET_END + 18, 14.0, (0.40, 0.48, 0.55), 0, seed
        )
        self.plane(
            np.full_like(self.depth, b.z0),
            lambda x, y, z: (np.abs(x + 4) < 20) & (y > 0) & (y < b.height),
            _BACK,
            lambda x, y, z: self._facade(x + 24, y, z, b, 40.0),
        )

    def _facade(self, u, v, z, b: Building, length: float):
        """Windows, doors, bricks and cornices of a facade; u along it, v up, both metres."""
        fade = 1 / (1 + z / 25)
        stain = self.sample(u + b.seed % 97, v * 0.25, 11.0)
        fine = self.sample(u, v, 2.3) * fade
        shade = 1 + 0.13 * stain + 0.20 * fine
        if b.style == BRICK:
            shade = bricks(shade, u, v, z)
        albedo = np.clip(shade, 0.3, 1.7)[:, None] * np.array(b.colour)
        kelvin = 1.1 * stain + 0.7 * fine - 0.12 * v + 2.5 * (hashed(b.seed, 1.0, 0.0) - 0.5)

        glazing, ground = windows(u, v, b, length), shops(u, v, b, length)
        trim = np.clip(1.35 * np.array(b.colour) + 0.06, 0, 0.8)
        albedo[glazing.course | glazing.sill] = trim
        plinth = ground.storey & ~ground.inside
        stone = np.array([0.30, 0.33, 0.35]) * np.clip(shade, 0.5, 1.4)[:, None]
        albedo[plinth] = stone[plinth]
        albedo[ground.fascia] = ground.colour[ground.fascia]
        albedo[ground.letters] = (0.7, 0.75, 0.75)

        glass = (glazing.inside & ~glazing.frame) | (ground.inside & ~ground.frame)
        frame = (0.50, 0.52, 0.52) if b.style != GLAZED else (0.07, 0.07, 0.08)
        albedo[glazing.frame | ground.frame] = frame
        albedo[glass] = (0.030, 0.027, 0.024)
        # Light of windows beside the cameras would fall on persons from behind.
        closed = b.side > 0 and b.z0 < 16
        lit, open_shop = glazing.lit & (not closed), ground.open & (not closed)
        goods = 0.55 + 0.45 * self.sample(u, v, 2.9)
        emission = np.where(lit[:, None], (0.75 * glazing.curtain)[:, None] * glazing.glow, 0)
        emission += np.where(open_shop[:, None], (0.55 * goods)[:, None] * (0.50, 0.80, 0.95), 0)
        emission += np.where(ground.letters[:, None], 0.30, 0) * np.array([0.8, 0.9, 1.0])

        kelvin = (
            kelvin
            + np.where(glazing.inside, 0.6, 0)
            + np.where(lit, 2.2, 0)
            + np.where(glazing.frame | glazing.sill, 0.9, 0)
            + np.where(open_shop, 2.6, 0)
            + np.where(glazing.course, -0.5, 0)
            + 0.8 * plinth
        )
        material = np.where(glass, GLASS, WALL)
        albedo *= (1 - 0.35 * np.exp(-v / 0.6))[:, None]
        return material, albedo, emission, np.where(glass, 0.40, 0.0), kelvin


def _sun_share(position: np.ndarray, street: Street, climate: Climate) -> np.ndarray:
    """Share of the sun's disc (0..1) seen over the left row of houses from `position` (..., 3)."""
    sx, sy, sz = climate.sun_direction
    if sum(climate.sun) == 0 or sx >= -0.05:
        return np.ones(position.shape[:-1], np.float32)
    travel = (position[..., 0] - scene.FACADE_LEFT) / -sx
    height = position[..., 1] + sy * travel
    at = position[..., 2] + sz * travel
    roof = np.zeros(position.shape[:-1], np.float32)
    for b in street.buildings:
        if b.side < 0:
            roof = np.where((at > b.z0) & (at < b.z1), b.height, roof)
    return np.clip((height - roof) / 0.5 + 0.5, 0, 1).astype(np.float32)


class Backdrop:
    """The still part of the world for one camera."""

    def __init__(self, camera: CameraModel, seed: int, street: Street | None = None) -> None:
        n = SUPERSAMPLE
        self.camera = camera
        self.street = Street.of(seed) if street is None else street
        self.fine = CameraModel(
            camera.width * n,
            camera.height * n,
            camera.focal * n,
            camera.cx * n + 0.5 * (n - 1),
            camera.cy * n + 0.5 * (n - 1),
        )
        tracer = _Tracer(self.fine, seed)
        tracer.ground()
        for building in self.street.buildings:
            tracer.building(building)
        tracer.end(seed)
        self._surfaces, self._noise = tracer.out, tracer.noise
        self._still = sorted(
            [(lamp.z, lamp_facets(lamp, self.fine), "lamp") for lamp in scene.LAMPS]
            + [(tree.z, tree_facets(tree, self.fine), "tree") for tree in self.street.trees]
            + [(car.z, vehicle_facets(car, self.fine), "car") for car in self.street.parked],
            key=lambda entry: -entry[0],
        )
        depth = tracer.depth
        self._walls = depth.copy()
        for z, facets, _ in self._still:
            sprite = facets and thermal_sprite(
                facets, np.zeros(len(facets.outlines)), (self.fine.width, self.fine.height), 1
            )
            if sprite is not None:
                h, w = sprite.alpha.shape
                area = depth[sprite.top : sprite.top + h, sprite.left : sprite.left + w]
                np.minimum(area, z, out=area, where=sprite.alpha > 0.5)
        for sign in scene.SIGNS:
            depth[self._covered(sign) & (depth > sign.z)] = sign.z
        self.depth = np.ascontiguousarray(depth[::n, ::n])  # metres along z, (h, w) float32

    def release(self) -> None:
        """Free the arrays that only `rgb` and `celsius` need, after their last call."""
        self._surfaces = self._walls = self._still = None

    def sun_share(self, x: float, y: float, z: float, climate: Climate) -> float:
        """Share of the sun that reaches a point."""
        return float(_sun_share(np.array([x, y, z]), self.street, climate))

    def rgb(self, climate: Climate) -> np.ndarray:
        """Picture (h, w, 3) uint8 BGR, without noise, glare and smoke."""
        s = self._surfaces
        position, normal = s.position, s.normal
        sky = s.material == SKY
        facing = np.maximum(normal @ np.array(climate.sun_direction, np.float32), 0)
        sun = facing * _sun_share(position, self.street, climate)
        light = np.array(climate.ambient, np.float32) * (0.72 + 0.28 * normal[..., 1:2])
        light += sun[..., None] * np.array(climate.sun, np.float32)
        x, y, z = np.moveaxis(position, 2, 0)
        if climate.lamps:
            pools = lamp_light(x, y, z) * np.where(normal[..., 1] > 0, 1.0, 0.45)
            light += (climate.lamps * pools)[..., None] * LAMP_COLOUR.astype(np.float32)
        albedo, gloss = s.albedo, s.gloss
        if climate.snow > 0:
            cover = (climate.snow * self._snow())[..., None]
            albedo = albedo + cover * (SNOW_ALBEDO.astype(np.float32) - albedo)
            gloss = gloss * (1 - cover[..., 0])
        radiance = albedo * light + s.emission * climate.lamps * 0.8
        low, high = (np.array(c, np.float32) for c in (climate.sky_low, climate.sky_high))
        mirrored = np.clip(0.55 + 0.35 * self._patches(position[..., 2], y), 0, 1)[..., None]
        radiance += (0.45 * gloss[..., None]) * (low * (1 - mirrored) + high * mirrored)
        fog = (1 - np.exp(-climate.haze * np.where(sky, 0, z)))[..., None]
        radiance = radiance * (1 - fog) + low * fog
        radiance[sky] = self._sky(position[sky], climate)

        small = cv2.resize(
            np.maximum(radiance - 0.9, 0), None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA
        )
        bloom = cv2.GaussianBlur(small, (0, 0), 0.012 * self.fine.width / 4)
        radiance += 0.5 * cv2.resize(bloom, (self.fine.width, self.fine.height))
        picture = np.clip(tone(radiance, climate.exposure), 0, 255).astype(np.uint8)

        size = (self.fine.width, self.fine.height)
        items = [(z, "still", facets) for z, facets, _ in self._still if facets is not None]
        items += [(sign.z, "sign", sign) for sign in scene.SIGNS]
        for _, kind, item in sorted(items, key=lambda entry: -entry[0]):
            if kind == "sign":
                self._paint_sign(picture, item, climate)
                continue
            px, _, pz = item.position
            colours = facet_colours(
                item,
                climate,
                self.sun_share(px, 0.9, pz, climate),
                float(lamp_light(px, 1.0, pz)),
                0.0,
                climate.lamps,
            )
            shadow = 0.20 + 0.35 * min(1.0, 3 * sum(climate.ambient))
            sprite = rgb_sprite(item, colours, size, 1, shadow)
            if sprite is not None:
                blend(picture, sprite, self._walls)
        if climate.lamps:
            self._halos(picture, climate)
        picture = cv2.resize(
            picture, (self.camera.width, self.camera.height), interpolation=cv2.INTER_AREA
        )
        return np.clip(picture * vignette(self.camera)[..., None], 0, 255).astype(np.uint8)

    def celsius(self, climate: Climate) -> np.ndarray:
        """Temperatures (h, w) float32, Celsius, without blur and noise. Signs are invisible."""
        s = self._surfaces
        table = np.array(
            [0, climate.road, climate.pavement, climate.wall, climate.air - 3.0], np.float32
        )
        facing = np.maximum(s.normal @ np.array(climate.sun_direction, np.float32), 0)
        sun = facing * _sun_share(s.position, self.street, climate)
        if sum(climate.sun) == 0:
            sun = 0.5 * facing
        dark = 1.15 - 0.9 * s.albedo.mean(axis=2)
        kelvin = s.kelvin
        if climate.snow > 0:  # under it, the texture of the ground does not show
            cover = climate.snow * self._snow()
            kelvin, dark = kelvin * (1 - 0.7 * cover), dark * (1 - 0.8 * cover)
        picture = table[s.material] + kelvin + climate.sunlit * sun * dark
        sky = s.material == SKY
        direction = s.position[sky]
        height = np.clip(direction[:, 1] / np.hypot(1, direction[:, 0]), 0, 1)
        picture[sky] = (
            climate.sky - 6 * np.sqrt(height) + 4 * climate.clouds * self._clouds(direction)
        )
        far = 1 - np.exp(-0.0015 * np.where(sky, 0, s.position[..., 2]))
        picture += far * (climate.air - picture)
        picture = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 0.6)
        size = (self.fine.width, self.fine.height)
        for _, facets, kind in self._still:
            if facets is None:
                continue
            px, _, pz = facets.position
            base = climate.foliage - climate.air if kind == "tree" else 0.0
            values = facet_celsius(facets, climate, self.sun_share(px, 2.0, pz, climate)) + base
            sprite = thermal_sprite(facets, values, size, 1)
            if sprite is not None:
                blend(picture, sprite, self._walls)
        return cv2.resize(
            picture, (self.camera.width, self.camera.height), interpolation=cv2.INTER_AREA
        )

    def _snow(self) -> np.ndarray:
        """Snow's share of each pixel (h, w) float32: less in wheel tracks and on paths."""
        s = self._surfaces
        x, y, z = np.moveaxis(s.position, 2, 0)
        n = len(self._noise)

        def noise(metres: float) -> np.ndarray:
            scale = n / metres
            return self._noise[(x * scale).astype(np.int32) % n, (z * scale).astype(np.int32) % n]

        ground = (s.normal[..., 1] > 0.5) & (y < 0.1)
        coarse, fine = noise(9.0), noise(1.9)
        cover = 0.93 + 0.16 * coarse + 0.10 * fine / (1 + z / 20)
        tracks = sum(np.exp(-(((x - lane) / 0.28) ** 2)) for lane in (-3.5, -2.1, -7.0, -5.6))
        cover -= (0.55 + 0.25 * fine) * np.clip(tracks, 0, 1)
        trodden = np.exp(-(((x - 2.6) / 0.7) ** 2)) * (z > 2)
        cover -= 0.22 * trodden * np.clip(0.6 + 1.2 * fine, 0, 1)
        return np.where(ground, np.clip(cover, 0.0, 0.97), 0).astype(np.float32)

    def _patches(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        n = len(self._noise)
        return self._noise[(a * 30).astype(np.int32) % n, (b * 30).astype(np.int32) % n]

    def _clouds(self, direction: np.ndarray) -> np.ndarray:
        """Cloud cover 0..1 of sky directions (N, 3)."""
        rise = direction[:, 1] + 0.10
        n = len(self._noise)
        u = (direction[:, 0] / rise * 90).astype(np.int32) % n
        v = (1 / rise * 60).astype(np.int32) % n
        thick = np.clip(1.1 * self._noise[u, v] + 0.35, 0, 1)
        return thick * np.clip(direction[:, 1] * 9, 0, 1)

    def _sky(self, direction: np.ndarray, climate: Climate) -> np.ndarray:
        height = np.clip(direction[:, 1:2] / 0.42, 0, 1) ** 0.7
        low, high = np.array(climate.sky_low), np.array(climate.sky_high)
        clear = low * (1 - height) + high * height
        cloud = self._clouds(direction)[:, None] * climate.clouds
        bright = 0.25 * low + 0.75 * low.max() * np.array([0.98, 1.0, 1.02]) * (0.85 + 0.15 * cloud)
        return (clear * (1 - 0.75 * cloud) + 0.75 * bright * cloud).astype(np.float32)

    def _covered(self, sign: scene.Sign) -> np.ndarray:
        """Pixels (h, w) bool that a sign and its pole hide, for either camera."""
        scale = self.fine.focal / sign.z
        u, v = self.fine.project(np.array([sign.x, sign.y, sign.z]))
        mask = np.zeros((self.fine.height, self.fine.width), np.uint8)
        half = 0.5 * scale * np.array([sign.width, sign.height])
        if sign.round:
            cv2.circle(mask, (round(u), round(v)), round(half[0]), 1, -1)
        else:
            cv2.rectangle(
                mask,
                (round(u - half[0]), round(v - half[1])),
                (round(u + half[0]), round(v + half[1])),
                1,
                -1,
            )
        if sign.pole:
            cv2.rectangle(
                mask,
                (round(u - 0.04 * scale), round(v)),
                (round(u + 0.04 * scale), round(v + sign.y * scale)),
                1,
                -1,
            )
        return mask > 0

    def _paint_sign(self, picture: np.ndarray, sign: scene.Sign, climate: Climate) -> None:
        """A board with its text, on a pole or hanging from a facade."""
        camera = self.fine
        scale = camera.focal / sign.z
        u, v = camera.project(np.array([sign.x, sign.y, sign.z]))
        if sign.pole:
            metal = tone(np.array([0.2, 0.2, 0.2]) * np.array(climate.ambient), climate.exposure)
            half = max(1.0, 0.04 * scale)
            corners = (u - half, v), (u + half, v + sign.y * scale)
            cv2.rectangle(picture, *((round(x), round(y)) for x, y in corners), metal.tolist(), -1)
        size = Size(max(6, round(sign.width * scale)), max(6, round(sign.height * scale)))
        board = sign_board(sign, size, climate)
        paste(picture, board, round(u - size.width / 2), round(v - size.height / 2))

    def _halos(self, picture: np.ndarray, climate: Climate) -> None:
        for lamp in scene.LAMPS:
            at = np.array([lamp.x + lamp.reach, lamp.height, lamp.z])
            u, v = self.fine.project(at)
            add_glow(
                picture,
                float(u),
                float(v),
                0.55 * self.fine.focal / lamp.z,
                180 * climate.lamps * np.array([0.55, 0.82, 1.0]),
            )
            add_glow(
                picture,
                float(u),
                float(v),
                2.6 * self.fine.focal / lamp.z,
                46 * climate.lamps * np.array([0.50, 0.80, 1.0]),
            )


def vignette(camera: CameraModel) -> np.ndarray:
    """Fall-off of the lens (h, w) float32, 1 in the middle."""
    x = (np.arange(camera.width, dtype=np.float32) - camera.width / 2) / camera.width
    y = (np.arange(camera.height, dtype=np.float32) - camera.height / 2) / camera.width
    return 1 - 0.30 * (x[None, :] ** 2 + y[:, None] ** 2) / 0.39


_GLOW = np.exp(
    -(np.linspace(-1, 1, 65)[None, :] ** 2) * 5 - np.linspace(-1, 1, 65)[:, None] ** 2 * 5
)
_GLOW = np.clip((_GLOW - np.exp(-5)) / (1 - np.exp(-5)), 0, 1).astype(np.float32)


def add_glow(picture: np.ndarray, u: float, v: float, radius: float, colour: np.ndarray) -> None:
    """A soft round light of `colour` (BGR counts) added to a uint8 picture in place."""
    left, top = int(u - radius), int(v - radius)
    side = int(2 * radius) + 1
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(picture.shape[1], left + side), min(picture.shape[0], top + side)
    if x1 - x0 < 1 or y1 - y0 < 1 or side < 2:
        return
    disc = cv2.resize(_GLOW, (side, side))[y0 - top : y1 - top, x0 - left : x1 - left]
    light = np.clip(disc[..., None] * colour, 0, 255).astype(np.uint8)
    area = picture[y0:y1, x0:x1]
    cv2.add(area, light, dst=area)
