"""How anyone adds a format, an analysis, a merge method, a swap strategy, an exporter or a command."""
