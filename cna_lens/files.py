"""Files appear whole or not at all: everything is written beside its target, then renamed."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from cna_lens.errors import DamagedFile, InvalidInput, OutputError

_umask = os.umask(0)  # the only way to read it is to set it
os.umask(_umask)
_PERMISSIONS = 0o666 & ~_umask  # mkstemp makes private files; results are shared


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write `data` to `path` in one step; parent folders are made.

    Raises:
        OutputError: the place cannot be written (no permission, a file in the way, disk full).
    """
    target = Path(path)
    partial: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(partial).chmod(_PERMISSIONS)
        Path(partial).replace(target)
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}. "
            "Choose a folder that exists and is writable."
        ) from error
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)
    return target


def check_writable(path: str | Path) -> None:
    """Raise OutputError now where `path` cannot be written later, before hours of work."""
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"cannot write {target}: it is a folder. Name a file.")
    probe = write_bytes(target.with_name(f".{target.name}.probe"), b"")
    probe.unlink()


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 `text` to `path` in one step (see `write_bytes`)."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON in one step (see `write_bytes`)."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_text(path: str | Path) -> str:
    """The UTF-8 text of `path`, line ends as they are, without a byte order mark.

    Raises:
        InvalidInput: there is no such file, or it cannot be read.
        DamagedFile: it is not UTF-8.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InvalidInput(
            f"cannot read {path}: {error.strerror or error}. Check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from error


def read_json(path: str | Path) -> Any:
    """The value in the JSON file `path`.

    Raises:
        InvalidInput: there is no such file, or it cannot be read.
        DamagedFile: it is not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DamagedFile(f"{path} is not valid JSON: {error}. Write or fetch it again.") from error
