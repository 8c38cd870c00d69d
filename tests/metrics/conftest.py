"""Builders of metric cards, for the tests of what reads, renders and compares them."""

import json
from types import SimpleNamespace

import pytest


def extractor(name="med3d-mini", rank=3):
    return {
        "name": name,
        "rank": rank,
        "dimension": 128,
        "topology": "residual encoder, four stages",
        "preprocessing": "none but the range",
        "expected_range": [-1.0, 1.0],
        "spacing": "1 mm",
        "weights": "model.safetensors",
        "weights_sha256": "ab" * 32,
        "note": "chosen because no other weights are at hand",
    }


def measured(metric="fid_3d", better="lower", value=12.3456, interval=(11.0, 13.5), floor=4.0, **more):
    row = {
        "metric": metric,
        "title": metric.replace("_", " "),
        "better": better,
        "value": value,
        "n": 100,
        "interval": list(interval),
        "floor": {"value": floor, "interval": [floor * 0.9, floor * 1.1], "n": 50, "splits": 20},
        "value_at_floor_n": value * 1.25,
        "settings": {"resamples": 1000, "nested": {"k": 3}},
        **more,
    }
    return row


def make_card():
    side = {"kind": "scans", "n": 100, "available": 120}
    real_pairs = {"value": 0.6123, "interval": [0.5987, 0.6234], "pairs": 777}
    return {
        "format": "splitshuffle-card",
        "version": 1,
        "created": "2026-01-02T03:04:05+00:00",
        "created_with": "0.2.0",
        "ruler": {
            "extractor": extractor(),
            "plane_extractor": extractor("med2d-mini", 2),
            "preprocessing": {
                "range": [-1, 1],
                "shape": [32, 48, 32],
                "spacing": [1.0, 0.7421875, 1.0],
                "plane": "axial",
                "intensity": {"kind": "window", "low": -200.0, "high": 500.0},
            },
            "n": 100,
            "dtype": "float32",
            "seed": 0,
            "settings": {"resamples": 1000},
        },
        "generated": {**side, "name": "samples of run3d", "data_hash": "cd" * 32, "truncation_psi": 0.7},
        "real": {**side, "name": "hippocampus", "data_hash": "ef" * 32, "reference_split": 0.5},
        "metrics": [
            measured(),
            measured("precision", "higher", 0.4321, (0.4012, 0.4678), 0.81),
            measured("ms_ssim", "like real", 0.7012, (0.6913, 0.7135), 0.6125, real=real_pairs),
            {"metric": "kid_3d", "title": "3D KID", "omitted": "n = 3 is fewer than the 4 that a subset needs"},
        ],
        "notes": ["med3d-mini is the default where no other weights are at hand."],
        "environment": {
            "python": "3.11.9",
            "torch": "2.13.0",
            "monai": "1.6.1",
            "torch_fidelity": "0.4.0",
            "numpy": "2.4.6",
            "device": "cpu",
            "processes": 1,
        },
        "seconds": 41.25,
    }


def at(card, path):
    """The container of a dotted path and its last key."""
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    for key in parents:
        card = card[key]
    return card, last


def get(path):
    container, key = at(make_card(), path)
    return container[key]


def changed(path, value):
    card = make_card()
    container, key = at(card, path)
    container[key] = value
    return card


def paths_of(value, prefix=""):
    """Every dotted path of a card: fields, and rows of metrics by number."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if prefix == "metrics" else ()
    for key, inner in items:
        path = f"{prefix}.{key}" if prefix else str(key)
        yield path
        yield from paths_of(inner, path)


def save(folder, name, card):
    """`card` as JSON alone, which is all that reading it takes."""
    path = folder / name / "card.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(card))
    return path


@pytest.fixture(scope="session")
def cards() -> SimpleNamespace:
    """`cards.make()` is a whole card, `cards.changed("ruler.n", 5)` one with another value, and so on."""
    functions = {"make": make_card, "measured": measured, "at": at, "get": get, "changed": changed}
    return SimpleNamespace(**functions, paths_of=paths_of, save=save)
