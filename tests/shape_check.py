"""The run-time checker of every annotation in `cna_lens` during the tests, shapes included.

`conftest` installs it with jaxtyping's import hook. `int` is accepted where `float` is annotated,
as type checkers do (PEP 484).
"""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
