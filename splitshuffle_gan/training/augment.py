"""Adaptive discriminator augmentation for slices and volumes (Karras et al., arXiv 2006.06676).

The discriminator sees real and generated images only through `augment`; `AdaptiveP` raises the probability `p` when the
discriminator overfits and lowers it when it does not.

Why the augmentations do not leak into the generated images. Drawing a transform with probability p maps the
distribution of images by `(1 - p) I + p T`. If that map is invertible, matching the augmented distributions means
matching the original ones. Over a group of transforms (shifts, angles, ...) it is a convolution, whose Fourier
coefficients are `1 - p + p c`, with `c` those of the strengths drawn. They vanish for some p < 1 only if some c < 0, so
every strength here has a distribution with c >= 0: normal, or the difference of two equal uniforms (triangular). A flip
that fires is a coin toss (c = 0): one that always flipped (c = -1) would leak at p = 1/2. What remains is conditioning:
the inverse may amplify an error by up to 1 / (1 - p), so `AdaptiveP` stops at `MAX_P` = 0.8 (a factor of 5), the value
above which the paper saw leaks. The argument is exact for an unbounded image; at the borders it is an approximation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from splitshuffle_gan.errors import UserError

MAX_P = 0.8


@dataclass(frozen=True)
class AugmentConfig:
    """Strength of each transform; 0 (or False) switches one off. Every transform fires by itself with probability p.

    Attributes:
        flip_lr: mirror the W axis with chance 1/2 when fired. W is left-right in axial and coronal data; leave it
            off for sagittal data (W is antero-posterior) and where left and right differ, as for one hippocampus or
            the heart.
        translate: largest shift of H and W as a fraction of their extent, in whole voxels so that nothing is blurred.
        translate_depth: the same for D (rank 3 only), small because the depth of a slice carries anatomy.
        rotate: largest in-plane angle in degrees (the H-W plane; depth is never rotated).
        scale: standard deviation of log2 of the in-plane zoom.
        gain: standard deviation of log2 of g in `(x + 1) g - 1`: the bottom of the window, air, stays where it is.
        contrast: standard deviation of log2 of c in `c x`: about the middle of the window, so air moves with it.
        bias: standard deviation of b in `x + b`, in units of the [-1, 1] window.
        noise: sigma = noise * |N(0, 1)| of the Gaussian noise that is added.

    Raises `UserError` naming the field for a value outside its range.
    """

    flip_lr: bool = False
    translate: float = 0.125
    translate_depth: float = 0.05
    rotate: float = 15.0
    scale: float = 0.1
    gain: float = 0.2
    contrast: float = 0.2
    bias: float = 0.1
    noise: float = 0.05

    def __post_init__(self) -> None:
        largest = {"translate": 0.5, "translate_depth": 0.5, "rotate": 180.0}
        for field in fields(self):
            if field.name == "flip_lr":
                continue
            value, limit = getattr(self, field.name), largest.get(field.name, 2.0)
            if not 0 <= value <= limit:
                raise UserError(f"augment.{field.name} is {value}: give a number from 0 (off) to {limit:g}")


@dataclass
class AdaptiveP:
    """The probability of augmentation, steered by an overfitting signal; `state_dict` makes it resumable."""

    p: float = 0.0

    def update(self, r_t: float, n_images: int, target: float = 0.6, speed_kimg: float = 100.0) -> float:
        """Move p towards less overfitting and return it.

        r_t: mean sign of the discriminator's logits on real images, in [-1, 1]; 1 is full overfitting.
        n_images: real images seen since the last update.
        target: the r_t to hold.
        speed_kimg: thousands of images that take p from 0 to 1; the paper's 500 suits sets 100 times larger.
        Raises ValueError if r_t is not a finite number or speed_kimg is not positive.
        """
        if not math.isfinite(r_t):
            raise ValueError(f"r_t is {r_t}: wanted a finite number; the discriminator has diverged")
        if speed_kimg <= 0:
            raise ValueError(f"speed_kimg is {speed_kimg}: wanted a positive number of thousands of images")
        direction = (r_t > target) - (r_t < target)
        self.p = min(max(self.p + direction * n_images / (speed_kimg * 1000), 0.0), MAX_P)
        return self.p

    def state_dict(self) -> dict[str, float]:
        """`{"p": p}`."""
        return {"p": self.p}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take p from `state_dict()`; raises ValueError if it is outside [0, MAX_P]."""
        p = float(state["p"])
        if not 0 <= p <= MAX_P:
            raise ValueError(f"p in the saved augmentation state is {p}: wanted 0 to {MAX_P}")
        self.p = p


