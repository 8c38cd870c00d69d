"""A T1-like head: scalp, skull, CSF, folded cortex, white matter, ventricles, deep nuclei, cerebellum, brainstem."""

import numpy as np

from splitshuffle_gan.data.phantom.factors import Given, Normal, Uniform, Value, draw_factors
from splitshuffle_gan.data.phantom.fields import (
    Canvas,
    Waves,
    ellipsoid,
    grid_points,
    mirror,
    rotation,
    smooth_max,
    smooth_min,
    to_anatomy,
    tube,
    warp,
)

NAMES = (
    "background", "scalp", "fat", "skull", "csf", "grey_matter", "white_matter", "lateral_ventricle",
    "third_ventricle", "fourth_ventricle", "thalamus", "caudate", "putamen", "pallidum", "cerebellum", "brainstem",
    "eye", "sinus",
)  # fmt: skip
LABELS = dict(enumerate(NAMES))
ID = {name: number for number, name in LABELS.items()}

EXTENT = (180.0, 220.0, 176.0)
"""Field of view (z, y, x) in mm that shows the whole cranium of most heads; a smaller one shrinks the head."""

CENTRE = (0.0, 2.0, -8.0)
"""Where the middle of the brain lies in the field of view (x, y, z), in mm of an average head: room for the vertex."""

WHITE = 1000.0
"""Signal of white matter before gain, bias field and noise."""


def _ventricle_scale(rng: np.random.Generator, drawn: dict[str, Value]) -> float:
    return float(np.clip(np.exp(0.018 * (drawn["age"] - 30) + 0.25 * rng.normal()), 0.6, 5))


def _atrophy(rng: np.random.Generator, drawn: dict[str, Value]) -> float:
    return float(np.clip((drawn["age"] - 20) / 75 + 0.12 * rng.normal(), 0, 1))


DISTRIBUTIONS = {
    "age": Uniform(20, 90, "age in years; sets ventricle_scale and atrophy"),
    "ventricle_scale": Given(
        _ventricle_scale,
        "volume of the ventricles over a young adult's; exp(0.018 (age - 30) + normal(0, 0.25)), clipped to [0.6, 5]",
    ),
    "atrophy": Given(
        _atrophy,
        "0 to 1, widens sulci and thins the cortex; (age - 20) / 75 + normal(0, 0.12), clipped to [0, 1]",
    ),
    "head_size": Normal(1.0, 0.04, "linear size of the head over the average"),
    "elongation": Normal(1.0, 0.03, "front-back over left-right length of the head, relative to the average"),
    "pitch": Normal(0, 4, "rotation about the left-right axis in degrees"),
    "roll": Normal(0, 2.5, "rotation about the front-back axis in degrees"),
    "yaw": Normal(0, 3, "rotation about the vertical axis in degrees"),
    "shift_x": Normal(0, 1.5, "shift to the right in mm of an average head"),
    "shift_y": Normal(0, 2, "shift to the front in mm of an average head"),
    "shift_z": Normal(0, 2, "shift upwards in mm of an average head"),
    "warp_mm": Uniform(1, 2.5, "RMS of the smooth shape warp in mm of an average head"),
    "folding_seed": Given(lambda rng, _: int(rng.integers(2**31)), "seed of the sulcal pattern; uniform on [0, 2^31)"),
    "fold_wavelength": Uniform(24, 30, "wavelength of the folding in mm, at least 5 voxels; a sulcus every half"),
    "fat_mm": Uniform(3, 7, "thickness of the subcutaneous fat in mm of an average head"),
    "grey_signal": Normal(0.66, 0.02, "signal of grey matter over that of white matter"),
    "csf_signal": Normal(0.22, 0.02, "signal of CSF over that of white matter"),
    "gain": Uniform(0.8, 1.25, "scanner gain: white matter has a signal of 1000 times this"),
    "bias_strength": Uniform(0, 0.15, "RMS of the logarithm of the bias field"),
    "noise_sigma": Uniform(10, 40, "sigma of the Rician noise, in signal units before gain (white matter 1000)"),
}


MEASURED = {
    "ventricle_volume_ml": "measured on the label map: volume of lateral, third and fourth ventricles in ml",
}


