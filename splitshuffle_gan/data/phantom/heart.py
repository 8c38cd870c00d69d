"""A cardiac CT in HU: chest wall, ribs, lungs with vessels, spine, great vessels, four chambers, coronary calcium."""

import numpy as np

from splitshuffle_gan.data.phantom.factors import Choice, Given, Normal, Uniform, Value, draw_factors
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
    turn_points,
    warp,
)

NAMES = (
    "air", "muscle", "fat", "bone", "spinal_canal", "lung", "lung_vessel", "airway", "abdomen", "ascending_aorta",
    "descending_aorta", "pulmonary_artery", "vena_cava", "pericardial_fat", "lv_myocardium", "lv_cavity", "rv_cavity",
    "left_atrium", "right_atrium", "heart_wall", "coronary_artery", "coronary_calcium",
)  # fmt: skip
LABELS = dict(enumerate(NAMES))
ID = {name: number for number, name in LABELS.items()}

EXTENT = (150.0, 246.0, 336.0)
"""Field of view (z, y, x) in mm that shows an average chest around the heart; a smaller one shrinks the chest."""

# Mean HU of blood per contrast phase: left heart and aorta, pulmonary artery, right heart; then myocardium and liver.
PHASES = {
    "non_contrast": (42, 42, 42, 50, 60),
    "arterial": (340, 260, 190, 100, 70),
    "venous": (165, 160, 160, 115, 110),
}

# Anterior descending, circumflex and right coronary artery, in mm in the frame of the heart.
CORONARIES = (
    [(0, 16, 20), (-16, 22, 20), (-30, 48, 2), (-50, 60, -22), (-66, 50, -46)],
    [(-16, 22, 20), (-40, 0, 20), (-52, -18, 2), (-40, -28, -22)],
    [(10, 20, 20), (26, 36, 14), (36, 36, -12), (24, 20, -38), (0, 0, -42)],
)


def _lesions(rng: np.random.Generator, _: dict[str, Value]) -> int:
    return 0 if rng.random() < 0.35 else int(1 + rng.poisson(rng.exponential(5)))


DISTRIBUTIONS = {
    "phase": Choice({"non_contrast": 0.5, "arterial": 0.3, "venous": 0.2}, "contrast phase"),
    "contrast_level": Normal(1.0, 0.1, "enhancement over the mean of the phase"),
    "chest_size": Normal(1.0, 0.04, "linear size of the chest over the average"),
    "chest_depth": Normal(1.0, 0.05, "front-back size of the chest, relative to its width"),
    "fat_mm": Uniform(6, 22, "thickness of the subcutaneous fat in mm of an average chest"),
    "heart_scale": Normal(1.0, 0.07, "linear size of the heart over the average"),
    "heart_pitch": Normal(0, 6, "rotation of the heart about the left-right axis in degrees"),
    "heart_roll": Normal(0, 6, "rotation of the heart about the front-back axis in degrees"),
    "heart_yaw": Normal(0, 6, "rotation of the heart about the vertical axis in degrees"),
    "heart_shift_x": Normal(0, 3, "shift of the heart to the right in mm of an average chest"),
    "heart_shift_z": Normal(0, 4, "shift of the heart upwards in mm of an average chest"),
    "contraction": Uniform(0, 1, "0 end diastole, 1 end systole: smaller left ventricle with a thicker wall"),
    "pericardial_fat_mm": Uniform(3, 9, "thickness of the fat round the heart in mm of an average chest"),
    "diaphragm_mm": Normal(0, 6, "height of the diaphragm over the average in mm of an average chest"),
    "pitch": Normal(0, 2, "rotation of the body about the left-right axis in degrees"),
    "roll": Normal(0, 1.5, "rotation of the body about the front-back axis in degrees"),
    "yaw": Normal(0, 3, "rotation of the body about the vertical axis in degrees"),
    "shift_x": Normal(0, 3, "shift of the body to the right in mm of an average chest"),
    "shift_y": Normal(0, 3, "shift of the body to the front in mm of an average chest"),
    "warp_mm": Uniform(1, 3, "RMS of the smooth shape warp in mm of an average chest"),
    "lesions": Given(
        _lesions,
        "calcified plaques placed on the coronaries; 0 with probability 0.35, else 1 + Poisson(exponential(5))",
    ),
    "noise_sigma": Uniform(8, 30, "standard deviation of the noise in HU, slightly smooth within a slice"),
}

