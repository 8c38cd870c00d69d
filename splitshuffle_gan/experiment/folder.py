"""The folder of an experiment: nobody else works in it meanwhile, and it is one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitshuffle_gan.errors import UserError

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None

LOCK = ".lock"


@contextmanager
def only_one(out: Path, record: str, beside: tuple[str, ...] = ()) -> Iterator[None]:
    """Make the folder `out`, unless it is there, and keep others from working in it within the block.

    Raises UserError when somebody does, and when it holds something, but no file `record`, so that it is not what it
    should be. Files called as in `beside` may be there without.
    """
    names = {path.name for path in out.iterdir()} - {*beside, LOCK} if out.is_dir() else set()
    if out.exists() and not out.is_dir() or names and record not in names:
        what = record.removesuffix(".json")
        raise UserError(f"out: {out} exists and has no {record} in it, so it is no {what}; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with open(out / LOCK, "w") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"out: another process works in {out}; wait for it, or choose another") from error
        yield