def render(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int
) -> tuple[np.ndarray, np.ndarray, dict[str, Value]]:
    """Image (float32, MR units), label (uint8) and factors of the head with this seed."""
    draws, shapes, noise = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    factors = draw_factors(DISTRIBUTIONS, draws)
    field_of_view = np.multiply(shape, spacing)
    factors["scale"] = float(min(1.0, (field_of_view / EXTENT).min()))
    size = factors["scale"] * factors["head_size"]
    world = grid_points(shape, spacing)
    shift = factors["scale"] * (np.array([factors["shift_x"], factors["shift_y"], factors["shift_z"]]) + CENTRE)
    turn = rotation(factors["pitch"], factors["roll"], factors["yaw"])
    points = to_anatomy(world, turn, shift, size)
    points[1] /= np.sqrt(factors["elongation"])
    points[0] *= np.sqrt(factors["elongation"])
    points = warp(points, shapes, factors["warp_mm"], 110)

    canvas = Canvas(shape, 0.0, float(np.prod(spacing) ** (1 / 3)) / size)
    cerebrum = _cerebrum(points)
    _paint_head(canvas, points, cerebrum, factors, shapes)
    _paint_cortex(canvas, points, cerebrum, factors)
    _paint_hindbrain(canvas, points, factors, shapes)
    _paint_deep(canvas, points, factors)
    ventricles = np.isin(canvas.label, [ID[f"{name}_ventricle"] for name in ("lateral", "third", "fourth")])
    factors["ventricle_volume_ml"] = float(ventricles.sum() * np.prod(spacing) / 1000)
    image = _scan(canvas.image, world / factors["scale"], factors, shapes, noise)
    return image, canvas.label, factors


def _cerebrum(points: np.ndarray) -> np.ndarray:
    """Signed distance to the smooth hull of both hemispheres: an egg with a flat base, and temporal lobes."""
    x, y, z = points
    egg = points.copy()
    egg[0] *= 1 + np.float32(0.0014) * (y + 15)
    base = np.float32(-17) + 9 * np.exp(-((x / 24) ** 2)) / (1 + np.exp((y + 25) / 5))
    upper = smooth_max(ellipsoid(egg, (0, -3, 7), (67, 85, 62)), base - z, 12)
    temporal = ellipsoid(mirror(points), (41, 3, -25), (23, 41, 20))
    return smooth_min(upper, temporal, 5)


def _cranium(points: np.ndarray, cerebrum: np.ndarray, gap: float) -> np.ndarray:
    """Signed distance to the inner table of the skull, `gap` mm outside the brain, with the canal of the cord."""
    fossa = ellipsoid(points, (0, -52, -38), (53, 40, 30))
    clivus = ellipsoid(points, (0, -21, -34), (21, 17, 30))
    inside = smooth_min(smooth_min(cerebrum, fossa, 10), clivus, 7) - np.float32(gap)
    canal = tube(points, [(0, -24, -50), (0, -34, -80), (0, -36, -200)], [14, 11, 10])
    return smooth_min(inside, canal, 6)


def _paint_head(
    canvas: Canvas, points: np.ndarray, cerebrum: np.ndarray, factors: dict, rng: np.random.Generator
) -> None:
    """Skin, fat, muscle, orbits, sinuses, skull and the CSF inside it."""
    both = mirror(points)
    inner = _cranium(points, cerebrum, 2 + 2 * factors["atrophy"])
    skull = inner - 4 - 3 / (1 + np.exp(-(points[2] + 8) / 6))
    face = ellipsoid(points, (0, 40, -66), (60, 56, 62))
    neck = smooth_max(np.hypot(points[0] / 56, (points[1] + 26) / 60) * 58 - 58, points[2] + 45, 20)
    nose = ellipsoid(points, (0, 95, -56), (12, 16, 20))
    head = smooth_min(smooth_min(smooth_min(skull - factors["fat_mm"] - 3, face, 14), neck, 20), nose, 8)
    canvas.paint(head, 0.45 * WHITE, ID["scalp"])
    canvas.paint(head + 2, 1.15 * WHITE, ID["fat"])
    texture = Waves.draw(rng, 34)(points)
    muscle = head + 2 + factors["fat_mm"] + np.maximum(texture, 0) * 4
    low = smooth_max(muscle, points[2] + 22 + 0.25 * points[1] * (points[1] < 0), 6)
    canvas.paint(low, (0.5 + 0.06 * texture) * WHITE, ID["scalp"])
    canvas.paint(ellipsoid(both, (31, 60, -37), (17, 26, 15)), 1.05 * WHITE, ID["fat"])
    canvas.paint(tube(both, [(31, 68, -37), (20, 36, -35)], [3, 3]), 0.55 * WHITE, ID["scalp"])
    canvas.paint(ellipsoid(both, (31, 73, -37), (12, 12.5, 12)), 0.3 * WHITE, ID["eye"])
    for centre, radii in (((24, 60, -68), (13, 15, 14)), ((6, 64, -50), (5, 26, 16)), ((8, 84, -20), (9, 6, 7))):
        canvas.paint(ellipsoid(both, centre, radii), 0.03 * WHITE, ID["sinus"])
    canvas.paint(tube(points, [(0, 30, -42), (0, 14, -66), (0, 10, -200)], [9, 8, 8]), 0.03 * WHITE, ID["sinus"])
    canvas.paint(skull, 0.07 * WHITE, ID["skull"])
    marrow = np.maximum(np.abs(inner - 3.5) - 1.5, -points[2] - 10)
    canvas.paint(marrow, 0.45 * WHITE)
    canvas.paint(inner, factors["csf_signal"] * WHITE, ID["csf"])


