"""The command line of reports: folders in, one HTML page out."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sb3_softac.files.atomic import writing
from sb3_softac.report.data import ReportError, Run
from sb3_softac.report.discovery import find_folders, find_runs, group_runs
from sb3_softac.report.page import make_page
from sb3_softac.report.plots import require_matplotlib

DESCRIPTION = "Write one HTML page that shows and explains runs of SB3 or RL Zoo. docs/diagnosis.md lists the rules."


def _check_output(output: Path) -> None:
    """:raises ReportError: the page could not be written there"""
    try:
        folder = output.resolve().parent
        if output.is_dir():
            raise ReportError(f"`--output` is {str(output)!r}, which is a folder: name a file in it.")
        if not folder.is_dir():
            raise ReportError(f"`--output` is {str(output)!r}, but there is no folder {str(folder)!r}.")
        if not os.access(folder, os.W_OK) or (output.exists() and not os.access(output, os.W_OK)):
            raise ReportError(f"`--output` is {str(output)!r}, which cannot be written: permission denied.")
    except OSError as error:  # of a folder above that may not be entered, or of the name
        raise ReportError(f"`--output` is {str(output)!r}, which cannot be written: {error.strerror or error}.") from error


def write_report(folders: Sequence[str | Path], output: str | Path = "report.html") -> list[Run]:
    """Write the page.

    :param folders: of one run, or of several
    :param output: the page; an older one stays as it was if anything fails
    :return: the runs that it shows
    :raises ReportError: no logs, nothing to read or draw them with, or an output that cannot be written
    """
    require_matplotlib()
    output, roots, notes, problems = Path(output), [], [], []
    _check_output(output)
    for folder in dict.fromkeys(map(Path, folders)):
        try:
            find_folders(folder)
            roots.append(folder)
        except ReportError as error:
            problems.append(str(error))
    if not roots:
        raise ReportError(" ".join(problems))
    notes += problems
    runs = find_runs(roots)
    page = make_page(group_runs(runs), notes)
    try:
        with writing(output) as file:
            file.write(page.encode(errors="replace"))  # names of folders may be no UTF-8
    except OSError as error:
        raise ReportError(f"`--output` is {str(output)!r}, which cannot be written: {error.strerror or error}.") from error
    return runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 2 stands for an error that its one sentence explains."""
    parser = argparse.ArgumentParser(prog="python -m sb3_softac.report", description=DESCRIPTION)
    parser.add_argument("logdirs", nargs="+", metavar="LOGDIR", help="folder of a run, or one that holds several")
    parser.add_argument("--output", default="report.html", help="the page (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        runs = write_report(options.logdirs, options.output)
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    names = sorted({run.algorithm or "unknown algorithm" for run in runs})
    text = f"{options.output}: {len(runs)} run{'' if len(runs) == 1 else 's'} of {', '.join(names)}"
    print(text.encode(errors="replace").decode())
    return 0
