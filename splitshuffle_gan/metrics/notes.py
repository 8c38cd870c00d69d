"""What a reader of a card has to know besides its numbers."""

from splitshuffle_gan.extractors.catalogue import Extractor
from splitshuffle_gan.metrics.volume_set import VolumeSet


def notes(
    extractor: Extractor,
    plane_extractor: Extractor | None,
    n: int,
    generated: VolumeSet,
    real: VolumeSet,
    others: VolumeSet | None,
    splits: int,
) -> list[str]:
    """A sentence or two on each thing to keep in mind: the extractors, what was trained on, the floor, a small n.

    n: volumes on each side. others, splits: what the floor was taken from, and how often.
    """
    told = [f"{used.name}: {used.note}" for used in (extractor, plane_extractor) if used is not None and used.note]
    real_count = len(real)
    if generated.details.get("trained_on") and generated.details["trained_on"] == real.details.get("dataset_hash"):
        told.append(
            "The real volumes are those the generator was trained on. A generator that repeats them scores well: "
            "compare with volumes that were held out of training, and run `splitshuffle audit`."
        )
    if others is not None:
        size = min(n, len(others))
        references = f"the {n}" if size == n else f"{size} of the {n}"
        told.append(
            f"The floor is between {size} of the {len(others)} volumes of {others.name}, in {splits} random choices, "
            f"and {references} real volumes that the generated ones are compared with."
        )
    elif n > real_count // 2:
        told.append(
            f"There are {real_count} real volumes, so the floor is between halves of {real_count // 2}, fewer than the "
            f"{n} of the score. Distances rise as n falls: compare the floor with the value at the floor's n."
        )
    if n < extractor.dimension:
        told.append(
            f"n = {n} is below the {extractor.dimension} features: the covariances are singular and the distance holds "
            "a large part that falls with n. It is exact, but only comparable at the same n."
        )
    return told
