"""Finished responses, kept line by line: a run that was killed goes on where it stopped.

A journal is a JSONL file. Its first line says what every response depends on (model, format,
decoding); each further line is one response under its key. Lines are appended and synced batch by
batch; a last line that was cut off by a kill is dropped when the file is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cna_lens.errors import DamagedFile, InvalidInput, OutputError
from cna_lens.files import read_text, write_text
from cna_lens.generation import Generation


class Journal:
    """Responses that are already there, and the file that new ones go to.

    Args:
        path: the journal; made where there is none.
        settings: what every response depends on.

    Raises:
        InvalidInput: the journal there is of other settings.
        DamagedFile: it is not a journal.
        OutputError: it cannot be written.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._done: dict[str, Generation] = {}
        head = json.dumps({"settings": settings}, sort_keys=True)
        if self.path.exists():
            self._read(head)
        else:
            write_text(self.path, head + "\n")

    def get(self, key: str) -> Generation | None:
        """The response under `key`, None where it is not there yet."""
        return self._done.get(key)

    def add(self, finished: Mapping[str, Generation]) -> None:
        """Append responses; they are on disk when this returns.

        Raises:
            OutputError: they could not be written.
        """
        lines = [json.dumps({"key": key, **asdict(found)}) for key, found in finished.items()]
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._done.update(finished)

    def _read(self, head: str) -> None:
        text = read_text(self.path)
        whole = text[: text.rfind("\n") + 1]
        first, *lines = whole.splitlines() or [""]
        if not first.startswith('{"settings"'):
            raise DamagedFile(f"{self.path} is not a journal of responses. Choose another folder.")
        if first != head:
            raise InvalidInput(
                f"{self.path} is of a run with other settings (model, prompt format or decoding). "
                "Choose another folder, or delete that one."
            )
        try:
            for line in lines:
                row = json.loads(line)
                key = row.pop("key")
                self._done[key] = Generation(**{**row, "tokens": tuple(row["tokens"])})
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise DamagedFile(
                f"{self.path} is damaged: {error}. Delete it to start anew."
            ) from error
        if whole != text:
            write_text(self.path, whole)
