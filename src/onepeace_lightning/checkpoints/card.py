"""The model card of a saved model (``README.md``): data, scores, sizes and limits, as far as they are known."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from onepeace_lightning.checkpoints.original import AnyModel
from onepeace_lightning.data.data_types import data_type
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.tokenizers import Tokenizer
from onepeace_lightning.models.heads.classifier import ClassifyModel
from onepeace_lightning.models.pretraining import PretrainModel

CARD_FILE = "README.md"
RECORD = "run"
"""In a checkpoint and in ``config.json``: what ``training.record`` has put down of the run."""

_MARK = "<!-- Written by onepeace-lightning. Delete this line, and your text stays when the model is saved again. -->"


def written_here(card: str) -> bool:
    """Whether a card is as ``model_card`` writes them, and may be replaced."""
    return _MARK in card


def model_card(
    model: AnyModel,
    preprocessing: Preprocessing,
    tokenizer: Tokenizer | None = None,
    record: Mapping[str, Any] | None = None,
) -> str:
    """The card in Markdown, with the hub's metadata in front.

    Args:
        model: what is saved.
        preprocessing: of its modalities.
        tokenizer: None where it has none.
        record: of the run that trained it; None: the card says that nothing is known.
    """
    names = list(model.config.adapters)
    about = ModelCardData(
        library_name="onepeace-lightning",
        tags=["one-peace", "multimodal", *names],
        pipeline_tag="feature-extraction" if isinstance(model, PretrainModel) else None,
    )
    sections = {
        "Use": _use(model, names),
        "Sizes": _sizes(model, preprocessing, tokenizer),
        "Data": _data(record),
        "Scores": _scores(record),
        "What it cannot do": _limits(model, names, record),
    }
    parts = ["\n".join(["---", about.to_yaml(), "---", "", _MARK]), f"# ONE-PEACE: {', '.join(names)}"]
    parts.append(
        "One transformer for several modalities ([ONE-PEACE](https://arxiv.org/abs/2305.11172)), saved by"
        " onepeace-lightning."
    )
    for title, lines in sections.items():
        parts += [f"## {title}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _use(model: AnyModel, names: Sequence[str]) -> Iterator[str]:
    what = "embed" if isinstance(model, PretrainModel) else "encode"
    yield from (
        "```python",
        "from onepeace_lightning import OnePeace",
        "",
        'model = OnePeace.from_pretrained("owner/name")  # or the folder',
        f"model.{what}({names[0]}=[…])",
        "```",
    )


def _sizes(model: AnyModel, preprocessing: Preprocessing, tokenizer: Tokenizer | None) -> Iterator[str]:
    encoder, names = model.config.encoder, list(model.config.adapters)
    parameters = list(model.parameters())
    bytes_ = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    types = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})
    yield f"* {sum(map(_count, parameters)):,} parameters in {', '.join(types)}, {bytes_ / 1e6:,.1f} MB"
    yield f"* {encoder.depth} blocks of width {encoder.width} with {encoder.heads} heads"
    if isinstance(model, PretrainModel):
        yield f"* embeddings of {encoder.width} numbers, of unit length"
    if isinstance(model, ClassifyModel):
        yield f"* {model.head.config.outputs} outputs, pooled from {' and '.join(model.head.config.pooled)}"
    yield f"* input: {preprocessing.describe(names) or 'as it is'}"
    if tokenizer is not None:
        length = "" if tokenizer.max_length is None else f", at most {tokenizer.max_length} of them in a text"
        yield f"* vocabulary: {tokenizer.vocab_size} ids, fingerprint {tokenizer.fingerprint()}{length}"


def _count(parameter: Any) -> int:
    return int(parameter.numel())


def _data(record: Mapping[str, Any] | None) -> Iterator[str]:
    if not record or not record["data"]:
        yield "Nothing is recorded of the data that it was trained on."
    else:
        yield from _training(record)
        versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        yield f"\nVersions: {versions}."
    for source, before in _starts(record or {}):
        yield ""
        if before is None:
            yield f"It started from {_cell(source)}, of whose data nothing is recorded."
        else:
            yield f"It started from {_cell(source)}, which was trained on:\n"
            yield from _training(before)


def _training(record: Mapping[str, Any]) -> Iterator[str]:
    """The data of one run, and what it was."""
    yield "| stream | data type | samples | source | license | fingerprint |"
    yield "|---|---|--:|---|---|---|"
    for name, stream in record["data"].items():
        cells = [name, stream["data_type"], f"{stream['samples']:,}", stream["source"], stream["license"]]
        yield f"| {' | '.join(map(_cell, cells))} | `{stream['fingerprint']}` |"
    yield ""
    yield f"{record['task']}, {record['steps']} steps" + (
        f", by\n\n    {record['command']}" if record["command"] else "."
    )


def _starts(record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    """What the run started from, what that started from, and so on: name, and record where there is one."""
    start = record.get("start")
    while start is not None:
        before = start["record"]
        yield start["source"], before if before and before["data"] else None
        start = before.get("start") if before else None


def _scores(record: Mapping[str, Any] | None) -> Iterator[str]:
    scores = record["scores"] if record else {}
    if not record or not scores:
        yield "None are recorded."
        return
    percent = record["percent"]
    yield f"| score | {'percent' if percent else 'value'} | chance |"
    yield "|---|--:|--:|"
    form = ".2f" if percent else ".4g"
    for name, value in scores.items():
        if "chance/" not in name:
            chance = next((scores[key] for key in _chances(name) if key in scores), None)
            yield f"| {_cell(name)} | {value:{form}} | {'' if chance is None else f'{chance:{form}}'} |"
    for name, stream in record["data"].items():
        if chance := stream.get("chance"):
            yield f"\n{name}: chance is {chance['percent']} % {chance['metric']} ({chance['definition']})."
    yield f"\nMeasured on the validation data after {record['measured_at']} steps, while it was trained."
    if record["command"].startswith("onepeace fit "):
        yield f"Again:\n\n    {_measuring(record['command'])}"


def _chances(name: str) -> Iterator[str]:
    """Where the chance level of a score may be logged: ``chance/`` in front of any part of its name."""
    parts = name.split("/")
    return ("/".join([*parts[:i], "chance", *parts[i:]]) for i in range(len(parts)))


def _measuring(command: str) -> str:
    """The command that measures what a command has trained."""
    words, kept = iter(command.split(" ")), []
    for word in words:
        if word == "--ckpt_path":
            next(words, None)
        elif not word.startswith("--ckpt_path="):
            kept.append(word)
    return " ".join(kept).replace("onepeace fit", "onepeace validate", 1) + " --ckpt_path best"


def _limits(model: AnyModel, names: Sequence[str], record: Mapping[str, Any] | None) -> Iterator[str]:
    yield f"* It takes {', '.join(names)} and nothing else, and generates neither text nor images nor audio."
    if not isinstance(model, PretrainModel):
        yield "* It gives no embeddings to compare: it has no contrastive heads."
    if not record or not record["data"]:
        yield "* What it was trained on is not recorded, so neither is what it may have learned of it."
        return
    runs = [record, *(before for _, before in _starts(record))]
    known = [run for run in runs if run is not None]
    trained = [stream for run in known for name, stream in run["data"].items() if name.split(".")[0] == "train"]
    pairs = {frozenset(pair) for stream in trained for pair in data_type(stream["data_type"]).pairs}
    rest = "" if len(known) == len(runs) else ", or on a model that it started from, of which nothing is recorded"
    if isinstance(model, PretrainModel):
        for index, first in enumerate(names):
            for second in names[index + 1 :]:
                if frozenset((first, second)) not in pairs:
                    yield (
                        f"* {first} and {second} were not paired in training: a search between them rests on pairs with"
                        f" others{rest}."
                    )
    samples = sum(stream["samples"] for stream in trained)
    others = ", and those of a model that it started from" if rest else ""
    yield f"* It has seen {samples:,} samples{others}; how it does on data unlike those above was not measured."
    yield "* Nothing but the scores above was measured: neither bias nor safety."
    yield "* No licence of the weights is stated; those of the data are above. State one before you publish."


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
