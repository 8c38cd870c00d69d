"""MedicalNet's topology against the paper's table written out, and every way its weights can be wrong."""

import os

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import resnet10, resnet50
from safetensors.torch import save_file

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.medicalnet import load_medicalnet, medicalnet, read_state

SHAPE = (24, 32, 24)
# (blocks, stride, dilation) of layer1 to layer4
TABLE = {
    10: [(1, 1, 1), (1, 2, 1), (1, 1, 2), (1, 1, 4)],
    50: [(3, 1, 1), (4, 2, 1), (6, 1, 2), (3, 1, 4)],
}


def random_state(depth: int) -> dict[str, torch.Tensor]:
    """Weights of the right names and shapes, with batch norms far from the identity."""
    random = torch.Generator().manual_seed(depth)
    state = {}
    for key, value in medicalnet(depth).state_dict().items():
        noise = torch.randn(value.shape, generator=random) if value.dim() else torch.tensor(0.0)
        if value.dim() > 1:
            state[key] = noise * (2 / value[0].numel()) ** 0.5
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif key.endswith(("running_var", "weight")):
            state[key] = 0.7 + 0.3 * noise.abs()
        else:
            state[key] = 0.2 * noise
    return state


def table_features(state: dict[str, torch.Tensor], depth: int, x: torch.Tensor) -> torch.Tensor:
    """The encoder written out from its table, with nothing but convolutions, batch norms and sums."""

    def convolve(x, name, stride=1, dilation=1):
        weight = state[f"{name}.weight"]
        reach = (weight.shape[-1] - 1) // 2 * dilation
        return F.conv3d(x, weight, None, stride, reach, dilation)

    def normalise(x, name):
        mean, var, weight, bias = (
            state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias)

    x = F.relu(normalise(convolve(x, "conv1", stride=2), "bn1"))
    x = F.max_pool3d(x, 3, 2, 1)
    for layer, (blocks, stride, dilation) in enumerate(TABLE[depth], start=1):
        for block in range(blocks):
            name, step = f"layer{layer}.{block}", stride if block == 0 else 1
            if depth == 10:
                y = F.relu(normalise(convolve(x, f"{name}.conv1", step, dilation), f"{name}.bn1"))
                y = normalise(convolve(y, f"{name}.conv2", 1, dilation), f"{name}.bn2")
            else:
                y = F.relu(normalise(convolve(x, f"{name}.conv1"), f"{name}.bn1"))
                y = F.relu(normalise(convolve(y, f"{name}.conv2", step, dilation), f"{name}.bn2"))
                y = normalise(convolve(y, f"{name}.conv3"), f"{name}.bn3")
            if x.shape != y.shape:
                x = normalise(convolve(x, f"{name}.downsample.0", step), f"{name}.downsample.1")
            x = F.relu(x + y)
    return x


@pytest.fixture
def volumes() -> torch.Tensor:
    return torch.rand(2, 1, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def states() -> dict[int, dict[str, torch.Tensor]]:
    return {depth: random_state(depth) for depth in TABLE}


@pytest.fixture
def published(states, tmp_path):
    """A file as MedicalNet publishes them: wrapped, with DataParallel's prefix."""
    path = tmp_path / "weights.pth"
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in states[10].items()}}, path)
    return path


