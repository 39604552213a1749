"""Matched random neurons: the control that a circuit has to beat.

A random circuit has as many neurons in each layer as the real one, drawn from the other neurons.
A circuit that does no better than these is not a circuit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from cna_lens.circuit import Circuit
from cna_lens.errors import InvalidInput


def random_circuits(
    circuit: Circuit,
    n_draws: int,
    *,
    seed: int = 0,
    exclude: Iterable[tuple[int, int]] = (),
) -> list[Circuit]:
    """Circuits of random neurons, matched to `circuit` layer by layer; their delta is not given.

    Args:
        circuit: gives the number of neurons in each layer; its own neurons are never drawn.
        n_draws: how many circuits. Draw i depends on `seed` and i alone.
        exclude: further (layer, neuron) pairs that are never drawn, for instance near-top neurons
            (`contrast.select(0.04)`), which carry part of the behaviour themselves.

    Raises:
        InvalidInput: no draws, or too few neurons are left in a layer.
    """
    if n_draws < 1:
        raise InvalidInput(f"n_draws must be at least 1, not {n_draws}")
    taken: dict[int, set[int]] = {}
    for layer, neuron in (*circuit, *exclude):
        taken.setdefault(layer, set()).add(neuron)
    pools = {}
    for layer, neurons in circuit.by_layer().items():
        pools[layer] = np.setdiff1d(np.arange(circuit.d_mlp), sorted(taken[layer]))
        if len(pools[layer]) < len(neurons):
            raise InvalidInput(
                f"layer {layer} has {len(pools[layer])} neurons left for a draw of {len(neurons)}: "
                "use a smaller circuit or exclude fewer neurons"
            )
    draws = []
    for draw in range(n_draws):
        random = np.random.default_rng([seed, draw])
        pairs = [
            (layer, int(neuron))
            for layer, neurons in circuit.by_layer().items()
            for neuron in np.sort(random.choice(pools[layer], len(neurons), replace=False))
        ]
        origin = replace(circuit.provenance, contrast_set=f"random {draw}", seed=seed)
        draws.append(
            replace(
                circuit,
                layers=tuple(layer for layer, _ in pairs),
                neurons=tuple(neuron for _, neuron in pairs),
                delta=(0.0,) * len(pairs),
                pooled_std=(0.0,) * len(pairs),
                provenance=origin.with_settings(matched_to=circuit.name, draw=draw),
            )
        )
    return draws