def augment(
    images: Tensor,
    p: float,
    config: AugmentConfig,
    generator: torch.Generator,
    spacing: Sequence[float] = (1.0, 1.0),
    labels: int = 0,
) -> Tensor:
    """Apply every transform of `config` to every sample independently with probability p.

    images: `[N, C, H, W]` or `[N, C, D, H, W]` floating point, intensities in [-1, 1]; image channels only (a depth
        channel must be appended afterwards). Differentiable twice, as a gradient penalty through `augment` needs.
    p: 0 to 1; 0 returns `images` itself.
    spacing: voxel size in mm in array order, (H, W) or (D, H, W), so that rotations are rigid in mm.
    generator: source of all randomness, on any device (one on the images' device is fastest for large noise).
    labels: how many channels at the end are those of a label map: they move with the image, and that is all.
    Returns the images in the same shape, dtype and device, not clipped; computed in float32, whatever autocast says.
    A sample on which no transform fires keeps its values exactly. Beyond the border the image is mirrored.
    """
    if images.ndim not in (4, 5) or not images.is_floating_point():
        found = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"images are {found}: wanted floats, [N, C, H, W] or [N, C, D, H, W]")
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}: wanted a probability, 0 to 1")
    if p == 0 or images.numel() == 0:
        return images
    draw = _Draw(len(images), p, generator)
    out = _geometry(images.float(), config, draw, spacing)
    scans, maps = out.split((out.shape[1] - labels, labels), dim=1)
    scans = _noise(_intensity(scans, config, draw), config, draw)
    return (torch.cat((scans, maps), dim=1) if labels else scans).to(images.dtype)


def jitter(images: Tensor, voxels: int, generator: torch.Generator) -> Tensor:
    """Shift each sample by a whole number of voxels, uniform in -voxels..voxels along each axis of the grid.

    For real images only, so unlike `augment` it is meant to be learned: where the grid was laid over a scan is
    arbitrary to that extent, and (2 voxels + 1)^rank crops are harder to learn by heart than one.
    images: `[N, C, *S]`. Border voxels are repeated. 0 voxels returns `images` itself and draws nothing.
    """
    if not voxels or not len(images):
        return images
    size, rank = images.shape[2:], images.ndim - 2
    padded = F.pad(images, (voxels,) * (2 * rank), mode="replicate")
    starts = torch.randint(2 * voxels + 1, (len(images), rank), generator=generator, device=generator.device).tolist()
    windows = ([slice(a, a + n) for a, n in zip(start, size, strict=True)] for start in starts)
    return torch.stack([sample[(slice(None), *window)] for sample, window in zip(padded, windows, strict=True)])


class _Draw:
    """Per-sample strengths `[n]`, float32, on the generator's device; exactly 0 where the transform did not fire."""

    def __init__(self, n: int, p: float, generator: torch.Generator) -> None:
        self.n, self.p, self.generator = n, p, generator

    def uniform(self) -> Tensor:
        return torch.rand(self.n, generator=self.generator, device=self.generator.device)

    def fired(self, values: Tensor) -> Tensor:
        return torch.where(self.uniform() < self.p, values, 0.0)

    def nothing(self) -> Tensor:
        return torch.zeros(self.n, device=self.generator.device)

    def coin(self) -> Tensor:
        return self.fired((self.uniform() < 0.5).float())

    def normal(self, std: float) -> Tensor:
        return self.fired(std * torch.randn(self.n, generator=self.generator, device=self.generator.device))

    def triangular(self, largest: float) -> Tensor:
        return self.fired(largest * (self.uniform() - self.uniform()))

    def whole_shift(self, largest: int) -> Tensor:
        """Difference of two uniform integers in 0..largest."""
        first, second = ((self.uniform() * (largest + 1)).floor().clamp_(max=largest) for _ in range(2))
        return self.fired(first - second)


def _geometry(images: Tensor, config: AugmentConfig, draw: _Draw, spacing: Sequence[float]) -> Tensor:
    """Flip, scale, rotate and shift in one resampling, of the samples that move only."""
    size = images.shape[2:]
    fractions = (config.translate_depth, config.translate, config.translate)[-len(size) :]
    flip = draw.coin() if config.flip_lr else draw.nothing()
    log2_scale = draw.normal(config.scale) if config.scale else draw.nothing()
    angle = draw.triangular(config.rotate) if config.rotate else draw.nothing()
    # The 1e-6 keeps 0.1 * 30 = 2.9999999 from losing a voxel.
    largest = [math.floor(fraction * extent + 1e-6) for fraction, extent in zip(fractions, size, strict=True)]
    shift = [draw.whole_shift(voxels) if voxels else draw.nothing() for voxels in largest]
    moves = torch.stack([flip, log2_scale, angle, *shift]).ne(0).any(0)
    rows = moves.nonzero().squeeze(1)  # where the draws are: asking a GPU which samples move would wait for it
    if len(rows) == 0:
        return images
    linear, offset = sampling_affine(
        flip[rows], log2_scale[rows], angle[rows], torch.stack(shift, 1)[rows], size, spacing
    )
    rows, linear, offset = (t.to(images.device, non_blocking=True) for t in (rows, linear, offset))
    return images.index_copy(0, rows, resample(images[rows], linear, offset))