def _paint_cortex(canvas: Canvas, points: np.ndarray, cerebrum: np.ndarray, factors: dict) -> None:
    """Grey matter ribbon and white matter, folded by the zero lines of a band-passed field on the hull."""
    x, y, z = points
    rng = np.random.default_rng(factors["folding_seed"])
    wobble = Waves.draw(rng, 60)(points)
    core = np.hypot((y + 3) / 41, (z + 1) / 29) * 34 - 34
    gap = 0.8 + 1.2 * factors["atrophy"]
    fissure = np.maximum(np.abs(x + wobble) - gap, -core)
    depth = np.minimum(-cerebrum, fissure)

    # Pulling points towards one shell makes the sulci run inwards, square to the surface.
    radius = np.sqrt((x / 67) ** 2 + ((y + 3) / 85) ** 2 + ((z - 3) / 60) ** 2)
    shell = points / np.maximum(radius, 0.25) ** np.float32(0.65)
    shell = warp(shell, rng, 4, 45)
    wavelength = max(factors["fold_wavelength"], 5 * canvas.voxel)
    sulcus = Waves.draw(rng, wavelength, 24).distance_to_zero(shell)
    bottom = 15 + 4 * Waves.draw(rng, 50)(points)
    width = max(0.5 + factors["atrophy"], 0.2 * canvas.voxel) * np.clip(1.3 - depth / 20, 0.5, 1.3)
    sulcus = smooth_max(smooth_max(sulcus - width, depth - bottom, 3), 60 * (np.float32(0.55) - radius), 3)

    line = -5 - np.float32(0.38) * y + 2 * wobble
    side = np.abs(x)
    island = np.hypot((z - line) / 15, (y - 4) / 26)
    bulge = 40 - 5 * island**2
    sylvian = smooth_max(smooth_max(np.abs(z - line) - gap, bulge - side, 4), np.abs(y - 2) - 44, 6)
    insula = smooth_max(np.abs(side - bulge) - gap, 10 * (island - 1), 4)
    pial = np.minimum(np.minimum(depth, sulcus), np.minimum(sylvian, insula))

    thickness = max(3.3 - 0.6 * factors["atrophy"], 0.8 * canvas.voxel)
    canvas.paint(-pial, factors["grey_signal"] * WHITE, ID["grey_matter"])
    canvas.paint(thickness - pial, (1 + 0.02 * wobble) * WHITE, ID["white_matter"])
    callosum = smooth_max(smooth_max(np.abs(core + 4) - 3.5, side - 15, 8), -z - 6, 4)
    canvas.paint(callosum, WHITE, ID["white_matter"])


