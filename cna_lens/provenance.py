"""Where a result came from: enough to repeat it, and to refuse a silent comparison.

A `Provenance` holds no time, path, user name, token or environment variable: the same experiment
gives the same provenance anywhere, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("cna-lens", "transformer-lens", "torch", "transformers")


def digest(parts: Iterable[str]) -> str:
    """A short SHA-256 of a list of strings; the list's shape counts, so no two lists collide."""
    return hashlib.sha256(json.dumps(list(parts)).encode("utf-8")).hexdigest()[:16]


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result, and Python's."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that was never installed
            versions[package] = "not installed"
    return versions


@dataclass(frozen=True)
class Provenance:
    """What a result depends on. Fields that do not apply stay None.

    `settings` holds the options of the step itself (position, filter, selection, decoding).
    """

    model: str | None = None
    revision: str | None = None
    weights: str | None = None
    loader: str | None = None
    weight_processing: str | None = None
    dtype: str | None = None
    prompt_style: str | None = None
    system_prompt: str | None = None
    answer_prefix: str | None = None
    prepend_bos: bool | None = None
    chat_template: str | None = None
    contrast_set: str | None = None
    contrast_set_hash: str | None = None
    seed: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=package_versions)

    def with_settings(self, **settings: Any) -> Provenance:
        """A copy with more `settings`."""
        return replace(self, settings={**self.settings, **settings})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values, None left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Provenance:
        """The inverse of `to_dict`. Raises TypeError on unknown fields and on other settings."""
        found = cls(**values)
        if not (isinstance(found.settings, dict) and isinstance(found.versions, dict)):
            raise TypeError("settings and versions must be dictionaries")
        return found
