"""Features in order, whatever the batches; slices of the right axis; a cache that knows what it holds."""

import io
import itertools
import os
import pickle

import numpy as np
import pytest
import torch

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.catalogue import Extractor
from splitshuffle_gan.extractors.encoder import Encoder, EncoderConfig
from splitshuffle_gan.metrics.features import cached_extract, default_cache, extract, plane_slices, store
from splitshuffle_gan.metrics.source import from_arrays
from splitshuffle_gan.metrics.volume_set import VolumeSet, hash_of, volume_hash

pytestmark = pytest.mark.usefixtures("cpu")
SHAPE = (8, 12, 16)
ORDER = {"axial": "zyx", "coronal": "yzx", "sagittal": "xzy"}  # of the array's axes D, H, W


def make_extractor(rank: int = 3, seed: int = 0) -> Extractor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Encoder(EncoderConfig(rank=rank, widths=(4, 4, 4, 4), lateral=2)).eval()
    return Extractor("tiny", rank, network.dimension, network, "", "", "", f"seed {seed}", str(seed))


def make_volumes(count: int = 5, plane: str = "axial") -> VolumeSet:
    return from_arrays(np.random.default_rng(0).uniform(-1, 1, (count, *SHAPE)).astype(np.float32), plane=plane)


@torch.no_grad()
def bare(extractor: Extractor, images: np.ndarray) -> np.ndarray:
    return extractor.network(torch.from_numpy(images)[:, None]).double().numpy()


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_features_are_the_bare_networks_in_order(batch_size):
    extractor, volumes = make_extractor(), make_volumes()
    found = extract(volumes, extractor, batch_size)
    assert found.shape == (5, extractor.dimension) and found.dtype == np.float64
    for volume, row in zip(volumes.array(), found, strict=True):
        np.testing.assert_allclose(row, bare(extractor, volume[None])[0], rtol=1e-5, atol=1e-6)
    assert np.ptp(found, axis=0).max() > 1e-3


@pytest.mark.parametrize("plane", ORDER)
def test_slices_are_the_bare_networks_in_order(plane):
    extractor, volumes = make_extractor(rank=2), make_volumes(3, plane="coronal")
    found = extract(volumes, extractor, 2, plane=plane, slices=4)
    assert found.shape == (3, 4, extractor.dimension)
    for volume, rows in zip(volumes.array(), found, strict=True):
        expected = bare(extractor, np.ascontiguousarray(plane_slices(volume, "coronal", plane, 4)))
        np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)


def test_bf16_is_close_to_float32_and_not_the_same():
    extractor, volumes = make_extractor(), make_volumes()
    exact, rough = (extract(volumes, extractor, dtype=dtype) for dtype in ("float32", "bf16"))
    assert 0 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()
    with pytest.raises(UserError, match="dtype: found 'float16', must be one of float32, bf16"):
        extract(volumes, extractor, dtype="float16")


def test_features_that_are_not_finite_are_refused():
    extractor = make_extractor()
    extractor.network.laterals[0][1].weight.data.fill_(np.nan)
    with pytest.raises(UserError, match="tiny: features of arrays are not finite"):
        extract(make_volumes(), extractor)


@pytest.mark.parametrize("have, want", list(itertools.product(ORDER, ORDER)))
def test_slices_lie_across_the_anatomical_axis(have, want):
    """Volumes whose value is the coordinate along x (Right), y (Anterior) or z (Superior)."""
    sides = {"x": 11, "y": 21, "z": 31}
    grids = dict(zip("xyz", np.meshgrid(*map(np.arange, sides.values()), indexing="ij"), strict=True))
    normal, rows, columns = ORDER[want]
    slices = {
        name: plane_slices(grid.transpose(["xyz".index(axis) for axis in ORDER[have]]), have, want, 3)
        for name, grid in grids.items()
    }
    assert slices[normal].shape == (3, sides[rows], sides[columns])
    depth = sides[normal] - 1
    for index, position in enumerate((0.1 * depth, 0.5 * depth, 0.9 * depth)):
        assert (slices[normal][index] == position).all()
        assert (slices[rows][index] == np.arange(sides[rows])[:, None]).all()
        assert (slices[columns][index] == np.arange(sides[columns])).all()


