"""Where a file of weights is: given by path, shipped, in the caches of Hugging Face and torch, or downloaded.

And whether it is the file that it claims to be. Nothing here reads the weights themselves.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HTTPError

from splitshuffle_gan.checkpoint import WEIGHTS, shipped
from splitshuffle_gan.errors import UserError

CHECKSUM = "weights.sha256"
HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Published:
    """A weights file that others publish, its size and sha256, and where it is found.

    It is downloaded from the hub `repository`, or from `link` into torch's hub cache. `page` is for people; `aliases`
    are other names of the same bytes.
    """

    file: str
    megabytes: float
    sha256: str
    page: str
    repository: str | None = None
    link: str | None = None
    aliases: tuple[str, ...] = ()


def given_weights(name: str, published: Published | None, path: Path) -> Path:
    """The file that `path` means for the extractor `name`: itself, or in the folder of a network like those that ship.

    Raises UserError when it is not there, or when a network like those that ship (`published` None) has another name.
    """
    if path.is_dir() and published is None:
        path = path / WEIGHTS
    if not path.is_file():
        raise UserError(f"weights: {path} is not a file; wanted the weights of {name}.")
    if published is None and path.name != WEIGHTS:
        raise UserError(f"weights: found {path}; {name} wants a folder with config.json and {WEIGHTS}.")
    return path


def find_weights(name: str, published: Published | None, fallback: str) -> Path:
    """The cached or downloaded file of the extractor `name`; where `published` is None, the one that ships.

    Raises UserError when there is none; it says how to get it, and advises the extractor `fallback` instead.
    """
    if published is None:
        folder = shipped(name)
        if folder is None:
            raise UserError(
                f"{name}: checkpoints/{name}, which ships with the package, is not installed. Install the package "
                "again, or pass the folder with --weights."
            )
        return folder / WEIGHTS
    if cached := cached_weights(published):
        return cached
    try:
        return _download(published)
    except (EntryNotFoundError, HTTPError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        place = f"into {_torch_cache()}"
        if published.repository is not None:
            place = f"into the cache by `hf download {published.repository} {published.file}`"
        raise UserError(
            f"{name}: its weights are not here and could not be downloaded ({reason}). Get {published.file} "
            f"({published.megabytes} MB, sha256 {published.sha256}) from {published.page} where there is a network, "
            f"and put it {place}, or pass its path with --weights. Or choose {fallback}, which ships."
        ) from error


def cached_weights(published: Published) -> Path | None:
    """The file in Hugging Face's or torch's cache; None when it is not there. The network is not asked."""
    if published.repository is not None:
        found = try_to_load_from_cache(published.repository, published.file)
        return Path(found) if isinstance(found, str) else None
    places = [_torch_cache() / file for file in (published.file, *published.aliases)]
    return next((place for place in places if place.is_file()), None)


def _torch_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _download(published: Published) -> Path:
    if published.repository is not None:
        # Asked once, this fails at once without a network; hf_hub_download would try again for 23 s.
        get_hf_file_metadata(hf_hub_url(published.repository, published.file))
        return Path(hf_hub_download(published.repository, published.file))
    target = _torch_cache() / published.file
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(published.link, str(target), hash_prefix=published.sha256)
    return target


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_checksum(folder: Path) -> None:
    """Write the sha256 of the network in `folder` beside it, where `check_weights` looks for it."""
    (folder / CHECKSUM).write_text(f"{file_sha256(folder / WEIGHTS)}  {WEIGHTS}\n")


def check_stated(sha256: str | None) -> None:
    """Raise UserError for a sha256, as a user states it, that is not 64 hexadecimal digits. None passes."""
    if sha256 is not None and not HEX64.fullmatch(sha256.lower()):
        raise UserError(f"weights-sha256: found {sha256!r}, wanted 64 hexadecimal digits, as sha256sum prints them.")


def check_weights(path: Path, digest: str, published: Published | None, stated: str | None = None) -> None:
    """Raise UserError when `digest`, the sha256 of the file at `path`, is not what is known of it.

    What is known: its name as a blob of the Hugging Face cache; `published`, if it bears that name; the file
    `weights.sha256` beside a network like those that ship, which must be there. A sha256 that the user has `stated`
    is the only one asked.
    """
    claims = {}
    if stated is not None:
        claims["--weights-sha256"] = stated.lower()
    else:
        if HEX64.fullmatch(path.resolve().name):
            claims["its name in the Hugging Face cache"] = path.resolve().name
        if published and path.name in (published.file, *published.aliases):
            claims[published.page] = published.sha256
        record = path.with_name(CHECKSUM)
        if published is None and record.is_file():
            claims[str(record)] = (record.read_text(errors="replace").split() or ["nothing"])[0].lower()
        if published is None and not claims:
            raise UserError(f"{record}: is missing, so {path.name} cannot be checked. Get the folder again.")
    for source, wanted in claims.items():
        if digest != wanted:
            raise UserError(
                f"{path}: tampered with or damaged: its sha256 is {digest}, wanted {wanted} ({source}). Get the file "
                f"again; if it is what you mean to use, pass --weights {path} --weights-sha256 {digest}."
            )
