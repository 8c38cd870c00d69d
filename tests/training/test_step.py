"""One training step: accumulation, schedules of the regularisers, what changes and what does not."""

import math

import pytest
import torch

from splitshuffle_gan.data.dataset import SliceDataset, VolumeDataset, open_dataset
from splitshuffle_gan.devices import make_accelerator
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.training.loop import build_networks
from splitshuffle_gan.training.losses import discriminator_loss
from splitshuffle_gan.training.step import LABEL_NOISE, LEAK, Trainer, average_gradients, label_noise, leaky_clamp


def make_trainer(config, rank: int = 3) -> tuple[Trainer, dict[str, torch.Tensor]]:
    """A trainer and a global batch of real images."""
    dataset = open_dataset(config.data)
    trainer = Trainer(config, dataset.spacing, *build_networks(config, rank, dataset), make_accelerator("no"))
    items = SliceDataset(dataset) if rank == 2 else VolumeDataset(dataset)
    chosen = [items[i % len(items)] for i in range(config.batch_size)]
    return trainer, {key: torch.stack([item[key] for item in chosen]) for key in chosen[0]}


def gradients_of(trainer: Trainer, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradients with which one step reaches the optimisers."""
    found = {}

    def keep(name: str, model: torch.nn.Module):
        def hook(*_):
            found.update({f"{name}.{k}": p.grad.clone() for k, p in model.named_parameters() if p.grad is not None})

        return hook

    handles = [
        trainer.d_optimizer.register_step_pre_hook(keep("D", trainer.D)),
        trainer.g_optimizer.register_step_pre_hook(keep("G", trainer.G)),
    ]
    trainer.train_step(batch)
    for handle in handles:
        handle.remove()
    return found


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Over the tensors, the largest of: norm of the difference over norm."""
    assert a.keys() == b.keys()
    return max(((a[k] - b[k]).norm() / a[k].norm().clamp(min=1e-12)).item() for k in a)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture
def in_float64(monkeypatch):
    """`in_float64(trainer, batch)`: both, computing in float64 throughout: what still differs is no rounding."""
    monkeypatch.setattr("splitshuffle_gan.nd.compute_dtype", lambda _: torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)

    def convert(trainer: Trainer, batch: dict[str, torch.Tensor]) -> tuple[Trainer, dict[str, torch.Tensor]]:
        for network in (trainer.G, trainer.D, trainer.average):
            network.double()
        return trainer, batch | {"image": batch["image"].double()}

    return convert


@pytest.mark.parametrize("micro", [4, 2, 1])
@pytest.mark.parametrize("rank", [2, 3])
def test_micro_batches_accumulate_to_exactly_the_whole_batch(tiny_config, rank, micro, in_float64):
    quiet = {"augment_target": 0, "network": {"noise": False, "group_size": min(micro, 2)}, "pl_weight": 0.0}
    whole, batch = in_float64(*make_trainer(tiny_config(**quiet), rank))
    parts, _ = in_float64(*make_trainer(tiny_config(**quiet, micro_batch=micro), rank))
    expected, found = gradients_of(whole, batch), gradients_of(parts, batch)
    assert all(gradient.dtype == torch.float64 for gradient in found.values())
    assert largest_difference(expected, found) < 1e-11


@pytest.mark.parametrize("rank", [2, 3])
def test_micro_batches_accumulate_to_the_whole_batch(tiny_config, rank):
    quiet = {"augment_target": 0, "network": {"noise": False}}
    whole, batch = make_trainer(tiny_config(**quiet), rank)
    parts, _ = make_trainer(tiny_config(**quiet, micro_batch=2), rank)
    expected, found = gradients_of(whole, batch), gradients_of(parts, batch)
    assert {"D.logit.weight", "G.constant", "G.mapping.layers.0.weight"} <= expected.keys()
    # A bias has the sum of a thousand cells as its gradient, which nearly cancel: their rounding does not.
    biases = {name for name in expected if name.endswith("bias")}
    for names, tolerance in ((biases, 1e-4), (expected.keys() - biases, 1e-5)):
        assert largest_difference(*({name: g[name] for name in names} for g in (expected, found))) < tolerance
    for name in ("G", "D", "average"):
        a, b = weights(getattr(whole, name)), weights(getattr(parts, name))
        # Adam's first step is about lr * sign(g), so weights with next to no gradient may differ by up to 2 lr.
        assert (a - b).abs().quantile(0.99) < 1e-5, name


def test_losses_and_r_t_are_means_over_micro_batches(tiny_config):
    quiet = {"augment_target": 0, "network": {"noise": False}}
    whole, batch = make_trainer(tiny_config(**quiet))
    parts, _ = make_trainer(tiny_config(**quiet, micro_batch=4))
    expected, found = whole.train_step(batch), parts.train_step(batch)
    assert expected.keys() == found.keys() == {"loss_d", "loss_g", "r_t", "r1"}
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-5), name


