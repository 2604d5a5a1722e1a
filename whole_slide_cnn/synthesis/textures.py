"""Textures that look like tissue stained with haematoxylin and eosin, drawn from random numbers alone."""

import numpy as np
from scipy.spatial import cKDTree

from whole_slide_cnn.sizes import Window
from whole_slide_cnn.synthesis.noise import SmoothNoise, fractal_noise

_HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])  # optical density per channel of the two dyes
_EOSIN = np.array([0.15, 0.92, 0.24])
_NUCLEUS_BOX = 12  # pixels from the centre of a nucleus to the border of its box
_NUCLEUS_EDGE = 1.15  # squared distance from the centre, in half axes, where it ends


def draw_texture(label, size, source, field):
    """Draw one field of a source.

    Args:
        label: a key of ``TEXTURES``.
        size: side in pixels.
        source: RandomState of the source: its staining, nuclear size and density.
        field: RandomState of this field: where things lie.

    Returns:
        uint8 (size, size, 3), RGB.
    """
    staining = source.uniform([0.85, 0.32, 0.9, 0.85], [1.45, 0.62, 1.1, 1.15])
    scale, density = source.uniform(0.88, 1.14), source.uniform(0.85, 1.15)
    haematoxylin, eosin = TEXTURES[label](size, scale, density, field)
    grain = field.standard_normal((size, size)).astype(np.float32)
    grain = (grain + np.roll(grain, 1, 0) + np.roll(grain, 1, 1) + np.roll(grain, (1, 1), (0, 1))) * 0.025
    haematoxylin = np.maximum(staining[0] * haematoxylin * (1 + grain), 0)
    eosin = np.maximum(staining[1] * eosin * (1 + grain) + 0.03, 0)
    density = haematoxylin[..., None] * (_HAEMATOXYLIN * staining[2]) + eosin[..., None] * (_EOSIN * staining[3])
    return np.round(245.0 * np.exp(-density)).astype(np.uint8)


def _normal(size, scale, density, field):
    """Fibrous stroma with few small nuclei stretched along its fibres."""
    direction = field.uniform(0, np.pi)
    bend = 0.5 * _noise(field, size, 90)
    fibres = _fibres(field, size, direction, bend)
    eosin = 0.75 + 0.28 * fibres
    eosin = eosin * (1 - 0.75 * _step(-fibres - 1.2, 0.25))  # clefts between the fibres
    rows, columns = _scatter(field, size, 17.0 / np.sqrt(density))
    angles = direction + _at(bend, rows, columns) + field.normal(0, 0.2, len(rows))
    axes = _axes(field, len(rows), 6.0 * scale, 2.4 * scale)
    nuclei = _nuclei(size, rows, columns, axes, angles, field.uniform(0.7, 1.1, len(rows)))
    return nuclei, eosin * (1 - 0.5 * np.minimum(nuclei, 1))


def _adenocarcinoma(size, scale, density, field):
    """Glands: pale lumina ringed by nuclei that point outward, in stroma."""
    direction = field.uniform(0, np.pi)
    bend = 0.4 * _noise(field, size, 90)
    eosin = 0.62 + 0.25 * _fibres(field, size, direction, bend)
    rows, columns = _scatter(field, size, 58.0 / np.sqrt(density), jitter=0.9)
    radii = field.uniform(17, 25, len(rows)) / np.sqrt(density)
    wobble = 5.0 * _noise(field, size, 22)
    outside = _distance_to_discs(size, rows, columns, radii) + wobble
    lumen = _step(-outside - 4, 2.0)
    epithelium = _step(20 * scale - outside, 2.5) * (1 - lumen)
    eosin = eosin * (1 - epithelium) + 0.7 * epithelium
    nuclei = _ring_nuclei(field, size, scale, (rows, columns, radii), wobble)
    stroma = _scatter(field, size, 15.0 / np.sqrt(density))
    free = _at(outside, *stroma) > 22 * scale
    small = tuple(axis[free] for axis in stroma)
    axes = _axes(field, len(small[0]), 5.0 * scale, 2.3 * scale)
    angles = direction + field.normal(0, 0.3, len(small[0]))
    nuclei = nuclei + _nuclei(size, small[0], small[1], axes, angles, field.uniform(0.7, 1.0, len(small[0])))
    nuclei = nuclei * (1 - lumen) + 0.16 * epithelium
    return nuclei, eosin * (1 - 0.9 * lumen) * (1 - 0.5 * np.minimum(nuclei, 1))


