"""The shipped ruler on real scans: two sets of scans are alike to it; damage and another organ are far away."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from splitshuffle_gan.data.phantom import make_phantom
from splitshuffle_gan.data.prepare import PrepareConfig, prepare
from splitshuffle_gan.extractors.catalogue import open_extractor
from splitshuffle_gan.metrics.score import Settings, measure
from splitshuffle_gan.metrics.source import from_arrays, open_volumes
from splitshuffle_gan.metrics.volume_set import IntensityRule, VolumeSet

N = 100


@pytest.fixture(scope="module")
def halves(real_data, tmp_path_factory) -> tuple[VolumeSet, VolumeSet, VolumeSet]:
    """All prepared scans, and two disjoint sets of 100 of them."""
    out = tmp_path_factory.mktemp("real") / "dataset"
    scans = open_volumes(
        prepare(PrepareConfig(real_data / "hippocampus" / "images", out, (32, 48, 32), (1.0, 1.0, 1.0)))
    )
    order = np.random.default_rng(3).permutation(len(scans))
    return scans, scans.subset(order[:N]), scans.subset(order[N : 2 * N])


def fid_row(generated, real) -> dict:
    settings = Settings(metrics=("fid",), resamples=20)
    card = measure(generated, real, open_extractor("med3d-mini"), settings=settings)
    return next(row for row in card["metrics"] if row["metric"] == "fid_3d")


def test_other_scans_lie_within_the_floor_and_damage_far_outside(halves, cpu):
    scans, here, there = halves
    floor = fid_row(scans, scans)["floor"]  # at n = 100 it takes all 200 scans
    assert floor["n"] == N
    low, high = floor["interval"]
    assert low <= fid_row(here, there)["value"] <= high
    volumes = here.array()
    rng = np.random.default_rng(0)
    phantoms = [make_phantom("brain", (32, 48, 32), (5.6, 4.6, 5.5), seed).image for seed in range(N)]
    others = {
        "noise": np.clip(volumes + rng.normal(0, 0.2, volumes.shape), -1, 1),
        "blur": np.stack([gaussian_filter(volume, 1) for volume in volumes]),
        "phantoms": [IntensityRule().to_unit(image, "phantom") for image in phantoms],
    }
    for name, damaged in others.items():
        assert fid_row(from_arrays(damaged, scans.spacing), there)["value"] > 5 * high, name
