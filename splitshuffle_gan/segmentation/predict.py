"""A network on a volume of any size: window by window where it is larger than what the network was trained on."""

import numpy as np
import torch
from accelerate import Accelerator
from monai.inferers import sliding_window_inference
from torch import Tensor
from tqdm import tqdm

from splitshuffle_gan.data.dataset import PreparedDataset
from splitshuffle_gan.segmentation.froc import RESAMPLES, Hits, froc, match
from splitshuffle_gan.segmentation.lesions import find_peaks, number_lesions
from splitshuffle_gan.segmentation.metrics import measure, summarise
from splitshuffle_gan.segmentation.segmenter import Segmenter, class_table

OVERLAP = 0.5
AIR = -1.0


@torch.no_grad()
def probabilities(
    segmenter: Segmenter, volume: np.ndarray, accelerator: Accelerator, overlap: float = OVERLAP
) -> Tensor:
    """`[classes, D, H, W]`, or the heat map `[1, D, H, W]`, float32 on the CPU, of one volume `[D, H, W]` in [-1, 1].

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
    return (found[0].softmax(0) if segmenter.config.sigma is None else found[0].sigmoid()).cpu()


def classes_of(shares: Tensor) -> np.ndarray:
    """The likeliest class of each voxel, `[D, H, W]`; of a heat map 1 where it is above half of a lesion's height."""
    return (shares.argmax(0) if len(shares) > 1 else (shares[0] > 0.5).long()).numpy()


def score_name(segmenter: Segmenter) -> str:
    """Which number of `evaluate` says how good a network is."""
    return "mean_dice" if segmenter.config.sigma is None else "froc"


def evaluate(segmenter: Segmenter, dataset: PreparedDataset, accelerator: Accelerator, thorough: bool = True) -> dict:
    """How well the network does on a dataset with labels, with what each case contributes in "cases".

    Dice and HD95 in mm (see `metrics`), or FROC with intervals (see `froc`); distances and intervals take their time
    and are there only if `thorough`.
    """
    table, cases, hits = class_table(segmenter.config.labels), [], []
    for row in tqdm(range(len(dataset)), desc="validate", unit="volume", leave=False, delay=2):
        shares = probabilities(segmenter, dataset.volumes[row][0], accelerator)
        truth = table[dataset.labels[row][0]]
        if segmenter.config.sigma is None:
            spacing = dataset.spacing if thorough else None
            case = measure(classes_of(shares), truth, segmenter.config.labels, spacing)
        else:
            hits.append(_hits(shares[0].numpy(), truth, dataset.spacing, segmenter.config.sigma))
            case = {name: part.tolist() for name, part in vars(hits[-1]).items()}
        cases.append({"source": dataset.manifest["volumes"][row]["source"], **case})
    result = froc(hits, RESAMPLES if thorough else 0) if hits else summarise(cases)
    return result | {"cases": cases}


def _hits(heat: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float], sigma: float) -> Hits:
    voxels, confidences = find_peaks(heat, spacing, sigma)
    return match(voxels, confidences, number_lesions(mask), spacing, sigma)