def _paint_hindbrain(canvas: Canvas, points: np.ndarray, factors: dict, rng: np.random.Generator) -> None:
    """Cerebellum with folia round a white core, brainstem, fourth ventricle."""
    both = mirror(points)
    lobes = ellipsoid(both, (23, -53, -41), (29, 31, 21))
    cerebellum = smooth_min(lobes, ellipsoid(points, (0, -52, -36), (13, 25, 20)), 5)
    grey = factors["grey_signal"] * WHITE
    canvas.paint(cerebellum, grey, ID["cerebellum"])
    angle = np.arctan2(points[2] + 40, points[1] + 32)
    period = max(7.0, 3.5 * canvas.voxel)
    radius = np.hypot(points[1] + 32, points[2] + 40)
    folia = 0.5 + 0.5 * np.sin(2 * np.pi * angle * 30 / period + Waves.draw(rng, 40)(points))
    blades = np.clip(-cerebellum / 6 - 0.3, 0, 1) * folia * np.clip(radius / 12, 0, 1)
    canvas.paint(cerebellum + 2, grey + blades * (0.95 * WHITE - grey))
    canvas.paint(ellipsoid(both, (15, -46, -40), (16, 14, 8)), 0.97 * WHITE)
    stem = smooth_min(ellipsoid(points, (0, -17, -12), (17, 12, 14)), ellipsoid(points, (0, -13, -31), (16, 13, 14)), 6)
    stem = smooth_min(stem, tube(points, [(0, -20, -36), (0, -30, -68), (0, -36, -200)], [9, 7, 6]), 6)
    peduncle = tube(both, [(6, -16, -32), (18, -38, -38)], [8, 7])
    canvas.paint(peduncle, 0.95 * WHITE, ID["brainstem"])
    canvas.paint(stem, 0.9 * WHITE, ID["brainstem"])
    wide = factors["ventricle_scale"] ** 0.25
    fourth = ellipsoid(points, (0, -30, -34), (8 * wide, 4.5 * wide, 10))
    canvas.paint(fourth, factors["csf_signal"] * WHITE, ID["fourth_ventricle"])


def _paint_deep(canvas: Canvas, points: np.ndarray, factors: dict) -> None:
    """Lateral and third ventricles, hippocampus, thalamus, caudate, putamen, pallidum."""
    both = mirror(points)
    csf = factors["csf_signal"] * WHITE
    grow = factors["ventricle_scale"] ** 0.5
    grey = factors["grey_signal"] * WHITE
    out = 4.0 * (grow - 1)
    body = [(6 + out, 32, 3), (5.5 + out, 16, 12), (8 + out, -8, 18), (16 + out, -30, 13), (24 + out / 2, -42, 4)]
    radii = [2.5 * grow, 4.5 * grow, 3.8 * grow, 4.5 * grow, 6 * grow]
    horns = np.minimum(tube(both, body, radii), tube(both, [body[-1], (24, -66, 1)], [5 * grow, 1.5 * grow]))
    horns = np.minimum(horns, tube(both, [body[-1], (33, -26, -16), (32, -4, -23)], [5 * grow, 2.2 * grow, 1.5 * grow]))
    canvas.paint(tube(both, [(29, -32, -14), (25, -8, -22)], [5, 6]), grey)
    canvas.paint(smooth_max(horns, 0.7 - both[0], 1), csf, ID["lateral_ventricle"])
    third = max(1.8 * grow, 0.5 * canvas.voxel)
    canvas.paint(ellipsoid(both, (11 + third, -11, 4), (9, 15, 9)), 1.15 * grey, ID["thalamus"])
    canvas.paint(ellipsoid(points, (0, -3, -3), (third, 14, 10)), csf, ID["third_ventricle"])
    tail = tube(both, [(15 + out, 6, 17), (18 + out, -18, 20)], [3.5, 2])
    caudate = smooth_min(ellipsoid(both, (14.5 + out, 19, 7), (5.5, 10, 9)), tail, 3)
    canvas.paint(caudate, 1.02 * grey, ID["caudate"])
    lentiform = both.copy()
    lentiform[0] += 0.2 * (both[1] - 4)
    canvas.paint(ellipsoid(lentiform, (28, 3, 2), (5.5, 18, 11)), 1.05 * grey, ID["putamen"])
    canvas.paint(ellipsoid(lentiform, (20.5, 0, 0), (4.5, 10, 7)), 1.25 * grey, ID["pallidum"])


def _scan(
    clean: np.ndarray, points: np.ndarray, factors: dict, shapes: np.random.Generator, noise: np.random.Generator
) -> np.ndarray:
    """What the scanner makes of it: bias field, Rician noise, gain."""
    biased = clean * np.exp(factors["bias_strength"] * Waves.draw(shapes, 220, 8)(points))
    real = biased + noise.normal(0, factors["noise_sigma"], clean.shape)
    imaginary = noise.normal(0, factors["noise_sigma"], clean.shape)
    return (factors["gain"] * np.hypot(real, imaginary)).astype(np.float32)
