"""Which snapshot of a run is the best one, by volumes it was not trained on."""

from pathlib import Path

from tqdm import tqdm

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.extractors.catalogue import Extractor
from splitshuffle_gan.metrics.features import extract
from splitshuffle_gan.metrics.measures import SHARES, Draws, fid, share
from splitshuffle_gan.metrics.source import VolumeSet, check_same_grid, open_volumes

RULE = (
    "the lowest 3D FID against the held-out volumes, the mean over the draws, each of as many generated volumes as "
    "there are held-out ones; of equals the later snapshot"
)


def snapshots_of(run: Path, skip: float = 0.0) -> list[Path]:
    """The snapshots of a run that have a generator, from the first to the last.

    Those of the first `skip`, a share of the images shown up to the last snapshot, are left out.
    Raises UserError when there are none.
    """
    found = sorted(path for path in run.glob("snapshots/kimg*") if (path / "generator").is_dir())
    if not found:
        raise UserError(f"run: {run} has no snapshots with a generator; give the folder of a 3D training run")
    return [path for path in found if kimg_of(path) >= skip * kimg_of(found[-1])]


def kimg_of(snapshot: Path) -> float:
    """Thousands of images that had been shown, as a snapshot's name says."""
    try:
        return float(snapshot.name.removeprefix("kimg"))
    except ValueError:
        raise UserError(f"{snapshot}: not the name of a snapshot, which is kimg and a number; rename it") from None


def validate(snapshots: list[Path], held_out: VolumeSet, extractor: Extractor, draws: int) -> list[dict]:
    """The numbers of each snapshot, in order: {"snapshot", "kimg", "fid_3d": {"mean", "draws"}, "precision": ...}.

    Draw s, from 1 on, is of the generator's volumes of seed s, as `open_volumes` counts them: the final score's, of
    seed 0, are none of these.
    """
    measures = [fid(Draws()), *(share(name, Draws()) for name in SHARES)]
    truth = extract(held_out, extractor, progress=False)
    found = []
    with tqdm(total=len(snapshots) * draws, desc="choose", unit="draw") as bar:
        for snapshot in snapshots:
            values = {measure.name: [] for measure in measures}
            for seed in range(1, draws + 1):
                made = open_volumes(snapshot / "generator", count=len(held_out), seed=seed)
                check_same_grid(made, held_out)
                features = extract(made, extractor, progress=False)
                for measure in measures:
                    values[measure.name].append(float(measure.value(features, truth)))
                bar.update()
            means = {name: {"mean": sum(drawn) / draws, "draws": drawn} for name, drawn in values.items()}
            found.append({"snapshot": snapshot.name, "kimg": kimg_of(snapshot), **means})
            bar.set_postfix_str(f"{snapshot.name}: 3D FID {means['fid_3d']['mean']:.3g}")
    return found


def best_of(validated: list[dict]) -> dict:
    """The entry that `RULE` chooses."""
    return min(validated, key=lambda entry: (entry["fid_3d"]["mean"], -entry["kimg"]))