def test_untrained_networks_start_where_they_should(tiny_config):
    trainer, batch = make_trainer(tiny_config())
    trainer.D.logit.weight.data.zero_()
    stats = trainer.train_step(batch)
    assert stats["loss_d"].item() == pytest.approx(2 * math.log(2))
    assert stats["r_t"].item() == 0
    assert stats["r1"].item() == 0


def test_each_network_lowers_its_own_loss(tiny_config):
    """With the generator held still the discriminator learns, and the other way round."""
    trainer, batch = make_trainer(tiny_config(d_lr=0.01, g_lr=1e-12))
    losses = [trainer.train_step(batch) for _ in range(20)]
    assert losses[-1]["loss_d"] < 0.7 * losses[0]["loss_d"]
    assert losses[-1]["r_t"] > 0.9
    d_trained = trainer.D.state_dict()
    trainer, batch = make_trainer(tiny_config(d_lr=1e-12, g_lr=0.01))
    trainer.D.load_state_dict(d_trained)
    losses = [trainer.train_step(batch) for _ in range(20)]
    assert losses[-1]["loss_g"] < 0.7 * losses[0]["loss_g"]


def test_jitter_moves_the_real_images_only(tiny_config, monkeypatch):
    """A discriminator that keeps what it is shown: real images are crops of the batch, generated ones are untouched."""
    shown = []
    trainer, batch = make_trainer(tiny_config(augment_target=0, jitter=1, batch_size=4))
    still, _ = make_trainer(tiny_config(augment_target=0, batch_size=4))
    for one in (trainer, still):
        judge = one._judge
        monkeypatch.setattr(
            one, "_judge", lambda images, d, judge=judge: shown.append(images.detach()) or judge(images, d)
        )
        one.train_step(batch)
    real, fake, _, real_still, fake_still, _ = shown
    assert torch.equal(real_still, batch["image"]) and not torch.equal(real, real_still)
    assert torch.equal(fake, fake_still)
    inner = (slice(None), slice(1, -1), slice(1, -1), slice(1, -1))
    places = [(a, b, c) for a in range(3) for b in range(3) for c in range(3)]
    padded = torch.nn.functional.pad(batch["image"], (1,) * 6, mode="replicate")
    for sample, source in zip(real, padded, strict=True):
        d, h, w = sample.shape[1:]
        crops = [source[:, a : a + d, b : b + h, c : c + w] for a, b, c in places]
        assert any(torch.equal(sample[inner], crop[inner]) for crop in crops)


def test_the_generator_waits_until_the_discriminator_has_warmed_up(tiny_config):
    """Adam's first steps are as long as the learning rate, which is 0, then half, then all of it."""
    trainer, batch = make_trainer(tiny_config(batch_size=4, g_warmup_kimg=0.008, g_lr=1e-3))
    moved = []
    for _ in range(3):
        before = weights(trainer.G), weights(trainer.D)
        trainer.train_step(batch)
        after = weights(trainer.G), weights(trainer.D)
        moved.append([(a - b).abs().max().item() for a, b in zip(after, before, strict=True)])
    assert moved[0][0] == 0 and moved[0][1] > 1e-3
    assert moved[1][0] == pytest.approx(5e-4, rel=0.5) and moved[2][0] > moved[1][0]
    resumed, _ = make_trainer(tiny_config(batch_size=4, g_warmup_kimg=0.008, g_lr=1e-3))
    resumed.load_state_dict(trainer.state_dict())
    assert resumed.g_lr == trainer.g_lr