def test_a_short_axis_gives_each_slice_once():
    volume = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((4, 6, 6), np.float32)
    assert plane_slices(volume, "axial", "axial", 50)[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert extract(from_arrays([volume / 4] * 2), make_extractor(rank=2), plane="axial", slices=50).shape[1] == 4


def test_a_stored_set_reads_the_same_and_only_once(tmp_path):
    volumes = make_volumes()
    reads = []

    def read(index):
        reads.append(index)
        return volumes.read(index)

    slow = VolumeSet("slow", "scans", SHAPE, volumes.spacing, "axial", None, volumes.names, read, {"more": 1})
    stored, hashes = store(slow, tmp_path, "generated")
    np.testing.assert_array_equal(stored.array(), volumes.array())
    assert reads == [0, 1, 2, 3, 4]
    assert hashes == [volume_hash(volume) for volume in volumes.array()] and hash_of(hashes) == volumes.data_hash
    for field in ("name", "kind", "shape", "spacing", "plane", "rule", "names", "details"):
        assert getattr(stored, field) == getattr(slow, field)
    same, again = store(volumes, tmp_path, "real")
    assert same is volumes and again == hashes


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(tmp_path):
    """`counted(volumes, ...)`: features through the cache, and how many batches the network saw."""

    def call(volumes=None, extractor=None, cache=tmp_path / "cache", **settings) -> tuple[np.ndarray, int]:
        volumes, extractor = volumes or make_volumes(), extractor or make_extractor()
        batches = []
        hook = extractor.network.register_forward_hook(lambda *_: batches.append(1))
        found = cached_extract(volumes, volumes.data_hash, extractor, cache, **settings)
        hook.remove()
        np.testing.assert_allclose(found, extract(volumes, extractor, **settings), rtol=0, atol=0)
        return found, len(batches)

    return call


def test_what_is_cached_is_not_computed_again(counted, tmp_path):
    assert counted()[1] == 1
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]
    assert counted()[1] == 0
    assert counted(cache=None)[1] == 1
    slices = {"extractor": make_extractor(rank=2), "plane": "axial", "slices": 3}
    assert (counted(**slices)[1], counted(**slices)[1]) == (1, 0)


def one_voxel_changed() -> VolumeSet:
    array = make_volumes().array()
    array[3, 1, 2, 3] = 0.25
    return from_arrays(array)


@pytest.mark.parametrize(
    "changes",
    [
        {"volumes": one_voxel_changed()},
        {"volumes": make_volumes().subset([0, 1, 2, 3])},
        {"volumes": make_volumes().subset([1, 0, 2, 3, 4])},
        {"extractor": make_extractor(seed=1)},
        {"dtype": "bf16"},
        {"batch_size": 2},
    ],
    ids=["voxel", "n", "order", "weights", "dtype", "batch size"],
)
def test_whatever_changes_features_is_another_key(counted, tmp_path, changes):
    counted()
    assert counted(**changes)[1] > 0
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_every_plane_and_number_of_slices_is_another_key(counted, tmp_path):
    for number, (plane, slices) in enumerate(itertools.product(ORDER, (2, 3)), start=1):
        assert counted(extractor=make_extractor(rank=2), plane=plane, slices=slices)[1] == 1
        assert len(list((tmp_path / "cache").iterdir())) == number


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def archive() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, np.zeros((5, 8)))
    return stream.getvalue()


BROKEN = {
    "empty": lambda good: b"",
    "cut short": lambda good: good[:-7],
    "only a header": lambda good: good[:100],
    "header of nonsense": lambda good: good[:10] + b"{" * 118 + good[128:],
    "header with an endless shape": lambda good: good.replace(b"(5, 8)", b"(5, 9**9)"),
    "header with a huge shape": lambda good: good.replace(b"(5, 8), }      ", b"(5, 8000000000)"),
    "not an array": lambda good: b"\x00" * len(good),
    "not float64": lambda good: npy(np.zeros((5, 8), np.float32)),
    "too few volumes": lambda good: npy(np.zeros((4, 8))),
    "other features": lambda good: npy(np.zeros((5, 9))),
    "not finite": lambda good: npy(np.full((5, 8), np.nan)),
    "an archive": lambda good: archive(),
    "half an archive": lambda good: archive()[:60],
}


@pytest.mark.parametrize("break_it", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_computed_again(counted, tmp_path, break_it):
    counted()
    (path,) = (tmp_path / "cache").iterdir()
    good = path.read_bytes()
    path.write_bytes(break_it(good))
    assert path.read_bytes() != good
    assert counted()[1] == 1
    assert path.read_bytes() == good


@pytest.mark.parametrize("kind", ["pickle", "array of objects"])
def test_nothing_is_unpickled(counted, tmp_path, kind):
    counted()
    (path,) = (tmp_path / "cache").iterdir()
    trap = Trap(str(tmp_path / "sprung"))
    path.write_bytes(pickle.dumps(trap) if kind == "pickle" else npy(np.full((5, 8), trap, dtype=object)))
    assert counted()[1] == 1
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(FileExistsError):  # the trap is a real one
        pickle.loads(pickle.dumps(Trap(str(tmp_path / "cache"))))


def test_a_cache_that_cannot_be_written_costs_no_score(counted, tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cache: .*file.* cannot be written"):
        assert counted(cache=tmp_path / "file" / "cache")[1] == 1


def test_the_default_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "splitshuffle_gan" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "splitshuffle_gan" / "features"
