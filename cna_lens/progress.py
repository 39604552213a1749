"""Progress bars on stderr, silenced with `progress=False` and absent where nobody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm


@contextmanager
def track(what: str, total: int, show: bool = True) -> Iterator[Callable[[int], object]]:
    """A progress bar over `total` steps; yields the function that advances it.

    The bar is shown only where stderr is a terminal (or a notebook draws it).
    """
    with tqdm(total=total, desc=what, disable=None if show else True, leave=False) as bar:
        yield bar.update
