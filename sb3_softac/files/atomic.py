"""Writing files that are complete, or not there."""

import contextlib
import pathlib
import uuid
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the name of a new file, which replaces ``path`` if nothing fails; missing folders are made.

    :param path: the file to replace; a symbolic link stays one
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # whoever writes to the same path has another one
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        # A folder that cannot be written to raises at the first use of the name, and holds nothing to remove.
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