def _squamous(size, scale, density, field):
    """Sheets of large polygonal cells with pale borders, whorled around a few centres."""
    rows, columns = _scatter(field, size, 19.0 * scale / np.sqrt(density), jitter=0.75)
    whorls = field.uniform(-0.2, 1.2, (2, 3)) * size
    towards = [np.arctan2(rows - whorls[0, k], columns - whorls[1, k]) for k in range(3)]
    distances = np.stack([np.hypot(rows - whorls[0, k], columns - whorls[1, k]) for k in range(3)])
    angles = np.choose(distances.argmin(axis=0), towards) + np.pi / 2 + field.normal(0, 0.25, len(rows))
    axes = _axes(field, len(rows), 6.6 * scale, 4.6 * scale)
    nuclei = _nuclei(size, rows, columns, axes, angles, field.uniform(0.65, 1.0, len(rows)), rim=0.45)
    nearest, second = _two_nearest(size, rows, columns)
    border = _step(2.2 - (second - nearest), 1.2)
    patches = 0.12 * fractal_noise(field, Window(0, 0, size, size), 60, 3)
    keratin = _step(_noise(field, size, 70) - 1.3, 0.3)
    eosin = (0.85 + patches + 0.5 * keratin) * (1 - 0.6 * border)
    nuclei = nuclei * (1 - 0.7 * keratin) + 0.13
    return nuclei, eosin * (1 - 0.5 * np.minimum(nuclei, 1))


TEXTURES = {"normal": _normal, "adenocarcinoma": _adenocarcinoma, "squamous": _squamous}


def _noise(field, size, wavelength):
    # In float64: NumPy's float32 sine differs between versions, and with it the pixels.
    return SmoothNoise(field, size, wavelength).window(Window(0, 0, size, size)).astype(np.float64)


def _step(value, softness):
    """0 below and 1 above zero, linear over +-softness."""
    return np.clip(value / (2 * softness) + 0.5, 0, 1)


def _at(values, rows, columns):
    """Values of a map at points, those outside moved to its border."""
    last = len(values) - 1
    return values[np.clip(rows, 0, last).astype(np.int64), np.clip(columns, 0, last).astype(np.int64)]


def _scatter(field, size, spacing, jitter=1.0):
    """Points of mean distance ``spacing`` that keep apart: a shifted, turned, jittered lattice. Two arrays."""
    reach = int(np.ceil(size / spacing)) + 2
    lattice = np.stack(np.meshgrid(np.arange(-reach, reach + 1.0), np.arange(-reach, reach + 1.0)))
    lattice[0] += 0.5 * (lattice[1] % 2)
    lattice = lattice.reshape(2, -1) * spacing + field.uniform(-0.45, 0.45, (2, lattice[0].size)) * spacing * jitter
    turn = field.uniform(0, np.pi)
    rows = np.cos(turn) * lattice[0] - np.sin(turn) * lattice[1] + size * field.uniform(0.4, 0.6)
    columns = np.sin(turn) * lattice[0] + np.cos(turn) * lattice[1] + size * field.uniform(0.4, 0.6)
    near = (np.abs(rows - size / 2) < size / 2 + spacing) & (np.abs(columns - size / 2) < size / 2 + spacing)
    return rows[near], columns[near]


def _axes(field, count, long, short):
    """Half axes of nuclei in pixels, varied by a sixth: (count, 2)."""
    return np.array([long, short]) * field.normal(1, 0.16, (count, 2)).clip(0.6, 1.5)


