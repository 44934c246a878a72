"""What `--stretch=auto` found: a sentence and a picture."""

from matplotlib.figure import Figure

from gbn_keras.training.report.axes import panels_of
from gbn_keras.training.report.columns import Columns


def found(result: dict) -> str:
    """The length that a training found, in a sentence; empty if its length was fixed.

    Args:
        result: Content of `result.json`.
    """
    if "stretch" not in result:
        return ""
    return (
        f"By its gradients, the training did the work of "
        f"{result['small_batch_updates']:,.0f} updates of the small batch in "
        f"{result['updates']:,}: a stretch of {result['stretch']:.3g}."
    )


def pictures(metrics: Columns) -> dict[str, Figure]:
    """The gain, and the sum of all gains, by update; with its caption.

    Args:
        metrics: Content of `metrics.csv`.
    """
    figure, [panels] = panels_of((10, 4), 1, 2, titles=0, sharey=False, beside=0.7)
    labels = {
        "gain": "gain (small-batch updates per update)",
        "small_batch_updates": "small-batch updates done",
    }
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        axes.plot(metrics["updates"], metrics[name], "o-", markersize=3)
        axes.set(xlabel="updates", ylabel=label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    return {"What each update was worth, and the sum of it.": figure}
