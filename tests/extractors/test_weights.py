"""Where weights come from, what their sha256 must be, and what is said when they are missing."""

import shutil

import pytest
import torch
from huggingface_hub.errors import HTTPError

from splitshuffle_gan.checkpoint import shipped
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors import weights
from splitshuffle_gan.extractors.catalogue import EXTRACTORS, open_extractor
from splitshuffle_gan.extractors.weights import file_sha256

pytestmark = pytest.mark.usefixtures("empty_caches")

# --- the sha256 ------------------------------------------------------------------------------------------------------


def test_a_stated_sha256_is_checked(resnet10_file):
    digest = file_sha256(resnet10_file)
    assert open_extractor("medicalnet-resnet10", resnet10_file, sha256=digest.upper()).weights_sha256 == digest
    with pytest.raises(UserError) as caught:
        open_extractor("medicalnet-resnet10", resnet10_file, sha256="0" * 64)
    assert digest in str(caught.value) and "0" * 64 in str(caught.value)
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        open_extractor("medicalnet-resnet10", resnet10_file, sha256="abc")


def test_a_file_that_claims_to_be_the_published_one_must_be(resnet10_file, publish):
    path = resnet10_file.with_name("resnet_10_23dataset.pth")
    shutil.copy(resnet10_file, path)
    with pytest.raises(UserError, match="tampered with or damaged") as caught:
        open_extractor("medicalnet-resnet10", path)
    assert EXTRACTORS["medicalnet-resnet10"].published.sha256 in str(caught.value)
    assert open_extractor("medicalnet-resnet10", path, sha256=file_sha256(path)).note  # the user vouches for it
    publish("medicalnet-resnet10", path)
    assert open_extractor("medicalnet-resnet10", path).note == ""


def test_a_file_in_the_hub_cache_must_be_what_its_blob_is_called(resnet10_file, tmp_path, cache):
    blob = tmp_path / "blobs" / file_sha256(resnet10_file)
    blob.parent.mkdir()
    shutil.copy(resnet10_file, blob)
    link = tmp_path / "snapshot" / "some.pth"
    link.parent.mkdir()
    link.symlink_to(blob)
    cache(link)
    assert open_extractor("medicalnet-resnet10").weights_sha256 == blob.name
    state = torch.load(blob, weights_only=True)
    state["bn1.weight"][0] += 1
    torch.save(state, blob)
    with pytest.raises(UserError, match="tampered with.*name in the Hugging Face cache"):
        open_extractor("medicalnet-resnet10")


# --- missing weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "size"),
    [
        ("medicalnet-resnet10", "resnet_10_23dataset.pth", "57.5 MB"),
        ("medicalnet-resnet50", "resnet_50_23dataset.pth", "184.9 MB"),
        ("inception", "weights-inception-2015-12-05-6726825d.pth", "95.6 MB"),
        ("radimagenet-resnet50", "ResNet50.pt", "94.3 MB"),
    ],
)
def test_missing_weights_offline_are_explained_in_one_line(name, file, size):
    with pytest.raises(UserError) as caught:
        open_extractor(name)
    message = str(caught.value)
    published = EXTRACTORS[name].published
    for words in (file, size, published.sha256, published.page, "--weights", "no network"):
        assert words in message
    assert "\n" not in message


def test_a_path_without_a_file_is_named(tmp_path):
    with pytest.raises(UserError, match="none.pth is not a file"):
        open_extractor("medicalnet-resnet10", tmp_path / "none.pth")


def test_without_a_network_the_hub_is_asked_once(monkeypatch):
    def unreachable(*args, **options):
        raise HTTPError("[Errno -2] Name or service not known")  # what the hub's own HTTP library raises

    def patient(*args, **options):
        pytest.fail("hf_hub_download tries again for 23 s")

    monkeypatch.setattr(weights, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(weights, "hf_hub_download", patient)
    with pytest.raises(UserError, match="Name or service not known.*hf download Lab-Rasool/RadImageNet ResNet50.pt"):
        open_extractor("radimagenet-resnet50")


def test_weights_are_downloaded_once_they_are_reachable(resnet10_file, publish, monkeypatch):
    publish("medicalnet-resnet10", resnet10_file)
    asked = []
    monkeypatch.setattr(weights, "get_hf_file_metadata", asked.append)
    monkeypatch.setattr(weights, "hf_hub_download", lambda repository, file: str(resnet10_file))
    assert open_extractor("medicalnet-resnet10").note == ""
    repository = "https://huggingface.co/TencentMedicalNet/MedicalNet-Resnet10"
    assert asked == [f"{repository}/resolve/main/resnet_10_23dataset.pth"]


# --- the networks that ship ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rank"), [("med3d-mini", 3), ("med2d-mini", 2)])
def test_the_mini_networks_are_found_and_checked(name, rank, minis):
    extractor = open_extractor(name)
    assert (extractor.rank, extractor.dimension, extractor.note) == (rank, 8, "")
    assert extractor.network(torch.zeros(2, 1, *(8,) * rank)).shape == (2, 8)
    file = minis / name / "model.safetensors"
    assert extractor.weights_sha256 == file_sha256(file)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="tampered with or damaged.*weights.sha256"):
        open_extractor(name)
    (minis / name / "weights.sha256").unlink()
    with pytest.raises(UserError, match="weights.sha256: is missing"):
        open_extractor(name)


def test_a_mini_network_of_ones_own(minis, tmp_path):
    own = shutil.copytree(minis / "med3d-mini", tmp_path / "own")
    for path in (own, own / "model.safetensors"):
        assert "not those that ship" in open_extractor("med3d-mini", path).note
    with pytest.raises(UserError, match="rank 3, wanted rank 2"):
        open_extractor("med2d-mini", own)
    shutil.copy(own / "model.safetensors", own / "other.safetensors")
    with pytest.raises(UserError, match="a folder with config.json"):
        open_extractor("med3d-mini", own / "other.safetensors")


def test_a_mini_network_that_is_not_installed():
    with pytest.raises(UserError, match="med3d-mini.*not installed"):
        open_extractor("med3d-mini")


def test_shipped_looks_beside_the_package_and_in_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("splitshuffle_gan.checkpoint.__file__", str(tmp_path / "repo" / "splitshuffle_gan" / "c.py"))
    monkeypatch.setattr("sysconfig.get_path", lambda name, scheme: str(tmp_path / "prefix"))
    assert shipped("some") is None
    installed = tmp_path / "prefix" / "share" / "splitshuffle_gan" / "checkpoints" / "some"
    for folder in (installed, tmp_path / "repo" / "checkpoints" / "some"):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
        assert shipped("some") == folder
