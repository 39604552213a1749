"""What fine-tuning kept: the neurons that a base circuit and its instruct circuit share, by layer.

The paper finds the layer structure kept and most neurons replaced: 8 to 29 % of (layer, neuron)
pairs are in both circuits (arXiv 2605.12290, section 5).
"""

from __future__ import annotations

import plotly.graph_objects as go

from cna_lens.circuit import Circuit
from cna_lens.errors import CircuitMismatch
from cna_lens.plotting.style import INK, PALETTE, Size, finish


def overlap_heatmap(
    base: Circuit, instruct: Circuit, *, size: Size = "screen", title: str | None = None
) -> go.Figure:
    """Count, in each layer, the neurons of only one circuit, of both, and of only the other.

    Raises:
        CircuitMismatch: the circuits are of models of different shape.

    Example:
        >>> from cna_lens import Circuit
        >>> one = Circuit(2, 8, layers=(1, 1), neurons=(0, 5), delta=(2., 1.), pooled_std=(1., 1.))
        >>> other = Circuit(2, 8, layers=(1, 0), neurons=(0, 3), delta=(2., 1.),
        ...                 pooled_std=(1., 1.))
        >>> overlap_heatmap(one, other).data[0].y
        ('only base (1)', 'shared (1)', 'only instruct (1)')
    """
    shapes = [(circuit.n_layers, circuit.d_mlp) for circuit in (base, instruct)]
    if shapes[0] != shapes[1]:
        raise CircuitMismatch(
            f"the circuits are of models of different shape: {shapes[0]} and {shapes[1]} "
            "(layers, neurons in a layer). Compare a base model with its own instruct model."
        )
    n_layers = base.n_layers
    sets = {
        "only base": set(base) - set(instruct),
        "shared": set(base) & set(instruct),
        "only instruct": set(instruct) - set(base),
    }
    counts = [
        [sum(layer == i for layer, _ in members) for i in range(n_layers)]
        for members in sets.values()
    ]
    figure = go.Figure(
        go.Heatmap(
            x=list(range(n_layers)),
            y=[f"{name} ({len(members)})" for name, members in sets.items()],
            z=counts,
            text=[[str(count or "") for count in row] for row in counts],
            texttemplate="%{text}",
            # opaque and light, so that the dark counts read on every cell and on any page
            textfont={"color": INK},
            colorscale=[[0, "#e6edf3"], [1, PALETTE[5]]],
            zmin=0,
            zmax=max(1, *(count for row in counts for count in row)),
            xgap=1,
            ygap=1,
            showscale=False,
            hovertemplate="layer %{x}, %{y}: %{z} neurons<extra></extra>",
        )
    )
    figure.update_xaxes(
        title_text="layer", dtick=max(1, -(-n_layers // 12)), tickangle=0, showgrid=False
    )
    figure.update_yaxes(title_text="neurons of", autorange="reversed", showgrid=False)
    return finish(figure, size=size, title=title, height=240)
