"""Training the extractor that ships, very small; and what a labelled folder must be."""

import hashlib
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitshuffle_gan.data.phantom import write_phantoms
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors import med3d
from splitshuffle_gan.extractors.catalogue import open_extractor
from splitshuffle_gan.extractors.encoder import Encoder, EncoderConfig
from splitshuffle_gan.extractors.med3d import ExtractorConfig, LabelledSet, Segmenter, order_by_hash, train_extractor

pytestmark = pytest.mark.usefixtures("cpu")
PATCH = (16, 16, 16)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """`config(...)`: a few steps on phantoms of 24 and 16 voxels a side."""
    monkeypatch.setattr(med3d, "PHANTOM_SIDES", (24, 16))

    def make(**changes) -> ExtractorConfig:
        values = {"out": tmp_path / "extractor", "phantoms": 4, "steps": 4, "batch_size": 1, "patch": PATCH}
        return ExtractorConfig(**(values | {"precision": "no"} | changes))

    return make


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return write_phantoms("brain", 5, PATCH, (14.0,) * 3, 0, tmp_path_factory.mktemp("set") / "train")


@pytest.fixture
def labelled(phantoms, tmp_path) -> Path:
    """A labelled folder to spoil, with a name that torch's containers have other uses for."""
    return Path(shutil.copytree(phantoms, tmp_path / "train"))


def losses_of(monkeypatch) -> list[float]:
    """What the loss will be, set by set and step by step."""
    found = []

    class Recorded(med3d.DiceCELoss):
        def forward(self, *args):
            loss = super().forward(*args)
            found.append(loss.item())
            return loss

    monkeypatch.setattr(med3d, "DiceCELoss", Recorded)
    return found


@pytest.mark.parametrize("rank", [2, 3])
def test_training_leaves_an_extractor(config, phantoms, rank):
    out = train_extractor(config(rank=rank, labelled=(phantoms,)))
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert (out / "weights.sha256").read_text() == f"{digest}  model.safetensors\n"
    extractor = open_extractor(f"med{rank}d-mini", out)
    assert extractor.weights_sha256 == digest and extractor.dimension == 64 and extractor.rank == rank
    assert not any(parameter.requires_grad for parameter in extractor.network.parameters())
    features = extractor.network(torch.rand(2, 1, *PATCH[:rank]))
    assert features.shape == (2, 64) and features.isfinite().all()
    assert (extractor.network.body.bn1.running_mean != 0).any()  # it has seen data
    whitening = extractor.network.whitening  # by features of the training volumes
    assert whitening.isfinite().all() and whitening.std() > 0 and not torch.equal(whitening, torch.eye(64))
    record = json.loads((out / "training.json").read_text())
    assert set(record["sets"]) == {"brain", "heart", "train"}
    assert [(entry["train"], entry["held_out"]) for entry in record["sets"].values()] == [(3, 1), (3, 1), (4, 1)]
    for entry in record["sets"].values():
        assert 0 <= entry["held_out_dice"] <= 1 and 0 < entry["last_loss"] < 10
    assert (record["config"]["steps"], record["config"]["seed"], record["config"]["rank"]) == (4, 0, rank)


