"""Equal compute without a clock: minutes of one core become numbers of steps, by how long a step takes."""

from dataclasses import dataclass

from splitshuffle_gan.errors import UserError

STATUS_STEPS = 4  # as `training.loop`: a run ends, and a snapshot is made, only after a whole number of these


@dataclass(frozen=True)
class Steps:
    """How long a run trains.

    Attributes:
        in_2d: steps of the 2D training, 0 for none.
        in_3d: steps of the 3D training.
        every: steps of it between two evaluations.
        seconds_2d: that a step takes; likewise seconds_3d.
    """

    in_2d: int
    in_3d: int
    every: int
    seconds_2d: float
    seconds_3d: float

    def minutes(self, steps_3d: int) -> float:
        """Minutes of one core until so many 3D steps are done, the 2D training included."""
        return (self.in_2d * self.seconds_2d + steps_3d * self.seconds_3d) / 60


def steps_for(
    minutes: float, share_2d: float, seconds_2d: float, seconds_3d: float, evaluations: int, unit: int = STATUS_STEPS
) -> Steps:
    """The steps that fill `minutes` best: a share of them in 2D, the rest in `evaluations` equal parts in 3D.

    All numbers are multiples of `unit`, so a run differs from its minutes by up to half of `evaluations * unit` steps.
    Raises UserError when there is no time for one unit in each part.
    """
    in_2d = unit * round(60 * minutes * share_2d / seconds_2d / unit) if share_2d else 0
    every = unit * round((60 * minutes - in_2d * seconds_2d) / seconds_3d / evaluations / unit)
    if every < unit or share_2d and in_2d < unit:
        needed = (unit * seconds_2d if share_2d else 0) + unit * evaluations * seconds_3d
        raise UserError(
            f"minutes: found {minutes:g}, too short for {unit} steps in each part of the training, which alone take "
            f"{needed / 60:.2g} minutes; give more minutes or fewer evaluations"
        )
    return Steps(in_2d, evaluations * every, every, seconds_2d if share_2d else 0.0, seconds_3d)
