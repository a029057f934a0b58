"""Embedding inputs of concurrent requests together.

d = embedding width, N = inputs.
"""

import asyncio
import base64
import binascii
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.modalities.registry import text_modality

_DATA_URL = re.compile(r"data:([a-z0-9_-]+)/[\w.+-]+(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.ASCII)


class RefusedError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP.
        code: a word for programs.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Batcher:
    """Embeds inputs of concurrent requests together.

    An input is decoded by itself, so that one that cannot be read fails alone; those that are waiting when the model is
    free go through it together, by modality. What an input gives does not depend on the others.

    Args:
        model: with contrastive heads.
        batch_size: inputs that go through the model together.
        wait: seconds to wait for further inputs once there is one.
        waiting: inputs that may wait.
    """

    def __init__(self, model: OnePeace, *, batch_size: int = 32, wait: float = 0.004, waiting: int = 2048) -> None:
        self.model, self.batch_size, self.wait, self.waiting = model, batch_size, wait, waiting
        self.admitted = 0
        self.sizes: Callable[[int], None] = lambda size: None
        self._queue: asyncio.Queue[tuple[str, Any, asyncio.Future[np.ndarray]]] = asyncio.Queue()
        self._decoders = ThreadPoolExecutor(2, thread_name_prefix="decode")
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def embed(self, inputs: list[str], characters: int) -> np.ndarray:
        """(N, d) float32 embeddings of unit length.

        Raises:
            RefusedError: an input cannot be read (its number is named), or too many are waiting.
        """
        if self.admitted + len(inputs) > self.waiting:
            raise RefusedError(503, "busy", f"{self.admitted} inputs are waiting already; try again in a moment")
        self.admitted += len(inputs)
        try:
            tasks = [asyncio.ensure_future(self._one(number, given, characters)) for number, given in enumerate(inputs)]
            try:
                return np.stack(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()
        finally:
            self.admitted -= len(inputs)

    async def _one(self, number: int, given: str, characters: int) -> np.ndarray:
        loop = asyncio.get_running_loop()
        modality, array = await loop.run_in_executor(self._decoders, self._read, number, given, characters)
        future: asyncio.Future[np.ndarray] = loop.create_future()
        self._queue.put_nowait((modality, array, future))
        return await future

    def _read(self, number: int, given: str, characters: int) -> tuple[str, Any]:
        """The modality of an input and what its adapter takes."""
        try:
            if match := _DATA_URL.match(given):
                name, data = match[1], base64.b64decode(given[match.end() :], validate=True)
                modality = self.model.modality(name)
                return name, modality.transform(modality.decode(data))
            if given[:5].lower() == "data:":
                raise ValueError("a data URL must be data:MODALITY/FORMAT;base64,…, such as data:image/png;base64,…")
            if not given.strip():
                raise ValueError("the text is empty")
            if len(given) > characters:
                raise ValueError(f"a text of {len(given)} characters; at most {characters} are accepted")
            text = text_modality()
            return text, self.model.modality(text).read(given)
        except (ValueError, OSError, binascii.Error) as error:
            raise RefusedError(400, "bad_input", f"input {number}: {str(error).partition(chr(10))[0]}") from error

    async def run(self) -> None:
        """Embed what is waiting, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            deadline = loop.time() + self.wait
            while len(batch) < self.batch_size and (left := deadline - loop.time()) > 0:
                try:
                    batch.append(await asyncio.wait_for(self._queue.get(), left))
                except TimeoutError:
                    break
            for modality in dict.fromkeys(entry[0] for entry in batch):
                entries = [entry for entry in batch if entry[0] == modality and not entry[2].done()]
                if entries:
                    await self._answer(modality, entries)

    async def _answer(self, modality: str, entries: list[tuple[str, Any, asyncio.Future[np.ndarray]]]) -> None:
        self.sizes(len(entries))
        arrays = [array for _, array, _ in entries]
        try:
            rows = await asyncio.get_running_loop().run_in_executor(self._compute, self._embed, modality, arrays)
        except Exception as error:  # whatever the model raises is the answer to these requests; the service goes on
            for _, _, future in entries:
                if not future.done():
                    future.set_exception(error)
            return
        for row, (_, _, future) in zip(rows, entries, strict=True):
            if not future.done():
                future.set_result(row)

    def _embed(self, modality: str, arrays: list[Any]) -> np.ndarray:
        rows: np.ndarray = self.model.embed_inputs(modality, self.model.modality(modality).collate(arrays)).numpy()
        return rows
