"""Minutes to steps: by hand, and equal within what whole steps allow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitshuffle_gan.errors import UserError
from splitshuffle_gan.experiment.budget import STATUS_STEPS, steps_for
from splitshuffle_gan.training import loop


def test_the_unit_is_that_of_the_training():
    assert STATUS_STEPS == loop.STATUS_STEPS


def test_steps_by_hand():
    """10 minutes: 2.5 in 2D are 300 steps of 0.5 s; 7.5 in 3D are 225 of 2 s, 5 parts of 45, rounded to 44."""
    steps = steps_for(10, 0.25, 0.5, 2.0, 5)
    assert (steps.in_2d, steps.every, steps.in_3d) == (300, 44, 220)
    assert steps.minutes(0) == pytest.approx(2.5) and steps.minutes(44) == pytest.approx(2.5 + 88 / 60)


def test_without_2d_all_is_3d():
    steps = steps_for(10, 0, 0.0, 2.0, 5)
    assert (steps.in_2d, steps.in_3d, steps.minutes(300)) == (0, 300, 10.0)


@given(st.floats(5, 100), st.just(0.0) | st.floats(0.1, 0.6), st.floats(0.01, 1), st.floats(0.01, 2), st.integers(1, 8))
def test_all_get_the_same_time_but_for_half_a_unit_in_each_part(minutes, share, seconds_2d, seconds_3d, evaluations):
    steps = steps_for(minutes, share, seconds_2d, seconds_3d, evaluations)
    assert steps.in_2d % 4 == steps.every % 4 == 0 and steps.in_3d == evaluations * steps.every
    assert abs(steps.minutes(steps.in_3d) - minutes) <= (evaluations * 2 + 1e-6) * seconds_3d / 60
    assert abs(steps.minutes(0) - share * minutes) <= (2 + 1e-6) * seconds_2d / 60


@pytest.mark.parametrize("minutes, share", [(0.1, 0.0), (2, 0.01), (0.5, 0.8)])
def test_too_little_time_is_said(minutes, share):
    with pytest.raises(UserError, match=r"minutes: found .*, too short for 4 steps"):
        steps_for(minutes, share, 1.0, 1.0, 5)
