"""The test cases of a trial: none is trained on, and what is kept of each."""

from splitshuffle_gan.data.dataset import PreparedDataset
from splitshuffle_gan.errors import UserError


def refuse_shared(name: str, test: PreparedDataset, trained_on: list[PreparedDataset]) -> None:
    """Raise UserError, beginning with the option's `name`, when test volumes are among those to train on."""
    for part in trained_on:
        if shared := test.shared_with(part):
            raise UserError(
                f"{name}: {len(shared)} of its volumes, such as {shared[0]}, are in {part.folder} as well; set volumes "
                "aside before training, with `splitshuffle split`"
            )


def cases_of(found: dict, test: PreparedDataset) -> list[dict]:
    """ "source" and "dice" by label of each case of `predict.evaluate`, None for structures that the case lacks.

    So the same cases count for all trainings, whatever these found.
    """
    return [
        {"source": case["source"], "dice": _of_present(case["dice"], entry)}
        for case, entry in zip(found["cases"], test.manifest["volumes"], strict=True)
    ]


def _of_present(dice: dict[str, float | None], entry: dict) -> dict[str, float | None]:
    return {label: value if int(label) in entry["labels"]["values"] else None for label, value in dice.items()}
