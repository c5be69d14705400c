"""Runs side by side, each in a process of its own, which writes its row itself."""

import multiprocessing
import sys
import traceback
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from harness import rows
from harness.plans import Run
from harness.progress import Display
from harness.runs import forget, perform

#: exit statuses of a process: its run has a row; another process is at it; it failed
DONE, TAKEN, FAILED = 0, 3, 1


def describe(row: rows.Row) -> str:
    return (
        f"{row['variant']:22} {row['env']:15} seed {row['seed']}: return {float(row['return']):9.1f}, "
        f"alpha {row['alpha']}, {row['seconds']} s"
    )


def stop_without_parent() -> None:
    """Who was started by a process that is gone has nobody who would stop it."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise SystemExit("the process that started this one is gone")


def work(run: Run, output: Path, checkpoints: Path | None, connection: Connection, device: str) -> None:
    """Do one run and add its row to ``output``; in a process of its own, whose exit status says how it went.

    :param connection: gets the step now and then, and a text at the end
    """

    def report(steps: int, _: float) -> None:
        stop_without_parent()
        connection.send(steps)

    stop_without_parent()
    with rows.claim(output, run) as is_free:
        if not is_free:
            connection.send(f"{run}: another process is at it")
            sys.exit(TAKEN)
        if not rows.missing([run], rows.read(output, repair=True)):
            connection.send(f"{run}: another process has done it")
            sys.exit(DONE)
        try:
            row = perform(run, checkpoints, report, device)
        except Exception as error:
            lines = [] if isinstance(error, ValueError) else traceback.format_exc().splitlines()[-8:-1]
            connection.send("\n".join([*lines, f"{run} failed: {type(error).__name__}: {error}"]))
            sys.exit(FAILED)
        rows.append(output, row)
        forget(run, checkpoints)
        connection.send(describe(row))


class Pool:
    """Up to ``n_processes`` runs at a time.

    :param output: file of rows
    :param checkpoints: folder for runs that are killed, or None
    :param device: where networks are
    """

    def __init__(self, n_processes: int, output: Path, checkpoints: Path | None, device: str = "cpu") -> None:
        self.n_processes, self.output, self.checkpoints, self.device = n_processes, output, checkpoints, device
        self.running: dict[Connection, tuple[Any, Run, list[str]]] = {}
        self.taken: list[Run] = []
        self.failed: list[Run] = []

    def start(self, run: Run) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(run, self.output, self.checkpoints, theirs, self.device))
        process.start()
        theirs.close()
        self.running[ours] = (process, run, [])

    def read(self, connection: Any, display: Display) -> None:
        """What a run has sent, or that its process has ended."""
        process, run, messages = self.running[connection]
        try:
            sent = connection.recv()
        except (EOFError, OSError):
            del self.running[connection]
            process.join()
            if process.exitcode == TAKEN:
                self.taken.append(run)
            elif process.exitcode != DONE:
                self.failed.append(run)
                messages = messages or [f"{run} failed: its process ended with status {process.exitcode}"]
            display.end(run, "\n".join(messages))
            return
        if isinstance(sent, int):
            display.update(run, sent)
        else:
            messages.append(sent)

    def perform(self, runs: list[Run]) -> None:
        """Do all of them; what fails does not keep the others from it."""
        waiting = list(runs)
        with Display(len(runs), sum(run.steps for run in runs)) as display:
            try:
                while waiting or self.running:
                    while waiting and len(self.running) < self.n_processes:
                        run = waiting.pop(0)
                        display.begin(run)
                        self.start(run)
                    for connection in wait(list(self.running), timeout=1.0):
                        self.read(connection, display)
                    display.tick()
            finally:
                for process, *_ in self.running.values():
                    process.terminate()
                    process.join()