def test_r1_comes_at_its_interval_only_and_path_lengths_at_theirs(tiny_config):
    trainer, batch = make_trainer(tiny_config(r1_interval=3, pl_weight=2.0))
    names = [trainer.train_step(batch).keys() for _ in range(9)]
    assert [i for i, seen in enumerate(names) if "r1" in seen] == [0, 3, 6]
    assert [i for i, seen in enumerate(names) if "path" in seen] == [0, 4, 8]
    assert trainer.pl_mean > 0
    trainer, batch = make_trainer(tiny_config())
    assert all("path" not in trainer.train_step(batch) for _ in range(2))


def test_the_weight_of_r1_is_that_of_every_step(tiny_config):
    """gamma * interval at every interval-th step; a twice as long interval doubles the penalty's gradient."""
    quiet = {"augment_target": 0, "network": {"noise": False}}
    gradients = {}
    for gamma, interval in ((0.0, 4), (3.0, 4), (3.0, 8)):
        trainer, batch = make_trainer(tiny_config(**quiet, r1_gamma=gamma, r1_interval=interval))
        gradients[gamma, interval] = gradients_of(trainer, batch)["D.logit.weight"]
    once = gradients[3.0, 4] - gradients[0.0, 4]
    assert once.norm() > 1e-4
    torch.testing.assert_close(gradients[3.0, 8] - gradients[0.0, 4], 2 * once, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rank", [2, 3])
def test_r1_shares_the_forward_pass_and_is_that_of_its_own(tiny_config, rank, in_float64):
    config = tiny_config(augment_target=0, network={"noise": False}, r1_gamma=3.0, r1_interval=4)
    trainer, batch = in_float64(*make_trainer(config, rank))
    twin, _ = in_float64(*make_trainer(config, rank))
    images, depth = batch["image"], batch.get("depth")
    with torch.no_grad():
        fakes = twin.G(twin._latents(phase=0), depth=depth)
    discriminator_loss(twin.D(images, depth), twin.D(fakes, depth)).backward()
    images.requires_grad_()
    (slope,) = torch.autograd.grad(twin.D(images, depth).sum(), images, create_graph=True)
    (slope.square().flatten(1).sum(1).mean() / 2 * (3.0 * 4)).backward()
    expected = {f"D.{name}": p.grad for name, p in twin.D.named_parameters()}
    images.requires_grad_(False)
    found = {name: g for name, g in gradients_of(trainer, batch).items() if name.startswith("D.")}
    assert largest_difference(expected, found) < 1e-11


def test_r1_is_taken_where_the_discriminator_sees_real_images(tiny_config, monkeypatch):
    seen = []

    def penalty(images, logits):
        seen.append(images)
        return logits.sum() * 0

    monkeypatch.setattr("splitshuffle_gan.training.step.r1_penalty", penalty)
    monkeypatch.setattr("splitshuffle_gan.training.step.augment", lambda images, *_: images / 2)
    trainer, batch = make_trainer(tiny_config())
    trainer.train_step(batch)
    assert torch.equal(seen[0], batch["image"] / 2) and seen[0].requires_grad


def test_path_regularisation_reaches_the_generator(tiny_config):
    found = {}
    for weight in (0.0, 100.0):
        trainer, batch = make_trainer(tiny_config(augment_target=0, network={"noise": False}, pl_weight=weight))
        found[weight] = gradients_of(trainer, batch)
    assert largest_difference(found[0.0], found[100.0]) > 0.01
    d_only = [{k: v for k, v in gradients.items() if k.startswith("D.")} for gradients in found.values()]
    assert largest_difference(*d_only) < 1e-6


def test_after_a_step_every_parameter_has_moved_and_no_gradient_is_left(tiny_config):
    trainer, batch = make_trainer(tiny_config())
    before = {name: weights(getattr(trainer, name)) for name in ("G", "D", "average")}
    for _ in range(2):  # noise strengths start at zero gain for what lies before them
        trainer.train_step(batch)
    for name, old in before.items():
        assert (weights(getattr(trainer, name)) != old).float().mean() > 0.99, name
    for network in (trainer.G, trainer.D):
        assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert not any(p.requires_grad for p in trainer.average.parameters())
    assert trainer.seen == 2 * 8


def test_a_step_repeats_whatever_was_drawn_before(tiny_config):
    """Noise and augmentation follow from seed and step, not from the global generator."""
    results = []
    for draws in (1, 1000):
        trainer, batch = make_trainer(tiny_config())
        trainer.adaptive.p = 0.8
        torch.rand(draws)
        trainer.train_step(batch)
        trainer.train_step(batch)
        results.append(torch.cat([weights(trainer.G), weights(trainer.D)]))
    assert torch.equal(*results)
    trainer, batch = make_trainer(tiny_config(seed=1))
    trainer.train_step(batch)
    trainer.train_step(batch)
    assert not torch.equal(weights(trainer.G), results[0][: weights(trainer.G).numel()])


@pytest.mark.parametrize(("noise", "p"), [(False, 0.0), (True, 0.0), (False, 0.8)])
def test_noise_and_augmentation_differ_from_step_to_step(tiny_config, monkeypatch, noise, p):
    z = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("splitshuffle_gan.training.step.latents", lambda *_: z)
    still = {"d_lr": 1e-12, "g_lr": 1e-12, "r1_interval": 1000}
    trainer, batch = make_trainer(tiny_config(**still, network={"noise": noise}))
    trainer.adaptive.p = p
    for name, parameter in trainer.G.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(1.0)
    first, second = (trainer.train_step(batch)["loss_d"].item() for _ in range(2))
    assert (first == pytest.approx(second, rel=1e-6)) == (not noise and p == 0)


def test_recomputed_activations_change_nothing(tiny_config):
    results = []
    for above in (None, 8, 0):
        trainer, batch = make_trainer(tiny_config(checkpoint_above=above, pl_weight=2.0))
        results.append(gradients_of(trainer, batch))
    for result in results[1:]:  # random noise in the generator is drawn again the same
        assert largest_difference(results[0], result) < 1e-5


@pytest.mark.parametrize("size", [3, 16])
def test_micro_batch_must_divide_the_share(tiny_config, size):
    with pytest.raises(UserError, match=f"micro_batch: found {size}, must divide the share of one process, 8"):
        make_trainer(tiny_config(micro_batch=size))


def test_average_gradients_keeps_shapes_and_leaves_out_what_has_none():
    model = torch.nn.ModuleList([torch.nn.Linear(3, 2), torch.nn.Linear(2, 5)])
    for number, p in enumerate(model.parameters()):
        p.grad = torch.full_like(p, float(number))
    model[1].bias.grad = None
    calls = []

    def reduce(flat: torch.Tensor) -> torch.Tensor:
        calls.append(flat.numel())
        return flat * 10

    average_gradients(model, reduce)
    assert calls == [6 + 2 + 10]
    assert model[1].bias.grad is None
    for number, p in enumerate([model[0].weight, model[0].bias, model[1].weight]):
        assert torch.equal(p.grad, torch.full_like(p, 10.0 * number))


def test_leaky_clamp_keeps_what_is_inside_and_a_hundredth_of_what_is_beyond():
    values = torch.tensor([-3.0, -1.0, -0.2, 0.0, 0.7, 1.0, 2.0], requires_grad=True)
    found = leaky_clamp(values)
    torch.testing.assert_close(found, torch.tensor([-1.02, -1.0, -0.2, 0.0, 0.7, 1.0, 1.01]))
    (gradient,) = torch.autograd.grad(found.sum(), values)
    torch.testing.assert_close(gradient[[0, 2, 3, 4, 6]], torch.tensor([LEAK, 1, 1, 1, LEAK]))


def test_images_without_labels_are_shown_as_they_are(tiny_config, shown_in_a_step):
    trainer, batch = make_trainer(tiny_config(augment_target=0))
    trainer.G.blocks[-1].to_image.bias.data.fill_(50.0)
    real, *generated = shown_in_a_step(trainer, batch)
    assert torch.equal(real, batch["image"])
    assert len(generated) == 2 and all(images.min() > 20 for images in generated)


def test_label_channels_are_shown_under_noise_and_images_as_they_are():
    images = torch.rand(4, 3, 40, 40) * 2 - 1
    assert label_noise(images, 0) is images
    torch.manual_seed(0)
    shown = label_noise(images, 2)
    assert torch.equal(shown[:, 0], images[:, 0])
    noise = (shown - images)[:, 1:]
    assert noise.std().item() == pytest.approx(LABEL_NOISE, rel=0.05)
    assert abs(noise.mean().item()) < 0.02
