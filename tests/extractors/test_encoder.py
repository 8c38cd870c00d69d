"""The encoder that ships, against a plain restatement of its layers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.encoder import Encoder, EncoderConfig

TINY = {"widths": (3, 4, 5, 6), "lateral": 2}
SHAPES = {2: (12, 20), 3: (8, 12, 10)}


def make(rank: int, **options) -> Encoder:
    """In eval mode; weights and running statistics away from their initial values."""
    with torch.random.fork_rng():
        torch.manual_seed(rank)
        encoder = Encoder(EncoderConfig(rank=rank, **(TINY | options)))
        for name, buffer in encoder.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5) if name.endswith("var") else buffer.uniform_(-0.5, 0.0)
        encoder.centre.uniform_(-1, 1)
        encoder.whitening.normal_()
        for name, parameter in encoder.named_parameters():
            if parameter.dim() == 1:
                parameter.data.uniform_(0.2, 1.0)
            elif name.startswith("laterals"):
                parameter.data[0].abs_()  # so that not all are rectified to nothing
    return encoder.eval()


def images(rank: int, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 1, *SHAPES[rank], generator=torch.Generator().manual_seed(0)) * 2 - 1


def restated(state: dict[str, torch.Tensor], x: torch.Tensor, rank: int) -> torch.Tensor:
    """The features, from the layer table alone."""
    convolve = {2: F.conv2d, 3: F.conv3d}[rank]

    def norm(x, name):
        mean, var, weight, bias = (state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        line = (1, -1) + (1,) * rank
        return (x - mean.view(line)) / (var.view(line) + 1e-5).sqrt() * weight.view(line) + bias.view(line)

    x = norm(convolve(x, state["body.conv1.weight"], padding=1), "body.bn1").relu()
    features = []
    for stage, stride in zip((1, 2, 3, 4), (1, 2, 2, 2), strict=True):
        name = f"body.layer{stage}.0"
        y = norm(convolve(x, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1").relu()
        y = norm(convolve(y, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        if f"{name}.downsample.0.weight" in state:
            x = norm(convolve(x, state[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
        x = (x + y).relu()
        lateral = norm(convolve(x, state[f"laterals.{stage - 1}.0.weight"]), f"laterals.{stage - 1}.1").relu()
        features.append(lateral.flatten(2).mean(2))
    return (torch.cat(features, 1) - state["centre"]) @ state["whitening"]


@pytest.mark.parametrize("rank", [2, 3])
@torch.no_grad()
def test_features_are_those_of_the_layer_table(rank):
    encoder = make(rank)
    found = encoder(images(rank))
    assert found.shape == (3, encoder.dimension) == (3, 8)
    assert found.std(0).min() > 1e-4
    torch.testing.assert_close(found, restated(encoder.state_dict(), images(rank), rank), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [2, 3])
@torch.no_grad()
def test_the_pyramid_halves_and_features_are_its_averages(rank):
    encoder = make(rank)
    levels = encoder.pyramid(images(rank))
    for level, stride in zip(levels, (1, 2, 4, 8), strict=True):
        assert level.shape == (3, 2, *(-(-side // stride) for side in SHAPES[rank]))
        assert level.min() >= 0
    means = torch.stack([level.mean(dim=tuple(range(2, 2 + rank))) for level in levels], 1).flatten(1)
    torch.testing.assert_close(encoder(images(rank)), (means - encoder.centre) @ encoder.whitening)


@pytest.mark.parametrize("rank", [2, 3])
@torch.no_grad()
def test_a_feature_depends_on_its_image_alone(rank):
    encoder = make(rank)
    together = encoder(images(rank))
    assert torch.equal(encoder(images(rank)), together)
    for index in range(3):
        torch.testing.assert_close(encoder(images(rank)[index : index + 1])[0], together[index])


def test_a_fresh_encoder_gives_the_averages_themselves():
    encoder = Encoder(EncoderConfig(rank=3, **TINY)).eval()
    means = torch.cat([level.flatten(2).mean(2) for level in encoder.pyramid(images(3))], 1)
    torch.testing.assert_close(encoder(images(3)), means)


@torch.no_grad()
def test_whitening_takes_out_the_covariance_within_sets():
    """W^T (mean of the sets' covariances, each scaled to a mean variance of 1, + shrinkage) W = 1."""
    encoder, rng = Encoder(EncoderConfig(rank=3, **TINY)).eval(), np.random.default_rng(0)
    sets = [scale * rng.normal(size=(n, 8)) @ rng.normal(size=(8, 8)) + shift
            for n, scale, shift in ((50, 1.0, 3.0), (20, 100.0, -5.0))]  # fmt: skip
    encoder.whiten([torch.from_numpy(rows).float() for rows in sets], shrinkage=0.1)
    pooled = np.mean([np.cov(rows.T) / np.var(rows, axis=0, ddof=1).mean() for rows in sets], axis=0)
    whitening = encoder.whitening.double().numpy()
    np.testing.assert_allclose(whitening.T @ (pooled + 0.1 * np.eye(8)) @ whitening, np.eye(8), atol=1e-4)
    np.testing.assert_allclose(encoder.centre, np.mean([rows.mean(0) for rows in sets], axis=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [2, 3])
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(rank, tmp_path):
    encoder = make(rank)
    encoder.save_pretrained(tmp_path / "encoder")
    loaded = Encoder.from_pretrained(tmp_path / "encoder")
    assert loaded.config == encoder.config and not loaded.training
    assert torch.equal(loaded(images(rank)), encoder(images(rank)))


def test_loading_is_strict(tmp_path):
    make(3).save_pretrained(tmp_path / "encoder")
    make(3, lateral=3).save_pretrained(tmp_path / "other")
    (tmp_path / "encoder" / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="laterals.0.0.weight has shape .*, wanted"):
        Encoder.from_pretrained(tmp_path / "encoder")


@pytest.mark.parametrize("rank", [2, 3])
def test_the_default_size_is_what_may_ship(rank):
    encoder = Encoder(EncoderConfig(rank=rank))
    assert encoder.dimension <= 128
    assert sum(value.numel() * value.element_size() for value in encoder.state_dict().values()) <= 8 * 2**20


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rank": 4}, "rank: found 4"),
        ({"rank": 3, "widths": (4, 4, 4)}, r"widths: found \(4, 4, 4\)"),
        ({"rank": 3, "widths": (4, 4, 0, 4)}, "widths: found"),
        ({"rank": 3, "lateral": 0}, "lateral 0"),
    ],
)
def test_senseless_sizes_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        EncoderConfig(**options)


def test_a_config_survives_json_and_refuses_other_fields():
    config = EncoderConfig(rank=2, **TINY)
    values = config.to_dict()
    assert EncoderConfig.from_dict({**values, "widths": list(values["widths"])}) == config
    with pytest.raises(UserError, match="depth"):
        EncoderConfig.from_dict({**values, "depth": 3})
