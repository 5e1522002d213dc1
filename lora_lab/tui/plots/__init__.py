"""Curves and heatmaps in a terminal; textual_plot and numpy are imported here alone, when the first plot is shown."""