MEASURED = {
    "lv_volume_ml": "measured on the label map: volume of the cavity of the left ventricle in ml",
    "calcium_volume_mm3": "measured on the label map: volume of the coronary calcium in mm3",
    "agatston": "measured without noise: mm2 of calcium per 3 mm of depth, voxels weighted 1 to 4 by hundreds of HU",
}


def render(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int
) -> tuple[np.ndarray, np.ndarray, dict[str, Value]]:
    """Image (float32, HU), label (uint8) and factors of the chest with this seed."""
    draws, shapes, noise = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    factors = draw_factors(DISTRIBUTIONS, draws)
    factors["scale"] = float(min(1.0, (np.multiply(shape, spacing) / EXTENT).min()))
    size = factors["scale"] * factors["chest_size"]
    shift = factors["scale"] * np.array([factors["shift_x"], factors["shift_y"], 0])
    turn = rotation(factors["pitch"], factors["roll"], factors["yaw"])
    points = to_anatomy(grid_points(shape, spacing), turn, shift, size)
    points[1] /= factors["chest_depth"]
    points = warp(points, shapes, factors["warp_mm"], 140)

    canvas = Canvas(shape, -1000.0, float(np.prod(spacing) ** (1 / 3)) / size)
    heart_turn = rotation(factors["heart_pitch"], factors["heart_roll"], factors["heart_yaw"])
    heart_shift = np.array([factors["heart_shift_x"] - 12, 16, factors["heart_shift_z"]])
    heart = to_anatomy(points, heart_turn, heart_shift, factors["heart_scale"])
    chambers = _chambers(heart, factors)
    _paint_wall(canvas, points, factors, shapes)
    _paint_lungs(canvas, points, chambers["sac"], factors, shapes)
    _paint_spine(canvas, points)
    blood = _blood(factors)
    _paint_vessels(canvas, points, blood)
    _paint_heart(canvas, heart, chambers, blood)
    _paint_coronaries(canvas, heart, blood, factors, shapes)
    _measure(canvas, spacing, factors)
    return _scan(canvas.image, factors, noise), canvas.label, factors


def _blood(factors: dict) -> dict[str, float]:
    """HU of blood by compartment, of the myocardium and of the liver."""
    names = ("left", "pulmonary", "right", "myocardium", "liver")
    plain = dict(zip(names, PHASES["non_contrast"], strict=True))
    return {
        name: plain[name] + factors["contrast_level"] * (level - plain[name])
        for name, level in zip(names, PHASES[factors["phase"]], strict=True)
    }


def _paint_wall(canvas: Canvas, points: np.ndarray, factors: dict, rng: np.random.Generator) -> None:
    """Skin, fat, muscle with fat planes, ribs and sternum; what is inside is left as muscle."""
    x, y, z = points
    wide = 152 + factors["fat_mm"] * 0.7
    deep = 104 + factors["fat_mm"] * 0.7
    body = (np.abs(x / wide) ** 2.5 + np.abs(y / deep) ** 2.5) ** np.float32(0.4) * deep - deep
    canvas.paint(body, 20, ID["muscle"])
    canvas.paint(body + 2.5, -105, ID["fat"])
    muscle = body + 2.5 + factors["fat_mm"] * (0.8 + 0.2 * Waves.draw(rng, 90)(points))
    canvas.paint(muscle, 55, ID["muscle"])
    cage = _cage(points)
    planes = np.abs(Waves.draw(rng, 55)(points)) * 9 - 1.6
    canvas.paint(np.maximum(np.maximum(planes, 12 - cage), muscle + 2), -80, ID["fat"])
    slope = z + np.float32(0.35) * y
    row = np.abs(np.mod(slope, 30) - 15) - 5.5
    ribs = smooth_max(row, np.abs(cage - 5) - 4, 3)
    ribs = np.maximum(ribs, 42 - np.abs(x) - 60 * (y < 0))
    canvas.paint(ribs, 420, ID["bone"])
    canvas.paint(ribs + 2, 180)
    sternum = smooth_max(np.abs(x) - 19, np.abs(cage - 6) - 6, 5)
    sternum = np.maximum(np.maximum(sternum, -y), -55 - z)
    canvas.paint(sternum, 330, ID["bone"])
    canvas.paint(sternum + 2, 140)