@pytest.mark.parametrize("depth", [10, 50])
@torch.no_grad()
def test_features_are_those_of_the_papers_table(depth, volumes, states):
    network = medicalnet(depth)
    network.load_state_dict(states[depth])
    maps = []
    network.layer4.register_forward_hook(lambda module, inputs, output: maps.append(output))
    features = network(volumes)
    expected = table_features(states[depth], depth, volumes)
    assert expected.shape == (2, {10: 512, 50: 2048}[depth], 3, 4, 3)  # an eighth of the grid
    assert expected.std() > 0.1
    torch.testing.assert_close(maps[0], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features, expected.mean((2, 3, 4)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("depth", "make"), [(10, resnet10), (50, resnet50)])
@torch.no_grad()
def test_monais_own_topology_gives_other_features_from_the_same_weights(depth, make, volumes, states):
    options = {"n_input_channels": 1, "conv1_t_stride": 2, "bias_downsample": False, "feed_forward": False}
    other, network = make(spatial_dims=3, **options).eval(), medicalnet(depth)
    other.load_state_dict(states[depth])  # strictly: nothing warns
    network.load_state_dict(states[depth])
    a, b = network(volumes), other(volumes)
    assert (a - b).norm() > 0.1 * a.norm()


@torch.no_grad()
def test_small_volumes_have_features():
    for depth in TABLE:
        assert medicalnet(depth)(torch.zeros(1, 1, 8, 8, 8)).isfinite().all()


def test_depths_that_are_not_published_are_refused():
    with pytest.raises(ValueError, match="18"):
        medicalnet(18)


@pytest.mark.parametrize("form", ["as published", "bare", "safetensors", "with head", "no counters", "legacy"])
@torch.no_grad()
def test_weights_on_disk_round_trip(form, states, published, volumes, tmp_path):
    state, path = dict(states[10]), tmp_path / "other.pth"
    if form == "as published":
        path = published
    elif form == "bare":
        torch.save(state, path)
    elif form == "safetensors":
        path = tmp_path / "other.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    elif form == "with head":
        torch.save({"state_dict": state | {"conv_seg.0.weight": torch.ones(3)}}, path)
    elif form == "no counters":
        torch.save({key: value for key, value in state.items() if "num_batches" not in key}, path)
    else:
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
    network = load_medicalnet(path, 10)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    torch.testing.assert_close(network(volumes), table_features(state, 10, volumes).mean((2, 3, 4)))


def test_a_key_missing_extra_or_misshapen_is_named(states, tmp_path):
    path = tmp_path / "w.pth"
    key = "layer3.0.conv1.weight"
    for change, words in (
        (lambda s: s.pop(key), f"missing key {key}"),
        (lambda s: s.update({"fc.weight": torch.ones(2)}), "extra key fc.weight"),
        (lambda s: s.update({key: torch.ones(2)}), f"key {key} has shape"),
        (lambda s: s.pop("bn1.running_var"), "missing key bn1.running_var"),
    ):
        state = dict(states[10])
        change(state)
        torch.save(state, path)
        with pytest.raises(UserError, match=words) as caught:
            load_medicalnet(path, 10)
        assert "resnet10" in str(caught.value) and str(path) in str(caught.value)


def test_weights_of_the_other_depth_are_refused(published):
    with pytest.raises(UserError, match="Use weights of MedicalNet's resnet50") as caught:
        load_medicalnet(published, 50)
    assert "config.json" not in str(caught.value)


class Trap:
    def __reduce__(self):
        return os.mkdir, (os.environ["TRAP"],)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(zipped, tmp_path, monkeypatch):
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    torch.save({"state_dict": {"a": Trap()}}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="not a plain state dict") as caught:
        read_state(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.nn.Linear(2, 2), "it asks for torch.nn"),
        ([torch.ones(2)], "holds a list"),
        ({}, "an empty dict"),
        ({"a": {"b": torch.ones(2)}}, "'a' is a dict"),
        ({"a": torch.tensor([1.0, float("nan")])}, "a has values that are not finite"),
    ],
)
def test_what_is_not_a_plain_state_dict_is_refused(content, words, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=words):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_files_are_refused(name, states, tmp_path):
    path = tmp_path / name
    with pytest.raises(UserError, match="is not a file"):
        read_state(path)
    if name.endswith("pth"):
        torch.save(states[10], path)
    else:
        save_file(states[10], path)
    whole = path.read_bytes()
    for content in (b"", b"hello there", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="again"):
            read_state(path)
