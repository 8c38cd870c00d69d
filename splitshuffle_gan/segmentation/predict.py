"""A network on a volume of any size: window by window where it is larger than what the network was trained on."""

import numpy as np
import torch
from accelerate import Accelerator
from monai.inferers import sliding_window_inference
from torch import Tensor
from tqdm import tqdm

from splitshuffle_gan.data.dataset import PreparedDataset
from splitshuffle_gan.segmentation.metrics import measure, summarise
from splitshuffle_gan.segmentation.segmenter import Segmenter, class_table

OVERLAP = 0.5
AIR = -1.0


@torch.no_grad()
def probabilities(
    segmenter: Segmenter, volume: np.ndarray, accelerator: Accelerator, overlap: float = OVERLAP
) -> Tensor:
    """`[classes, D, H, W]`, float32 on the CPU, of one volume `[D, H, W]` in [-1, 1].

    Overlapping windows are averaged, their middles weighing more. A volume that is smaller than the window is
    surrounded by air. A 2D network takes all slices at once, so that none lacks its neighbours.
    """
    segmenter.eval()
    window = segmenter.config.shape if segmenter.rank == 3 else (volume.shape[0], *segmenter.config.shape[1:])
    images = torch.from_numpy(np.array(volume, np.float32))[None, None].to(accelerator.device)

    def logits(part: Tensor) -> Tensor:
        with accelerator.autocast():
            return segmenter.predict(part).float()

    if tuple(volume.shape) == tuple(window):
        found = logits(images)
    else:
        found = sliding_window_inference(
            images, window, 1, logits, overlap=overlap, mode="gaussian", padding_mode="constant", cval=AIR
        )
    return found[0].softmax(0).cpu()


def evaluate(segmenter: Segmenter, dataset: PreparedDataset, accelerator: Accelerator, distances: bool = True) -> dict:
    """Dice and HD95 (mm) of the network on a dataset with labels: means, and per case (see `metrics`).

    Without `distances` Dice alone, which is quick.
    """
    table, cases = class_table(segmenter.config.labels), []
    spacing = dataset.spacing if distances else None
    for row in tqdm(range(len(dataset)), desc="validate", unit="volume", leave=False, delay=2):
        found = probabilities(segmenter, dataset.volumes[row][0], accelerator).argmax(0).numpy()
        case = measure(found, table[dataset.labels[row][0]], segmenter.config.labels, spacing)
        cases.append({"source": dataset.manifest["volumes"][row]["source"], **case})
    return summarise(cases) | {"cases": cases}