def _cage(points: np.ndarray) -> np.ndarray:
    """Signed distance to the inside of the rib cage, dented at the spine."""
    x, y, _ = points
    cavity = (np.abs(x / 128) ** 2.4 + np.abs((y - 4) / 84) ** 2.4) ** np.float32(1 / 2.4) * 90 - 90
    return smooth_max(cavity, 26 - np.hypot(x, (y + 78) * 0.8), 14)


def _paint_lungs(canvas: Canvas, points: np.ndarray, sac: np.ndarray, factors: dict, rng: np.random.Generator) -> None:
    """Fat of the mediastinum, both lungs with vessels that thin out from the hilum, the domes of the abdomen."""
    x, y, z = points
    cage = _cage(points)
    canvas.paint(cage, -90, ID["fat"])
    middle = np.abs(x + 4) - 30 + 14 * np.clip((y - 10) / 50, -0.3, 1)
    lung = smooth_max(cage + 1.5, -smooth_min(sac - 2, middle, 16), 5)
    dome = np.minimum(
        ellipsoid(points, (68, 0, -168), (80, 100, 144)), ellipsoid(points, (-72, 0, -168), (76, 98, 128))
    )
    dome = smooth_min(dome, z + 60, 20) - np.float32(factors["diaphragm_mm"])
    density = -855 - 0.45 * y + 12 * Waves.draw(rng, 25)(points)
    canvas.paint(lung, density, ID["lung"])
    hilum = np.hypot(np.hypot(np.abs(x) - 36, y + 8), z - 25)
    for wavelength, thickest in ((52, 5.5), (30, 2.6)):
        first, second = (Waves.draw(rng, wavelength).distance_to_zero(points) for _ in range(2))
        vessel = np.hypot(first, second) - thickest * np.clip(1.1 - hilum / 140, 0.35, 1)
        canvas.paint(np.maximum(vessel, lung + 1), 40, ID["lung_vessel"])
    abdomen = np.maximum(dome, cage)
    canvas.paint(abdomen, _blood(factors)["liver"], ID["abdomen"])
    stomach = np.maximum(ellipsoid(points, (-66, 22, -84), (36, 42, 28)), abdomen + 5)
    canvas.paint(stomach, 20, ID["abdomen"])
    canvas.paint(np.maximum(stomach + 4, 34 - y), -950, ID["airway"])


def _paint_spine(canvas: Canvas, points: np.ndarray) -> None:
    """Back muscles, vertebral bodies with discs, canal, arch, spinous and transverse processes."""
    x, y, z = points
    both = mirror(points)
    muscle = np.hypot((both[0] - 27) / 23, (y + 88) / 15) * 16 - 16
    canvas.paint(muscle, 58, ID["muscle"])
    level = np.abs(np.mod(z, 26) - 13)
    body = np.hypot(x / 18, (y + 60) / 15) * 16 - 16
    disc = 11 - level
    canvas.paint(body, 75, ID["muscle"])
    bone = smooth_max(body, -disc - 1, 2)
    arch = np.abs(np.hypot(x, y + 82) - 11) - 3.5
    spinous = np.maximum(np.maximum(np.abs(x) - 3, np.abs(y + 100) - 9), 6 - level)
    wings = np.maximum(np.maximum(np.abs(y + 82 + 0.35 * (both[0] - 12)) - 4, np.abs(both[0] - 24) - 14), 5 - level)
    posterior = np.minimum(np.minimum(np.maximum(arch, 4 - level), spinous), wings)
    for part, rim in ((bone, 2.0), (posterior, 1.8)):
        canvas.paint(part, 420, ID["bone"])
        canvas.paint(part + rim, 190)
    canvas.paint(np.hypot(x, y + 82) - 8, 25, ID["spinal_canal"])


