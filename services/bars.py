"""Progress on the terminal: one bar per thing that is being done; plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

LINE_EVERY_S = 10.0


class Bars:
    """Use as a context; call with what is being done, the steps done, the steps there are and, if any, losses."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description:24}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[losses]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._last_line = time.monotonic()

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, name: str, step: int, total: int | None, losses: Mapping[str, float] | None = None) -> None:
        shown = "  ".join(f"{loss} {value:.4f}" for loss, value in (losses or {}).items())
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, losses=shown)
        self._progress.update(self._tasks[name], completed=step, total=total, losses=shown)
        done = total is not None and step >= total
        if not self._console.is_terminal and (done or time.monotonic() - self._last_line > LINE_EVERY_S):
            self._last_line = time.monotonic()
            self._console.print(f"{name}: {step} of {total or 'unknown'}  {shown}".rstrip(), highlight=False)
