"""Whether data are of a network's classes: the same names in the same order, for labels are
numbers."""

from __future__ import annotations

from collections.abc import Sequence

from model_export.data.sample import DataError

UNNAMED = ("object",)  # of a folder of instances whose meta.json names no class


def refuse_other_classes(
    what: str, classes: Sequence[str], known: Sequence[str], whose: str, change: str
) -> None:
    """Raises DataError where the classes of a data set are not the known ones.

    what: the data set, as it was named. whose: what the known ones belong to, for the message.
    change: what to do about it.
    """
    if tuple(classes) == tuple(known):
        return
    if len(classes) == len(known) == 1 and UNNAMED in (tuple(classes), tuple(known)):
        return
    raise DataError(
        f"{what} has other classes than {whose}: {difference(classes, known)}; {change}"
    )


def difference(classes: Sequence[str], known: Sequence[str]) -> str:
    """What is different, in a few words however many classes there are."""
    if len(classes) != len(known):
        return f"{len(classes)} ({few(classes)}) instead of {len(known)} ({few(known)})"
    pairs = zip(classes, known, strict=True)
    index, (ours, theirs) = next(
        (index, pair) for index, pair in enumerate(pairs) if pair[0] != pair[1]
    )
    if sorted(classes) == sorted(known):
        return f"the names are in another order, class {index} is {ours!r} instead of {theirs!r}"
    return f"class {index} is {ours!r} instead of {theirs!r}"


def named_in(text: str, names: Sequence[str]) -> list[str]:
    """The names in a list with commas. A name may have commas of its own: of those that begin at
    one place, the longest is meant. What is none of the names stands for itself."""
    known = {tuple(_parts(name)): name for name in names}
    parts, found = _parts(text), list[str]()
    while parts:
        lengths = range(len(parts), 0, -1)
        length = next((many for many in lengths if tuple(parts[:many]) in known), 1)
        found.append(known.get(tuple(parts[:length]), parts[0]))
        parts = parts[length:]
    return found


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def few(names: Sequence[str], most: int = 4) -> str:
    """The first names, and whether there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