def _chambers(heart: np.ndarray, factors: dict) -> dict[str, np.ndarray]:
    """Signed distances of the chambers in the frame of the heart, and of the sac round all of them."""
    axis = np.array([-0.69, 0.50, -0.52]) / np.linalg.norm([-0.69, 0.50, -0.52])
    septal = np.array([0.62, 0.76, 0.0])
    septal -= axis * (axis @ septal)
    septal /= np.linalg.norm(septal)
    base = np.array([-24, 2, -8], np.float32)[:, None, None, None]
    local = turn_points(np.stack([axis, septal, np.cross(axis, septal)]), heart - base)

    girth = 34 - 2 * factors["contraction"]
    inner = girth - 9 - 4 * factors["contraction"]
    epicardium = smooth_max(ellipsoid(local, (0, 0, 0), (52, girth, girth)), -26 - local[0], 8)
    left = smooth_max(ellipsoid(local, (-2, 0, 0), (inner + 18, inner, inner)), -28 - local[0], 4)
    right = smooth_max(ellipsoid(local, (-2, 26, 2), (48, 30, 36)), -28 - local[0], 6)
    right = smooth_min(right, tube(heart, [(2, 40, 4), (-8, 36, 26)], [14, 12]), 8)
    right = smooth_max(right, 2.5 - epicardium, 3)
    right_atrium = ellipsoid(heart, (40, 8, 0), (23, 26, 30))
    left_atrium = ellipsoid(heart, (6, -24, 14), (29, 18, 21))
    sac = smooth_min(smooth_min(epicardium, right, 10), smooth_min(right_atrium, left_atrium, 10), 18)
    for side in (-1, 1):
        veins = tube(heart, [(6 + 16 * side, -26, 16), (6 + 48 * side, -34, 20)], [7, 6])
        left_atrium = smooth_min(left_atrium, veins, 6)
    return {
        "epicardium": epicardium,
        "lv_cavity": left,
        "rv_cavity": right,
        "left_atrium": smooth_max(left_atrium, 2 - np.minimum(epicardium, right_atrium), 2),
        "right_atrium": smooth_max(right_atrium, 2 - epicardium, 2),
        "sac": sac - factors["pericardial_fat_mm"],
    }


def _paint_vessels(canvas: Canvas, points: np.ndarray, blood: dict) -> None:
    """Airways, oesophagus, caval veins, descending aorta."""
    canvas.paint(tube(points, [(2, -22, 200), (2, -24, 62)], [11, 10]), 40, ID["muscle"])
    both = mirror(points)
    airway = np.minimum(
        tube(points, [(2, -22, 200), (2, -24, 62)], [8.5, 8]), tube(both, [(2, -24, 62), (40, -24, 36)], [7, 5])
    )
    canvas.paint(airway, -980, ID["airway"])
    canvas.paint(tube(points, [(-6, -38, -200), (-4, -38, 200)], [8, 8]), 35, ID["muscle"])
    cava = np.minimum(
        tube(points, [(34, 6, 200), (34, 4, 26)], [9, 10]), tube(points, [(26, 0, -26), (26, -14, -200)], [12, 12])
    )
    canvas.paint(cava, blood["right"], ID["vena_cava"])
    descending = tube(points, [(-24, -34, 74), (-27, -46, 56), (-24, -46, -200)], [12, 12, 11])
    canvas.paint(descending - 1.5, 45, ID["muscle"])
    canvas.paint(descending, blood["left"], ID["descending_aorta"])


