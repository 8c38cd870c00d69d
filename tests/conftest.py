"""Fixtures shared by the whole suite."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans (hippocampus/images, ...); skips where there is none."""
    folder = Path(os.environ.get("SPLITSHUFFLE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "hippocampus" / "images").is_dir():
        pytest.skip("no real scans: set SPLITSHUFFLE_TEST_DATA to a folder that holds hippocampus/images")
    return folder
