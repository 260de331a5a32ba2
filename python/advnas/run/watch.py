"""What happens around the steps of a training: progress, Ctrl-C, checkpoints."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any

from advnas.report.console import Progress
from advnas.run.folder import RunFolder
from advnas.training import Training


class Interrupted(Exception):
    """Someone asked to stop. The state is saved; the message says how to go on."""


class Watch:
    """Watches over a training: ``with Watch(...) as watch:`` around its loop.

    In the block SIGINT and SIGTERM end the training after the step that is running; a second SIGINT ends it at once.

    Args:
        state: the training.
        progress: where to show how far it is.
        folder: that keeps its checkpoint; None: there is none.
        settings: those on which the checkpoint depends.
        go_on: the command that goes on from the checkpoint.
        record: called after each epoch; returns the row to show. Default: the last row of the history.
    """

    def __init__(
        self,
        state: Training,
        progress: Progress,
        folder: RunFolder | None = None,
        settings: Mapping[str, Any] | None = None,
        go_on: str = "the same command",
        record: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        self.state = state
        self.progress = progress
        self.folder = folder
        self.settings = settings or {}
        self.go_on = go_on
        self.record = record or (lambda: self.state.history[-1])
        self.stop = False

    def after_step(self) -> None:
        self.progress.advance(self.state.work, self.state.total_work)
        if self.stop:
            self.save()
            raise Interrupted(
                f"stopped after step {self.state.step} of {self.state.unit} {self.state.epoch + 1}; "
                f"go on with: {self.go_on}"
            )

    def after_epoch(self) -> None:
        self.save()
        self.progress.line(self.record(), self.state.unit)

    def save(self) -> None:
        if self.folder is not None:
            self.folder.save(self.state, self.settings)

    def __enter__(self) -> Watch:
        if self.folder is not None and (
            self.state.work == 0 or not self.folder.checkpoint(self.state.kind).exists()  # of a warm start
        ):
            self.save()
        main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
        signals = (signal.SIGINT, signal.SIGTERM) if main else ()
        self._handlers = {number: signal.signal(number, self._ask_to_stop) for number in signals}
        self.progress.start(self.state.work, self.state.total_work)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if isinstance(error, FloatingPointError):
            where = f"{self.state.unit} {self.state.epoch + 1}, step {self.state.step + 1}"
            last = f" The last good checkpoint is {self.folder.checkpoint(self.state.kind)}." if self.folder else ""
            raise FloatingPointError(f"{where}: {error}.{last} Start again with a smaller learning rate") from error
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, f"{error.strerror}; make room, then go on with: {self.go_on}") from error
        if error is None and self.stop:  # asked after the last step
            raise Interrupted(f"stopped after {self.state.unit} {self.state.epoch}; go on with: {self.go_on}")

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