def _paint_heart(canvas: Canvas, heart: np.ndarray, chambers: dict, blood: dict) -> None:
    """Pericardium and its fat, walls and blood of the chambers, then the arteries that leave them."""
    canvas.paint(chambers["sac"] - 1.5, 20, ID["muscle"])
    canvas.paint(chambers["sac"], -95, ID["pericardial_fat"])
    for name, wall in (("right_atrium", 2.5), ("left_atrium", 2.5), ("rv_cavity", 3.5)):
        canvas.paint(chambers[name] - wall, blood["myocardium"], ID["heart_wall"])
    canvas.paint(chambers["right_atrium"], blood["right"], ID["right_atrium"])
    canvas.paint(chambers["left_atrium"], blood["left"], ID["left_atrium"])
    canvas.paint(chambers["rv_cavity"], blood["right"], ID["rv_cavity"])
    canvas.paint(chambers["epicardium"], blood["myocardium"], ID["lv_myocardium"])
    canvas.paint(chambers["lv_cavity"], blood["left"], ID["lv_cavity"])
    pulmonary = np.minimum(
        tube(heart, [(-8, 36, 26), (-18, 18, 50), (0, -8, 48), (52, -14, 40)], [12, 12, 10, 8]),
        tube(heart, [(-18, 18, 50), (-32, -10, 50), (-56, -24, 44)], [11, 9, 7]),
    )
    canvas.paint(np.maximum(pulmonary - 1.5, 1 - chambers["rv_cavity"]), 40, ID["heart_wall"])
    canvas.paint(pulmonary, blood["pulmonary"], ID["pulmonary_artery"])
    aorta = tube(heart, [(-4, 6, 8), (5, 8, 24), (12, 14, 50), (4, 4, 78), (-24, -34, 78)], [12, 15, 15, 14, 12])
    canvas.paint(np.maximum(aorta - 1.5, 1 - chambers["lv_cavity"]), 45, ID["heart_wall"])
    canvas.paint(aorta, blood["left"], ID["ascending_aorta"])


def _paint_coronaries(canvas: Canvas, heart: np.ndarray, blood: dict, factors: dict, rng: np.random.Generator) -> None:
    """Anterior descending, circumflex and right coronary artery, with calcified plaques along them."""
    radius = max(1.8, 0.5 * canvas.voxel)
    for path in CORONARIES:
        canvas.paint(tube(heart, path, [radius] * len(path)), blood["left"], ID["coronary_artery"])
    for _ in range(factors["lesions"]):
        path = np.array(CORONARIES[rng.choice(3, p=[0.5, 0.2, 0.3])], float)
        piece = min(int(rng.exponential(1.0)), len(path) - 2)
        centre = path[piece] + rng.uniform(0.1, 0.9) * (path[piece + 1] - path[piece]) + rng.normal(0, 0.7, 3)
        # Plaques below the size of a voxel would vanish from coarse grids, and the burden with them.
        radii = np.maximum(rng.lognormal(np.log(1.8), 0.35, 3), 0.62 * canvas.voxel)
        plaque = ellipsoid(heart, tuple(centre), tuple(radii))
        canvas.paint(plaque, rng.uniform(550, 1300), ID["coronary_calcium"])


def _measure(canvas: Canvas, spacing: tuple[float, float, float], factors: dict) -> None:
    """Add the factors of `MEASURED`, from the label map and the image without noise."""
    voxel = float(np.prod(spacing))
    calcium = (canvas.label == ID["coronary_calcium"]) & (canvas.image >= 130)
    weight = np.clip(np.floor(canvas.image[calcium] / 100), 1, 4)
    factors["lv_volume_ml"] = float((canvas.label == ID["lv_cavity"]).sum() * voxel / 1000)
    factors["calcium_volume_mm3"] = float((canvas.label == ID["coronary_calcium"]).sum() * voxel)
    factors["agatston"] = float(weight.sum() * voxel / 3)


def _scan(clean: np.ndarray, factors: dict, rng: np.random.Generator) -> np.ndarray:
    """Noise with a [1 2 1] texture within each slice, of exactly the wanted standard deviation."""
    noise = rng.normal(0, factors["noise_sigma"], clean.shape).astype(np.float32)
    for axis in (1, 2):
        noise = (2 * noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)) / np.float32(np.sqrt(6))
    return np.maximum(clean + noise, -1024).astype(np.float32)
