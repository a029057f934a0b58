"""Class names and answers: which a task knows, and their places among the logits."""

from collections.abc import Mapping, Sequence

from torch import Tensor


def vocabulary(given: Sequence[str] | None, listed: list[str] | None, kind: str) -> list[str]:
    """The class names or answers of a task: those it was given, else those that its data list.

    Raises:
        ValueError: nobody names any, one is named twice, or the data list other ones.
    """
    if given is not None and listed is not None and list(given) != listed:
        raise ValueError(
            f"the data's {kind} ({len(listed)}: {', '.join(listed[:5])} …) are not the task's ({len(given)}:"
            f" {', '.join(given[:5])} …)"
        )
    names = list(given) if given is not None else listed
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{kind}: give at least one name, none twice; got {names if names is None else names[:20]}")
    return names


def indices(names: Sequence[str], among: Mapping[str, int], kind: str) -> list[int]:
    """Places of names in a vocabulary.

    Raises:
        ValueError: naming one that is not in it.
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