def sampling_affine(
    flip: Tensor, log2_scale: Tensor, angle: Tensor, shift: Tensor, size: Sequence[int], spacing: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Where to read each output voxel, for content that is flipped, scaled, rotated, then shifted, about its centre.

    flip: `[n]`, 1 mirrors W. log2_scale: `[n]`, positive magnifies. angle: `[n]` degrees, positive turns H towards W
    as `torch.rot90(x, 1, (-2, -1))`. shift: `[n, r]` voxels in array order, positive towards higher index.
    size: `[r]` voxels. spacing: mm in array order; only the last two (H, W) matter.
    Returns (linear `[n, r, r]`, offset `[n, r]`) from output to input, in the coordinates of `F.grid_sample`: axes in
    reverse array order (W, H, D), the extent of each axis from -1 to 1.
    """
    rank = len(size)
    size_xyz = torch.tensor(list(size)[::-1], dtype=torch.float32, device=angle.device)
    # A rotation mixes H and W, so it is written in mm and carried over to the normalised axes by their extent ratio.
    height, width = size[-2] * spacing[-2], size[-1] * spacing[-1]
    radians = torch.deg2rad(angle)
    zoom_out = torch.exp2(-log2_scale)
    cos, sin = zoom_out * torch.cos(radians), zoom_out * torch.sin(radians)
    mirror = 1 - 2 * flip
    linear = torch.eye(rank, device=angle.device).repeat(len(angle), 1, 1)
    linear[:, 0, 0], linear[:, 0, 1] = mirror * cos, -mirror * sin * (height / width)
    linear[:, 1, 0], linear[:, 1, 1] = sin * (width / height), cos
    # Shifting comes last on the content, so it is undone first on the coordinates.
    moved = 2 * shift.flip(1) / size_xyz
    return linear, -(linear * moved[:, None, :]).sum(2)


def resample(images: Tensor, linear: Tensor, offset: Tensor) -> Tensor:
    """Read `images` `[n, C, *S]` float32 at `linear @ position + offset`, (tri)linearly, mirrored beyond the border.

    linear `[n, r, r]` and offset `[n, r]` are those of `sampling_affine`. No matrix products: autocast
    and reduced-precision matrix settings would lower theirs and so move voxels.
    """
    size = images.shape[2:]
    rank = len(size)
    axes = []
    for axis, extent in enumerate(reversed(size)):
        centres = (torch.arange(extent, device=images.device, dtype=torch.float32) * 2 + 1) / extent - 1
        shape = [1] * (rank + 1)
        shape[rank - axis] = extent
        axes.append(centres.view(shape))

    def spread(coefficient: Tensor) -> Tensor:
        return coefficient.view(-1, *[1] * rank)

    rows = [
        sum((spread(linear[:, i, j]) * axes[j] for j in range(rank)), start=spread(offset[:, i])).expand(-1, *size)
        for i in range(rank)
    ]
    return _LinearSample.apply(images, torch.stack(rows, dim=-1))


class _LinearSample(torch.autograd.Function):
    """`F.grid_sample` for a constant grid: linear in the image, so its backward can be differentiated again.

    Written out because older supported versions of torch cannot differentiate the backward of `F.grid_sample`.
    """

    @staticmethod
    def forward(ctx, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.size = images.shape
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _LinearSampleAdjoint.apply(grad, grid, ctx.size), None


class _LinearSampleAdjoint(torch.autograd.Function):
    """The transpose of `_LinearSample`; its own backward is `_LinearSample` again."""

    @staticmethod
    def forward(ctx, grad: Tensor, grid: Tensor, size: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        with torch.enable_grad():
            zeros = torch.zeros(size, dtype=grad.dtype, device=grad.device, requires_grad=True)
            sampled = F.grid_sample(zeros, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        return torch.autograd.grad(sampled, zeros, grad)[0]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _LinearSample.apply(grad, grid), None, None


def _intensity(images: Tensor, config: AugmentConfig, draw: _Draw) -> Tensor:
    """Gain, contrast and bias as one `scale x + offset` per sample; scale 1 and offset 0 where none fired."""
    if not (config.gain or config.contrast or config.bias):
        return images
    gain, contrast, bias = (
        draw.normal(std) if std else draw.nothing() for std in (config.gain, config.contrast, config.bias)
    )
    gain, contrast = gain.exp2(), contrast.exp2()
    shape = (-1, *[1] * (images.ndim - 1))
    scale, offset = (t.to(images.device).view(shape) for t in (gain * contrast, contrast * (gain - 1) + bias))
    return images * scale + offset


def _noise(images: Tensor, config: AugmentConfig, draw: _Draw) -> Tensor:
    """White Gaussian noise, drawn for the samples that get some only."""
    if not config.noise:
        return images
    sigma = draw.normal(config.noise).abs()
    rows = sigma.nonzero().squeeze(1)
    if len(rows) == 0:
        return images
    generator, rows, sigma = draw.generator, rows.to(images.device), sigma[rows].to(images.device)
    if generator.device != images.device:  # millions of values: drawn where they are added
        generator = torch.Generator(images.device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
    grain = torch.randn(len(rows), *images.shape[1:], generator=generator, device=images.device)
    return images.index_add(0, rows, grain * sigma.view(-1, *[1] * (images.ndim - 1)))