def _nuclei(size, rows, columns, axes, angles, strength, rim=0.2):
    """Optical density of ellipses at points: float64 (size, size); ``rim`` is how much darker their outline is."""
    box = np.arange(-_NUCLEUS_BOX, _NUCLEUS_BOX + 1)
    sine, cosine = np.sin(angles), np.cos(angles)
    rows, columns, axes, strength, sine, cosine = (
        values.astype(np.float32) for values in (rows, columns, axes, strength, sine, cosine)
    )
    centre_rows, centre_columns = np.round(rows).astype(np.int64), np.round(columns).astype(np.int64)
    y = (box[None] + (centre_rows - rows)[:, None]).astype(np.float32)[:, :, None]
    x = (box[None] + (centre_columns - columns)[:, None]).astype(np.float32)[:, None, :]
    along = (y * sine[:, None, None] + x * cosine[:, None, None]) / axes[:, 0, None, None]
    across = (y * cosine[:, None, None] - x * sine[:, None, None]) / axes[:, 1, None, None]
    radius = along * along + across * across
    index, row, column = np.nonzero(radius < _NUCLEUS_EDGE)
    radius = radius[index, row, column]
    value = np.clip(3.0 * (_NUCLEUS_EDGE - radius), 0, 1) * (1 - rim + rim * np.minimum(radius, 1)) * strength[index]
    row, column = row + centre_rows[index] + box[0], column + centre_columns[index] + box[0]
    inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    flat = np.bincount((row * size + column)[inside], value[inside], minlength=size * size)
    return np.minimum(flat, 1.3).reshape(size, size)


def _ring_nuclei(field, size, scale, glands, wobble):
    """Nuclei around each gland, their long axes outward."""
    rows, columns, radii = glands
    around = np.maximum((2 * np.pi * (radii + 9 * scale) / (7.5 * scale)).astype(np.int64), 3)
    gland = np.repeat(np.arange(len(rows)), around)
    step = np.concatenate([np.arange(count) / count for count in around]) if len(rows) else np.empty(0)
    angles = 2 * np.pi * step + field.uniform(0, 0.25, len(gland))
    reach = radii[gland] + 9 * scale + field.normal(0, 1.6, len(gland))
    reach = reach - _at(wobble, rows[gland] + reach * np.sin(angles), columns[gland] + reach * np.cos(angles))
    centre_rows, centre_columns = rows[gland] + reach * np.sin(angles), columns[gland] + reach * np.cos(angles)
    axes = _axes(field, len(gland), 5.6 * scale, 3.4 * scale)
    tilt = angles + field.normal(0, 0.2, len(gland))
    return _nuclei(size, centre_rows, centre_columns, axes, tilt, field.uniform(0.7, 1.05, len(gland)))


def _fibres(field, size, direction, bend):
    """Noise stretched along a direction that bends: mean 0, deviation about 1, (size, size)."""
    lattice = field.standard_normal((64, 64))
    grid = np.arange(size) - size / 2.0
    sine, cosine = np.sin(direction + bend * 0.4), np.cos(direction + bend * 0.4)
    total = 0.0
    for length, width, amplitude in ((64.0, 9.0, 1.0), (34.0, 4.0, 0.7)):
        along = (grid[:, None] * sine + grid[None, :] * cosine) / length + 32 + bend
        across = (grid[:, None] * cosine - grid[None, :] * sine) / width + 32 + 3.0 * bend
        total = total + amplitude * _wrapped(lattice, across, along)
    return total / 0.8


def _wrapped(lattice, rows, columns):
    """Bilinear values of a lattice that repeats."""
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    down, right = rows - top, columns - left
    side = len(lattice)
    top, left, bottom, after = top % side, left % side, (top + 1) % side, (left + 1) % side
    upper = lattice[top, left] * (1 - right) + lattice[top, after] * right
    lower = lattice[bottom, left] * (1 - right) + lattice[bottom, after] * right
    return upper * (1 - down) + lower * down


def _distance_to_discs(size, rows, columns, radii):
    """Distance in pixels from the nearest of some discs, negative inside: (size, size)."""
    grid = np.arange(size)
    distance = np.full((size, size), size, np.float32)
    for row, column, radius in zip(rows, columns, radii):
        square = ((grid - row) ** 2).astype(np.float32)[:, None] + ((grid - column) ** 2).astype(np.float32)
        np.minimum(distance, np.sqrt(square) - np.float32(radius), out=distance)
    return distance


def _two_nearest(size, rows, columns):
    """Distances in pixels from the nearest and the second nearest point: two arrays (size, size)."""
    grid = np.arange(0, size, 2)
    pixels = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    distances = cKDTree(np.stack([rows, columns], axis=1)).query(pixels, k=2)[0]
    half = distances.reshape(len(grid), len(grid), 2)
    full = np.repeat(np.repeat(half, 2, axis=0), 2, axis=1)[:size, :size]
    return full[..., 0], full[..., 1]
