"""What a trial asks: the ways of training that it compares, and the words for people."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """The ways of training, and how the report speaks of them.

    Attributes:
        title: of the report.
        arms: the ways by name, in order, each with its colour.
        base: the way that the others are compared with.
        column: over the names of the ways.
        given: over what each was given.
        how_to_read: what the report says besides what it says of all trials; `{name}` stands for a setting's value.
    """

    title: str
    arms: dict[str, str]
    base: str
    column: str
    given: str
    how_to_read: str
