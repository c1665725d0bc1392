"""Every figure of a run as a matplotlib figure, for notebooks and for files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from drpruning.files import write_bytes
from drpruning.records import Kept
from drpruning.report import diagrams
from drpruning.report.diagrams import DotPlot
from drpruning.report.excess import excess_of
from drpruning.report.figures import losses, mixture, training
from drpruning.report.figures.diagrams import draw_cell_map, draw_dot_plot, draw_pareto
from drpruning.report.figures.style import ALONE, Panel, drawing, to_bytes, with_legend
from drpruning.report.loss_tables import compare_strategies, summary_table
from drpruning.report.pareto import pareto_of_runs
from drpruning.report.read.run import Run, last

DPI = 200  # of PNG files


class Plots:
    """The figures of a run; each returns None where the run has no data for it.

    Example:
        ``dp.Plots(dp.Run.open("runs/quickstart")).losses()`` shows a figure in a notebook; ``.savefig(...)`` stores it.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def losses(self) -> Figure | None:
        """Draw a panel per domain: held-out loss, reference loss, prediction with its band, base."""
        return self._figure("losses")

    def excess(self) -> Figure | None:
        """Draw the excess over the reference loss of all domains."""
        return self._figure("excess")

    def weights(self) -> Figure | None:
        """Draw the sampled weights, stacked."""
        return self._figure("weights")

    def reference_ratio(self) -> Figure | None:
        """Draw the ratio at the centre of the ball, stacked."""
        return self._figure("reference-ratio")

    def divergence(self) -> Figure | None:
        """Draw the divergence of the weights from the reference ratio, and rho."""
        return self._figure("divergence")

    def sparsity(self) -> Figure | None:
        """Draw the expected and the scheduled sparsity per mask kind."""
        return self._figure("sparsity")

    def training_loss(self) -> Figure | None:
        """Draw the training loss over all stages."""
        return self._figure("training-loss")

    def throughput(self) -> Figure | None:
        """Draw the tokens per second over all stages."""
        return self._figure("throughput")

    def recovery(self) -> Figure | None:
        """Draw the loss of the base, right after pruning and after recovery, per domain."""
        return self._figure("recovery")

    def names(self) -> list[str]:
        """Return the names of all figures that the run has data for, for :meth:`figure`."""
        with drawing():
            return [panel.name for panel in self.panels()]

    def figure(self, name: str) -> Figure | None:
        """Draw the figure of that name, one of :meth:`names`."""
        return self._figure(name)

    def panels(self) -> list[Panel]:
        """Draw all figures with data; call it within :func:`~drpruning.report.figures.style.drawing`."""
        made = [make() for make in self._makers().values()]
        record = last(self.run.records, Kept)
        maps = diagrams.mask_maps(record) if record else []
        return [panel for panel in made if panel is not None] + [draw_cell_map(plot) for plot in maps]

    def save(self, folder: Path, formats: tuple[str, ...] = ("png", "svg")) -> list[Path]:
        """Write every figure as files ``folder/NAME.FORMAT``.

        Args:
            folder: Made if it does not exist; files of these names are replaced.
            formats: Any that matplotlib writes.

        Returns:
            The files written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        with drawing():
            for panel in self.panels():
                figure = with_legend(panel)
                for suffix in formats:
                    path = folder / f"{panel.name}.{suffix}"
                    write_bytes(path, to_bytes(figure, suffix, dpi=DPI, **ALONE))
                    written.append(path)
        return written

    def _figure(self, name: str) -> Figure | None:
        with drawing():
            make = self._makers().get(name)
            panels = [make()] if make else self.panels()
            found = next((panel for panel in panels if panel is not None and panel.name == name), None)
            return with_legend(found) if found else None

    def _makers(self) -> dict[str, Callable[[], Panel | None]]:
        run = self.run
        makers: dict[str, Callable[[], Panel | None]] = {
            "recovery": lambda: _dot_plot(diagrams.recovery(summary_table(run.records))),
            "outcome": lambda: _dot_plot(_outcome(run)),
            "pareto": lambda: _pareto(run),
            "losses": lambda: losses.over_tokens(run),
            "held-out": lambda: losses.held_out(run),
            "weights": lambda: mixture.shares(run, "weights", "Weights sampled"),
            "reference-ratio": lambda: mixture.shares(run, "reference_ratio", "Reference ratio"),
            "excess": lambda: losses.excess(run),
            "divergence": lambda: mixture.divergence(run),
            "sparsity": lambda: training.sparsity(run),
            "multipliers-linear": lambda: training.multipliers(run, "linear"),
            "multipliers-quadratic": lambda: training.multipliers(run, "quadratic"),
        }
        for name in training.QUANTITIES:
            makers[name] = lambda name=name: training.over_stages(run, name)  # type: ignore[misc]
        return makers


def _dot_plot(plot: DotPlot | None) -> Panel | None:
    return draw_dot_plot(plot) if plot else None


def _pareto(run: Run) -> Panel | None:
    runs = [run, *run.others]
    static = [each.started is not None and each.started.strategy == "constant" for each in runs]
    compared = compare_strategies({each.label: each.records for each in runs})
    plot = pareto_of_runs(compared, static) if run.others else None
    return draw_pareto(plot) if plot else None


def _outcome(run: Run) -> DotPlot | None:
    own = excess_of(run)
    others = (excess_of(each, run.records) for each in run.others)
    return diagrams.outcome(own, [each for each in others if each is not None]) if own else None
