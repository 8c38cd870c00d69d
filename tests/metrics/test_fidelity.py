"""torch-fidelity, called as it is, and only where it is asked for."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from splitshuffle_gan.metrics import fidelity
from splitshuffle_gan.metrics.fidelity import kid, kid_subset_size, precision_recall
from splitshuffle_gan.metrics.resampling import TooFewSamples


@pytest.fixture(scope="module")
def sides() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return 0.5 * rng.normal(size=(60, 8)), rng.normal(size=(80, 8))


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_only_this_module_imports_torch_fidelity():
    others = "frechet, neighbours, resampling, ssim"
    code = f"import sys; from splitshuffle_gan.metrics import {others}; print('torch_fidelity' in sys.modules)"
    assert run_python(code).strip() == "False"


@pytest.mark.parametrize("before", ["", "import contextlib\nwith contextlib.suppress(Exception): import torchvision\n"])
def test_imports_even_after_torchvision_failed(before):
    code = before + "import splitshuffle_gan.metrics.fidelity, torch_fidelity, torchvision.transforms; print('fine')"
    assert run_python(code).strip() == "fine"


def test_nothing_is_declared_where_torchvision_imports():
    # It is imported by now, so importing it again succeeds.
    assert fidelity._import_torchvision() is None


def test_other_failures_of_torchvision_pass(monkeypatch):
    def fail(name, *arguments, **keywords):
        raise RuntimeError("something else")

    monkeypatch.setattr("builtins.__import__", fail)
    with pytest.raises(RuntimeError, match="something else"):
        fidelity._import_torchvision()


def test_kid_is_torch_fidelitys(sides):
    from torch_fidelity.metric_kid import kid_features_to_metric

    tensors = [torch.from_numpy(features) for features in sides]
    direct = kid_features_to_metric(*tensors, kid_subset_size=20, kid_subsets=7, rng_seed=3, verbose=False)
    assert kid(*sides, subset_size=20, subsets=7, seed=3) == direct["kernel_inception_distance_mean"]
    assert kid(*sides, subset_size=20, subsets=7, seed=4) != direct["kernel_inception_distance_mean"]
    assert kid(*sides, subset_size=21, subsets=7, seed=3) != direct["kernel_inception_distance_mean"]


def test_kid_of_the_whole_is_the_estimate_from_all_pairs():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(15, 4)) + 1, rng.normal(size=(15, 4))
    inner_a, inner_b, across = ((x @ y.T / 4 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    truth = sum((m.sum() - np.trace(m)) / (15 * 14) for m in (inner_a, inner_b)) - 2 * across.mean()
    assert kid(a, b, subset_size=15, subsets=1, seed=0) == pytest.approx(truth)
    assert kid(a, b, subset_size=7, subsets=4000, seed=0) == pytest.approx(truth, rel=0.05)


def test_precision_and_recall_are_torch_fidelitys_in_this_order(sides):
    from torch_fidelity.metric_prc import prc_features_to_metric

    tensors = [torch.from_numpy(features) for features in sides]
    direct = prc_features_to_metric(*tensors, prc_neighborhood=4, verbose=False)
    precision, recall = precision_recall(*sides, neighbours=4)
    assert (precision, recall) == (direct["precision"], direct["recall"])
    assert precision_recall(*sides[::-1], neighbours=4) == (recall, precision)
    # The narrow side, given as generated, is faithful and not varied.
    assert precision > 0.9 > 0.5 > recall


def test_nothing_is_printed(sides, capfd):
    kid(*sides, subset_size=20, subsets=5, seed=0)
    precision_recall(*sides)
    assert capfd.readouterr() == ("", "")


def test_global_random_state_is_left_alone(sides):
    before = np.random.get_state()[1].copy()
    kid(*sides, subset_size=20, subsets=5, seed=0)
    assert (np.random.get_state()[1] == before).all()


def test_subset_size_fits():
    assert [kid_subset_size(n) for n in (4, 5, 200, 1999, 2000, 10**6)] == [2, 2, 100, 999, 1000, 1000]
    with pytest.raises(TooFewSamples, match="4 a side.* has 3"):
        kid_subset_size(3)


def test_too_few_samples(sides):
    with pytest.raises(TooFewSamples, match="subsets of 61: 2 to 60"):
        kid(*sides, subset_size=61, subsets=1, seed=0)
    with pytest.raises(TooFewSamples, match="subsets of 1"):
        kid(*sides, subset_size=1, subsets=1, seed=0)
    with pytest.raises(TooFewSamples, match="4 samples a side; the smaller side has 3"):
        precision_recall(sides[0][:3], sides[1])


def test_options_that_torch_fidelity_would_ignore_are_refused():
    with pytest.raises(RuntimeError, match="kid_subset_sise"):
        fidelity._known({"kid_subset_sise": 3})
