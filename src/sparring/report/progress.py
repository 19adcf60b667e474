"""Progress of training and testing in a terminal; plain lines where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

LINES = 12
"""Lines that a training run prints where no bar can be drawn."""


class _Bar:
    """A rich progress display that is shown within ``with``, on terminals only."""

    def __init__(self, console: Console, label: str, total: int, *columns: ProgressColumn, is_transient: bool) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn(f"[bold]{label}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            *columns,
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
            console=console,
            transient=is_transient,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(label, total=total, values="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()


class TrainingProgress(_Bar):
    """Steps, with reward, accuracy, entropy, negative log-likelihood, seconds per step and the time left."""

    def __init__(self, console: Console, num_steps: int) -> None:
        super().__init__(console, "training", num_steps, TextColumn("{task.fields[values]}"), is_transient=False)
        self.num_steps = num_steps

    def start_at(self, num_done: int) -> None:
        """Steps that an earlier start has done."""
        self.progress.update(self.task, completed=num_done)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the last step's values."""
        shown = {"reward": ".2f", "accuracy": ".2f", "entropy": ".3f", "nll": ".3f"}
        parts = [f"{name} {metrics[name]:{form}}" for name, form in shown.items() if name in metrics]
        values = "  ".join([*parts, f"{metrics['seconds']:.1f} s/step"])
        self.progress.update(self.task, completed=step, values=values)
        is_due = step % max(1, self.num_steps // LINES) == 0 or step == self.num_steps
        if not self.console.is_terminal and is_due:
            self.console.print(f"step {step}/{self.num_steps}  {values}")


class TestingProgress(_Bar):
    """Responses of a test."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __init__(self, console: Console, label: str, total: int) -> None:
        super().__init__(console, label, total, is_transient=True)

    def advance(self, num: int) -> None:
        """``num`` more responses are done."""
        self.progress.advance(self.task, num)

    def show(self, num_done: int, total: int) -> None:
        """``num_done`` of ``total`` responses are done."""
        self.progress.update(self.task, completed=num_done, total=total)
