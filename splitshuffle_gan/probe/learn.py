"""Training in 2D and in 3D, and the features of frozen networks; the same for every arm."""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from splitshuffle_gan import nd
from splitshuffle_gan.extractors.slice_resnet import SliceResNet
from splitshuffle_gan.probe.linear import class_weights
from splitshuffle_gan.probe.network import seeded_head
from splitshuffle_gan.probe.plan import Training
from splitshuffle_gan.probe.slices import Slices
from splitshuffle_gan.probe.tasks import Part, Task
from splitshuffle_gan.training.stream import BatchStream, derived_seed

WARM_UP = 0.1  # share of the steps
BATCH = 8  # volumes at a time where nothing is learnt
MEASURED = 64  # volumes, at most, that statistics are measured on; each has thousands of voxels
LAST = 0.2  # share of the steps that the reported loss is the mean of


def pretrain(
    network: SliceResNet, sources: dict[str, Slices], training: Training, seed: int, accelerator: Accelerator
) -> dict:
    """Train `network` on the tasks of all sources, a linear head each; batches go round the sources.

    Returns "loss", the cross entropy over that of guessing among all classes alike, by source, and "seconds", of
    processor time, per step.
    """
    device = accelerator.device
    nd.place(network.train(), 2, accelerator.device)
    width = network.config.features
    heads = nn.ModuleList(
        [seeded_head(width, sum(of.tasks), derived_seed(seed, 1, place)) for place, of in enumerate(sources.values())]
    ).to(device)
    streams = [
        iter(BatchStream(len(of), training.batch_size, slice(None), derived_seed(seed, 2, place)))
        for place, of in enumerate(sources.values())
    ]
    optimizer, schedule = _optimizer([network, heads], training)
    losses: dict[str, list[float]] = {name: [] for name in sources}
    started = time.process_time()
    bar = tqdm(range(training.steps), desc=f"2D, {network.config.conv}", unit="step")
    for step in bar:
        place = step % len(sources)
        name, source = list(sources.items())[place]
        images, classes = source.batch(next(streams[place]))
        images = _shifted(images, training.shift, derived_seed(seed, 3, step)).to(device)
        with accelerator.autocast():
            features = network(images.contiguous(memory_format=nd.channels_last(2)))
        logits = heads[place](features.float()).split(source.tasks, dim=1)
        classes = classes.to(device)
        loss = torch.stack([F.cross_entropy(z, classes[:, task]) for task, z in enumerate(logits)]).mean()
        _update(loss, optimizer, schedule, step)
        if step >= (1 - LAST) * training.steps - len(sources):
            losses[name].append(loss.item() / float(np.mean(np.log(source.tasks))))
            bar.set_postfix_str(f"loss {losses[name][-1]:.3f}")
    return {
        "loss": {name: float(np.mean(found)) for name, found in losses.items() if found},
        "seconds": (time.process_time() - started) / training.steps,
    }


def measure_statistics(network: nn.Module, part: Part, accelerator: Accelerator) -> None:
    """The batch norms' mean and variance from one pass over up to `MEASURED` volumes, evenly spaced; then to eval mode.

    Nothing is told of the classes.

    For every arm alike: statistics of slices are not those of volumes, least of all where kernels changed their form,
    and an untrained network has none.
    """
    with _arithmetic(accelerator):
        rows = np.linspace(0, len(part) - 1, min(len(part), MEASURED)).round().astype(int)
        update_bn(_batches(network, part, rows, accelerator), network)
    network.eval()


@torch.no_grad()
def features_of(network: nn.Module, part: Part, accelerator: Accelerator) -> np.ndarray:
    """Pooled features `[n, F]`, float64, in eval mode."""
    rows = np.arange(len(part))
    network.eval()
    with _arithmetic(accelerator):
        found = [network(batch).double().cpu().numpy() for batch in _batches(network, part, rows, accelerator)]
    return np.concatenate(found)


def finetune(
    network: nn.Module, width: int, task: Task, training: Training, seed: int, accelerator: Accelerator
) -> np.ndarray:
    """Train the whole of `network` and a fresh head of its `width` features.

    Returns the logits `[n, classes]` of the test volumes.

    Classes count alike in the loss. There is no choosing among steps: the last network is judged, its batch norms'
    statistics measured once more.
    """
    device, part = accelerator.device, task.train
    nd.place(network.train(), 3, accelerator.device)
    head = seeded_head(width, task.classes, derived_seed(seed, 1)).to(device)
    counts = torch.tensor(class_weights(part.classes, task.classes), dtype=torch.float32, device=device)
    optimizer, schedule = _optimizer([network, head], training)
    stream = iter(BatchStream(len(part), training.batch_size, slice(None), derived_seed(seed, 2)))
    for step in tqdm(range(training.steps), desc="3D", unit="step", leave=False):
        items = next(stream)
        volumes = _shifted(part.batch(items), training.shift, derived_seed(seed, 3, step)).to(device)
        with _arithmetic(accelerator):
            features = network(volumes.contiguous(memory_format=nd.channels_last(3)))
        classes = torch.from_numpy(part.classes[items]).to(device)
        _update(F.cross_entropy(head(features.float()), classes, counts), optimizer, schedule, step)
    measure_statistics(network, part, accelerator)
    found = torch.from_numpy(features_of(network, task.test, accelerator))
    return F.linear(found, head.weight.detach().double().cpu(), head.bias.detach().double().cpu()).numpy()


def _batches(network: nn.Module, part: Part, rows: np.ndarray, accelerator: Accelerator) -> Iterator[Tensor]:
    """Volumes in batches as even as can be: a batch norm learns nothing from a single value."""
    nd.place(network, 3, accelerator.device)
    for items in np.array_split(rows, -(-len(rows) // BATCH)):
        yield part.batch(items.tolist()).to(accelerator.device, memory_format=nd.channels_last(3))


def _arithmetic(accelerator: Accelerator) -> AbstractContextManager:
    """That of volumes: float32 on a CPU, whose bfloat16 cannot be trusted on grids as small as the last stage's.

    With oneDNN 3.12 the gradient of a 3 x 3 x 3 kernel is wrong by any amount, NaN included, where D is 2.
    """
    return nullcontext() if accelerator.device.type == "cpu" else accelerator.autocast()


def _optimizer(
    modules: list[nn.Module], training: Training
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    weights = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, training.learning_rate, weight_decay=training.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.learning_rate, training.steps, pct_start=WARM_UP, cycle_momentum=False
    )
    return optimizer, schedule


def _update(loss: Tensor, optimizer: torch.optim.Optimizer, schedule, step: int) -> None:
    if not math.isfinite(loss.item()):
        raise FloatingPointError(f"step {step}: the loss is {loss.item()}; lower learning_rate in the plan")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()


def _shifted(images: Tensor, most: int, seed: int) -> Tensor:
    """Each image moved by its own whole number of pixels, up to `most`, along each axis; the edge is repeated."""
    if most == 0:
        return images
    sides = images.shape[2:]
    padded = F.pad(images, [most] * (2 * len(sides)), mode="replicate")
    starts = np.random.default_rng(seed).integers(0, 2 * most + 1, (len(images), len(sides)))
    return torch.stack([
        image[(slice(None), *(slice(at, at + side) for at, side in zip(start, sides, strict=True)))]
        for image, start in zip(padded, starts, strict=True)
    ])  # fmt: skip