def test_the_same_seed_trains_the_same_extractor(config, tmp_path):
    first, again, other = (
        train_extractor(config(out=tmp_path / name, steps=2, phantoms=3, seed=seed))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("rank", [2, 3])
def test_the_loss_falls_and_training_beats_chance(config, phantoms, monkeypatch, rank):
    losses = losses_of(monkeypatch)
    out = train_extractor(config(rank=rank, phantoms=0, labelled=(phantoms,), steps=30, batch_size=2))
    assert len(losses) == 30 and np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    trained = json.loads((out / "training.json").read_text())["sets"]["train"]["held_out_dice"]
    out = train_extractor(config(rank=rank, phantoms=0, labelled=(phantoms,), steps=1, overwrite=True))
    assert trained > 1.5 * json.loads((out / "training.json").read_text())["sets"]["train"]["held_out_dice"]


def test_every_set_has_its_say_in_every_step(config, phantoms):
    """Gradients of one set's loss reach the encoder and its own decoder, no other."""
    segmenter = Segmenter(Encoder(EncoderConfig(rank=3)), {"keys": 3, "a.b": 5})
    found = segmenter({"keys": torch.rand(1, 1, *PATCH), "a.b": torch.rand(2, 1, *PATCH)})
    assert found["keys"].shape == (1, 3, *PATCH) and found["a.b"].shape == (2, 5, *PATCH)
    found["a.b"].square().sum().backward()
    untouched = [name for name, parameter in segmenter.named_parameters() if parameter.grad is None]
    decoder = sum(1 for _ in med3d.Decoder(3, 4, 16, 3).parameters())
    assert len(untouched) == decoder and not any(name.startswith("encoder") for name in untouched)


# --- held out --------------------------------------------------------------------------------------------------------


def test_held_out_volumes_are_never_trained_on(config, phantoms, monkeypatch):
    sets, drawn = [], set()
    monkeypatch.setattr(med3d, "_labelled", lambda *args, f=med3d._labelled: sets.append(f(*args)) or sets[-1])

    def crop(image, *rest, f=med3d._crop):
        drawn.add(id(image))
        return f(image, *rest)

    monkeypatch.setattr(med3d, "_crop", crop)
    train_extractor(config(labelled=(phantoms,), steps=12, batch_size=2, held_out=0.4))
    for entry in sets:
        images = [id(image) for image in entry.images]
        assert entry.held == round(0.4 * len(images)) == 2
        assert drawn & set(images) == set(images[: -entry.held])
    # Those of the folder are the last by the hash of their names.
    names = [path.name for path in (phantoms / "images").iterdir()]
    names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    for name, image in zip(names, sets[-1].images, strict=True):
        array = nib.load(phantoms / "images" / name).get_fdata().T
        np.testing.assert_allclose(np.corrcoef(array.ravel(), image.ravel())[0, 1], 1, atol=0.05)
        assert image.min() == -1 and image.max() == 1


def test_a_set_that_grows_keeps_its_order():
    names = [f"scan{index}" for index in range(20)]
    few = order_by_hash(names[:15])
    assert [name for name in order_by_hash(names[::-1]) if name in few] == few != sorted(few)


def test_dice_is_that_of_the_held_out_volumes(monkeypatch):
    """A network that answers by a look-up: right about one volume, half right about another, wrong where it trained."""
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 3, (4, 6, 8)).astype(np.uint8) for _ in range(3)]
    answers = [np.zeros_like(labels[0]), labels[1], np.where(labels[2] == 2, 0, labels[2])]
    images = [np.full((4, 6, 8), index, np.float32) for index in range(3)]

    class Known(torch.nn.Module):
        encoder = Encoder(EncoderConfig(rank=3))

        def forward(self, batch):
            assert not self.training
            (image,) = batch.values()
            answer = torch.from_numpy(answers[int(image.flatten()[0])]).long()
            return {name: torch.nn.functional.one_hot(answer, 3).movedim(-1, 0)[None].float() for name in batch}

    entry = LabelledSet("set", images, labels, 3, 2, "")
    accelerator = med3d.make_accelerator("no")
    twos = [np.sum(label == 2) for label in labels]
    expected = (1 + 2 * twos[1] / (2 * twos[1] + twos[2])) / 2
    network = Known()
    assert med3d.held_out_dice(network, entry, accelerator) == pytest.approx(expected)
    assert network.training


# --- crops -----------------------------------------------------------------------------------------------------------

SIDES = st.tuples(*[st.integers(1, 12)] * 3)


@settings(max_examples=200, deadline=None)
@given(shape=SIDES, patch=SIDES, seed=st.integers(0, 2**32 - 1))
def test_a_crop_keeps_image_and_label_together(shape, patch, seed):
    """Every voxel has a number of its own, in image and label: what is not padding agrees, and is contiguous."""
    label = np.arange(1, np.prod(shape) + 1).reshape(shape)
    image, cut = med3d._crop(label.astype(np.float32), label, patch, np.random.default_rng(seed))
    assert image.shape == cut.shape == patch
    inside = cut > 0
    np.testing.assert_array_equal(image[inside], cut[inside])
    assert (image[~inside] == -1).all()
    assert inside.sum() == np.prod(np.minimum(shape, patch))
    where = np.argwhere(inside)
    places = np.stack(np.unravel_index(cut[inside] - 1, shape), 1)
    assert (where - where[0] == places - places[0]).all()


def test_crops_reach_every_place():
    label = np.arange(1, 4**3 + 1).reshape(4, 4, 4)
    rng = np.random.default_rng(0)
    seen = {med3d._crop(label, label, (2, 2, 2), rng)[1][0, 0, 0] for _ in range(600)}
    assert seen == set(label[:3, :3, :3].ravel())
    padded = {tuple(np.argwhere(med3d._crop(label, label, (6, 6, 6), rng)[1])[0]) for _ in range(600)}
    assert padded == set(np.ndindex(3, 3, 3))


@pytest.mark.parametrize("rank", [2, 3])
def test_batches_keep_image_and_label_together(config, rank):
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 200, (20, 24, 12)) for _ in range(4)]
    entry = LabelledSet("set", [label / 100 - 1 for label in labels], labels, 200, 1, "")
    seen = set()
    for _ in range(30):
        images, cut = med3d._batch(entry, config(rank=rank, batch_size=3, patch=(8, 16, 24)), rng)
        assert images.shape == cut.shape and images.shape[1] == 1
        seen.add(tuple(images.shape))
        inside = cut > 0
        torch.testing.assert_close(images[inside], cut[inside].to(images.dtype) / 100 - 1)
    # Three crops, or 12 slices of each (8 where there are no more), in all three planes.
    slices = {(24, 1, 16, 24), (36, 1, 8, 24), (36, 1, 8, 16)}
    assert seen == (slices if rank == 2 else {(3, 1, 8, 16, 24)})


# --- what is refused -------------------------------------------------------------------------------------------------


