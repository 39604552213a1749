"""`python -m cna_lens`: the same as the `cna-lens` command."""

from cna_lens.cli import main

main()
