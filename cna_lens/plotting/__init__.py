"""Figures: circuits and tables in, `plotly.graph_objects.Figure` out.

Nothing here loads a model, and plotly's own settings stay as they were: each figure carries its own
template. Every function takes `size`: `screen`, or `one-column` / `two-column` for a paper.

    from cna_lens import plotting

    figure = plotting.layer_concentration({"base": base, "instruct": instruct}, size="one-column")
    plotting.write_figure(figure, "layers.pdf")
"""

from cna_lens.plotting.layers import layer_concentration
from cna_lens.plotting.overlap import overlap_heatmap
from cna_lens.plotting.sweeps import sweep_curves
from cna_lens.plotting.write import write_figure

__all__ = ["layer_concentration", "overlap_heatmap", "sweep_curves", "write_figure"]