def spoil(path: Path, change) -> None:
    image = nib.load(path)
    array = change(image.get_fdata(dtype=np.float32).copy()).astype(np.float32)
    nib.save(nib.Nifti1Image(array, image.affine), path)


def first(folder: Path, part: str) -> Path:
    return sorted((folder / part).iterdir())[0]


BAD = {
    "labels/; a labelled": lambda folder: shutil.rmtree(folder / "labels"),
    "has no images/": lambda folder: shutil.rmtree(folder / "images"),
    r"train/labels: brain0000.nii.gz: there is no label map": lambda folder: first(folder, "labels").unlink(),
    r"labels: brain0000.nii.gz: .*has \(15, 16, 16\) voxels .*, the scan \(16, 16, 16\)": lambda folder: spoil(
        first(folder, "labels"), lambda array: array[1:]
    ),
    r"labels are 0..\d+.5, not all whole": lambda folder: spoil(first(folder, "labels"), lambda a: a + 0.5 * (a > 0)),
    r"labels are -1..\d+, not": lambda folder: spoil(first(folder, "labels"), lambda a: np.where(a > 0, a, -1)),
    r"labels are 0..256, not": lambda folder: spoil(first(folder, "labels"), lambda a: np.where(a > 0, 256, 0)),
    "labels are nan..nan, not": lambda folder: spoil(first(folder, "labels"), lambda a: np.where(a > 0, np.nan, 0)),
    "images/more.mha: .mha is not a format that is read": lambda folder: (folder / "images" / "more.mha").touch(),
    "images/brain0000.nii.gz: constant or not finite": lambda folder: spoil(first(folder, "images"), lambda a: 0 * a),
    "train: 2 labelled volumes, of which 1 are held out": lambda folder: [
        path.unlink() for path in sorted(folder.glob("*/*.gz")) if "0000" < path.name[5:9] <= "0003"
    ],
    "train: no voxel has a label": lambda folder: [spoil(p, lambda a: 0 * a) for p in (folder / "labels").iterdir()],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("message", BAD)
def test_bad_folders_are_refused_before_training(config, labelled, message):
    BAD[message](labelled)
    with pytest.raises(UserError, match=message):
        train_extractor(config(phantoms=0, labelled=(labelled,)))
    assert not config().out.exists()


def test_label_maps_are_found_by_name_whatever_the_format(config, labelled):
    """MGH images beside NIfTI label maps are the same set as NIfTI images."""
    (expected,) = med3d._open_sets(config(phantoms=0, labelled=(labelled,)))
    order = []
    for path in sorted((labelled / "images").iterdir()):
        image = nib.load(path)
        nib.save(nib.MGHImage(image.get_fdata(dtype=np.float32), image.affine), path.with_name(f"{path.name[:9]}.mgz"))
        path.unlink()
        order.append(f"{path.name[:9]}.mgz")
    (found,) = med3d._open_sets(config(phantoms=0, labelled=(labelled,)))
    before, after = (order_by_hash(names) for names in ([f"{name[:9]}.nii.gz" for name in order], order))
    for name, image, label in zip(after, found.images, found.labels, strict=True):
        same = before.index(f"{name[:9]}.nii.gz")
        np.testing.assert_allclose(image, expected.images[same], atol=1e-6)
        np.testing.assert_array_equal(label, expected.labels[same])


def test_images_that_are_not_finite_are_refused(config, labelled):
    spoil(first(labelled, "images"), lambda array: np.where(array > array.mean(), np.nan, array))
    with pytest.raises(UserError, match="brain0000.nii.gz: constant or not finite"):
        train_extractor(config(phantoms=0, labelled=(labelled,)))


def test_two_sets_of_one_name_are_refused(config, labelled, tmp_path):
    with pytest.raises(UserError, match="two sets have the same name .*train, train.*; rename"):
        train_extractor(config(phantoms=0, labelled=(labelled, labelled)))


def test_an_extractor_that_exists_is_kept(config, phantoms):
    (config().out).mkdir()
    with pytest.raises(UserError, match="exists already"):
        train_extractor(config())
    (config().out / "mine.txt").touch()
    with pytest.raises(UserError, match="has no training.json in it"):
        train_extractor(config(overwrite=True))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"phantoms": 0}, "labelled: no folder given and phantoms is 0"),
        ({"rank": 1}, "rank: found 1"),
        ({"patch": (16, 16, 12)}, r"patch: found \(16, 16, 12\), three multiples of 8"),
        ({"patch": (16, 16, 0)}, "patch: found"),
        ({"held_out": 0.0}, "held_out: found 0.0"),
        ({"held_out": 1.0}, "held_out: found 1.0"),
        ({"steps": 0}, "steps: found 0"),
        ({"batch_size": 0}, "batch_size: found 0"),
        ({"learning_rate": float("nan")}, "learning_rate: found nan, a number above 0"),
        ({"learning_rate": 0.0}, "learning_rate: found 0.0"),
        ({"precision": "fp8"}, "precision: found 'fp8', must be one of auto, bf16, no"),
    ],
)
def test_senseless_settings_are_refused(config, changes, message):
    with pytest.raises(UserError, match=message):
        config(**changes)
