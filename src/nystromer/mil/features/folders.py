"""The bags in a folder, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from nystromer.mil.columns import SUFFIXES
from nystromer.mil.features.bags import Bag
from nystromer.mil.features.formats import FORMATS, read_bag, tables

Track = Callable[[Sequence[Path]], Iterable[Path]]


def find_bags(folder: str | Path, *, track: Track = iter) -> list[Bag]:
    """Returns the bags in a folder and the folders in it, sorted by name; no feature is read yet.

    Args:
        folder: What CLAM, TRIDENT, STAMP, slideflow, HistoSSL or torchmil has written, or npy, npz,
            pt or safetensors, a file a bag; or a table with a row a patch. The path of one file is
            fine too.
        track: Goes over the files, say with a progress bar.

    Raises:
        ValueError: If there are no bags, or a file is damaged.

    Example:
        >>> import tempfile, torch
        >>> folder = tempfile.mkdtemp()
        >>> torch.save(torch.ones(500, 384), f"{folder}/slide_1.pt")
        >>> find_bags(folder)[0].features().shape
        torch.Size([500, 384])
    """
    bags = []
    for found in scan(folder, track=track):
        if isinstance(found, ValueError):
            raise found
        bags.append(found)
    return sorted(bags, key=lambda bag: bag.id)


def scan(folder: str | Path, *, track: Track = iter) -> Iterator[Bag | ValueError]:
    """Returns bag after bag; a file that is damaged gives the error that says so.

    Raises:
        ValueError: If there is nothing to read.
    """
    folder = Path(folder)
    if not folder.exists():
        raise ValueError(f"There is no {folder}; name a folder with feature files.")
    files = [folder] if folder.is_file() else sorted(x for x in folder.rglob("*") if _visible(x))
    stored = _without_twins([x for x in files if x.suffix.lower() in FORMATS])
    count = 0
    for path in track(stored):
        try:
            found: Bag | ValueError | None = read_bag(path)
        except ValueError as error:
            found = error
        if found is not None:
            count += 1
            yield found
    if not count:
        for path in [x for x in files if x.suffix.lower() in SUFFIXES]:
            bags = _bags_of_table(path, folder.is_file())
            count += len(bags)
            yield from bags
    if not count:
        raise ValueError(
            f"{folder} has no features; what is read: {', '.join(FORMATS)} with [N, D] a bag, or "
            "one .csv or .parquet table with a row a patch."
        )


def _bags_of_table(path: Path, named: bool) -> list[Bag]:
    """A table that was named is of bags; one in a folder is, if some bag has several rows."""
    try:
        bags = tables.bags_of(path)
    except ValueError:
        if named:
            raise
        return []
    return bags if named or any(bag.num_patches > 1 for bag in bags) else []


def _visible(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def _without_twins(files: list[Path]) -> list[Path]:
    """CLAM writes the same features to h5_files and pt_files; the first have coordinates."""
    kept = {x.with_suffix("") for x in files if x.parent.name == "h5_files"}
    return [
        x
        for x in files
        if x.parent.name != "pt_files" or x.parent.with_name("h5_files") / x.stem not in kept
    ]


def duplicates(bags: Iterable[Bag]) -> list[str]:
    """Returns the names that several bags have."""
    seen: set[str] = set()
    twice = [bag.id for bag in bags if bag.id in seen or seen.add(bag.id)]  # type: ignore[func-returns-value]
    return sorted(set(twice))
