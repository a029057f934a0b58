"""Names of classes and answers: which a task knows, and their indices among the logits."""

from collections.abc import Mapping, Sequence

from torch import Tensor


def known_names(
    given: Sequence[str] | None, listed: list[str] | None, kind: str, *, ordered: bool = False
) -> list[str]:
    """The class names or answers of a task: those it was given, else those that its data list.

    Args:
        given: in the order of the model's outputs.
        listed: by the data.
        kind: "classes" or "answers", for messages.
        ordered: the data mean classes by their indices: both must be the same list. Otherwise samples name their
            classes, and it is enough that the data list none that the task does not know.

    Raises:
        ValueError: nobody names any, one is named twice, or the data list other ones.
    """
    if given is not None and listed is not None and (list(given) != listed if ordered else set(listed) - set(given)):
        raise ValueError(
            f"the data's {kind} ({len(listed)}: {', '.join(listed[:5])} …) are not the task's ({len(given)}:"
            f" {', '.join(given[:5])} …)"
        )
    names = list(given) if given is not None else listed
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"{kind}: give at least one name and none twice, as {kind}=[…], or by data whose manifest lists them; got"
            f" {names if names is None else names[:20]}"
        )
    return names


def counted_names(number: int | None, listed: list[str] | None, kind: str) -> list[str] | None:
    """What the data list where only the number is known; the numbers themselves where they list nothing.

    Raises:
        ValueError: the data list more or fewer.
    """
    if number is None:
        return listed
    if number < 1 or (listed is not None and len(listed) != number):
        has = "" if listed is None else f"; the data have {len(listed)}: {', '.join(listed[:5])} …"
        raise ValueError(f"num_{kind} is {number}{has}: give their number, or leave it out where the data list them")
    return [str(index) for index in range(number)] if listed is None else listed


def adopted_names(
    given: Sequence[str] | None, number: int | None, listed: list[str] | None, kind: str, *, ordered: bool = False
) -> list[str]:
    """``known_names`` of a task that was given names, or their number, or neither."""
    if given is None:
        listed = counted_names(number, listed, kind)
    return known_names(given, listed, kind, ordered=ordered)


def indices(names: Sequence[str], among: Mapping[str, int], kind: str) -> list[int]:
    """Indices of names among those that a task knows.

    Raises:
        ValueError: naming one that is not among them.
    """
    for name in names:
        if name not in among:
            some = ", ".join(list(among)[:10])
            raise ValueError(f"{kind} {name!r} is none of the {len(among)} that this task knows ({some}, …)")
    return [among[name] for name in names]


def likeliest(probabilities_BC: Tensor, names: Sequence[str], top: int) -> list[dict[str, float]]:
    """For each row the names of the greatest probabilities, greatest first; fewer than ``top`` if there are fewer."""
    best = probabilities_BC.topk(min(top, len(names)))
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [{names[i]: value for i, value in zip(*row, strict=True)} for row in rows]
