"""The one thing that every scorer asks of its input."""

from collections.abc import Sequence

from cna_lens.errors import InvalidInput


def check_rows(prompts: Sequence[str], responses: Sequence[str]) -> None:
    """Checks that there is one prompt for every response.

    Raises:
        InvalidInput: the two differ in length.
    """
    if len(prompts) != len(responses):
        raise InvalidInput(
            f"got {len(prompts)} prompts and {len(responses)} responses: "
            "a scorer needs the prompt of every response, in the same order"
        )
