"""What was drawn, read back from matplotlib's axes."""


def curves(axes):
    """label -> (x, y) of every labelled line."""
    return {line.get_label(): line.get_data() for line in axes.lines if not line.get_label().startswith("_")}
