"""One's own shards as a task of MTEB: retrieval between two modalities, offline."""

from collections import defaultdict
from typing import Any

from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from onepeace_lightning.data.manifest import read_manifest
from onepeace_lightning.data.sampler import read_positions
from onepeace_lightning.modalities.registry import modality as find

_SIDES = {"queries": "query", "corpus": "document"}


def retrieval_task(folder: str, query: str, document: str, *, name: str | None = None) -> AbsTaskRetrieval:
    """Retrieval of one modality by another, over all samples of a folder of shards.

    A sample's own other side is right, and that of each sample whose text is the same.

    Args:
        folder: of shards with both modalities (``image-text``, ``audio-image`` …), or their URL.
        query: what is asked with.
        document: what is searched.
        name: in MTEB's results; None: made of the folder's fingerprint.

    Raises:
        ValueError: the shards lack one of the two.
    """
    manifest = read_manifest(folder)
    sides: dict[str, list[Any]] = {query: [], document: []}
    groups: dict[Any, list[int]] = defaultdict(list)
    for row, (_, sample) in enumerate(read_positions(manifest, range(len(manifest.shards)), range(manifest.samples))):
        text: Any = row
        for one, items in sides.items():
            found = [sample[extension] for extension in find(one).extensions if extension in sample]
            if not found:
                raise ValueError(f"{folder} holds {manifest.data_type!r}: its sample {sample['__key__']} has no {one}")
            items.append(_for_mteb(find(one)().decode(found[0])))
            text = items[-1] if find(one).reads_text else text
        groups[text].append(row)
    same = {row: rows for rows in groups.values() for row in rows}
    datasets = {
        side: Dataset.from_dict({"id": [f"{prefix}{row}" for row in range(manifest.samples)], one: sides[one]})
        for (side, prefix), one in zip(_SIDES.items(), (query, document), strict=True)
    }
    relevant = {f"query{row}": {f"document{other}": 1 for other in rows} for row, rows in same.items()}

    class ShardsRetrieval(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=name or f"Shards{manifest.fingerprint()}{query.title()}To{document.title()}",
            description=f"{document} by {query}, of {manifest.source}",
            reference=None,
            dataset={"path": str(folder), "revision": manifest.fingerprint()},
            type="Any2AnyRetrieval",
            category=f"{query[0]}2{document[0]}",  # type: ignore[arg-type]
            modalities=sorted({query, document}),  # type: ignore[arg-type]
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="hit_rate_at_1",
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation=None,
        )

        def load_data(self, *args: Any, **kwargs: Any) -> None:
            """Everything is read already."""
            self.dataset = {"default": {"test": {**datasets, "relevant_docs": relevant, "top_ranked": None}}}  # type: ignore[typeddict-item]
            self.data_loaded = True

    return ShardsRetrieval()


def _for_mteb(item: Any) -> Any:
    """A decoded item as MTEB's batches have it: audio as a dict, all else as it is."""
    if isinstance(item, tuple):
        waveform, rate = item
        return {"array": waveform.numpy(), "sampling_rate": rate}
    return item
