"""Caches of weights, faked."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from splitshuffle_gan.extractors import weights
from splitshuffle_gan.extractors.catalogue import EXTRACTORS
from splitshuffle_gan.extractors.encoder import Encoder, EncoderConfig
from splitshuffle_gan.extractors.medicalnet import medicalnet


@pytest.fixture
def empty_caches(tmp_path, monkeypatch) -> None:
    """No cache, no network and nothing shipped, whatever this machine has."""

    def unreachable(*args, **options):
        raise LocalEntryNotFoundError("no network\nat all")

    monkeypatch.setattr(weights, "try_to_load_from_cache", lambda repository, file: None)
    monkeypatch.setattr(weights, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(weights, "hf_hub_download", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(weights, "shipped", lambda name: None)


@pytest.fixture
def minis(empty_caches, tmp_path, monkeypatch) -> Path:
    """The folder of tiny networks saved as those that ship, which are found there."""
    for name, rank in (("med3d-mini", 3), ("med2d-mini", 2)):
        folder = tmp_path / "shipped" / name
        Encoder(EncoderConfig(rank=rank, widths=(4, 4, 4, 4), lateral=2)).save_pretrained(folder)
        digest = weights.file_sha256(folder / "model.safetensors")
        (folder / "weights.sha256").write_text(f"{digest}  model.safetensors\n")
    monkeypatch.setattr(weights, "shipped", lambda name: tmp_path / "shipped" / name)
    return tmp_path / "shipped"


@pytest.fixture
def resnet10_file(tmp_path) -> Path:
    """Weights of MedicalNet's 10 layers that nobody published."""
    path = tmp_path / "mine.pth"
    torch.save(medicalnet(10).state_dict(), path)
    return path


@pytest.fixture
def publish(monkeypatch) -> Callable[[str, Path], None]:
    """`publish(name, path)` makes that file the one that is published for an extractor."""

    def make_published(name: str, path: Path) -> None:
        published = replace(EXTRACTORS[name].published, sha256=weights.file_sha256(path))
        monkeypatch.setitem(EXTRACTORS, name, replace(EXTRACTORS[name], published=published))

    return make_published


@pytest.fixture
def cache(empty_caches, monkeypatch) -> Callable[[Path], None]:
    """`cache(path)` makes that file the one in the Hugging Face cache, whatever is asked for."""
    return lambda path: monkeypatch.setattr(weights, "try_to_load_from_cache", lambda repository, file: str(path))
