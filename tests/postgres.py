"""A throw-away cluster of PostgreSQL, from whatever package it is installed."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

#: drivers of SQLAlchemy, by the module that they are
DRIVERS = {"psycopg2": "postgresql+psycopg2", "psycopg": "postgresql+psycopg"}


def _binaries() -> Path | None:
    """Where ``initdb`` and ``pg_ctl`` are; Debian has them outside of the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))[-1:]
    found += map(Path, filter(None, [shutil.which("initdb")]))
    return next((path.parent for path in found if (path.parent / "pg_ctl").exists()), None)


def _other_user() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: it runs as somebody else then."""
    if os.getuid() != 0:
        return {}
    import pwd

    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    pytest.skip("root cannot run PostgreSQL, and there is neither a user postgres nor nobody")


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """A server on a socket of its own, without a network; where it listens, as a part of a URL."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("needs PostgreSQL: there is no initdb")
    driver = next((url for module, url in DRIVERS.items() if importlib.util.find_spec(module)), None)
    if driver is None:
        pytest.skip("needs psycopg2 or psycopg")
    user = _other_user()
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # others may enter it, unlike pytest's; and its path is short
    try:
        if user:
            os.chown(folder, user["user"], user["group"])
        commands: dict[str, Any] = {"cwd": folder, "check": True, "capture_output": True, "text": True, **user}
        data = str(folder / "data")
        subprocess.run(
            [str(binaries / "initdb"), "-D", data, "-U", "tester", "--auth=trust", "--no-sync", "--encoding=UTF8"], **commands
        )
        options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=40"
        control = [str(binaries / "pg_ctl"), "-D", data, "-w"]
        # A file takes what the server says: it would keep a pipe open.
        subprocess.run([*control, "-l", str(folder / "log"), "-o", options, "start"], **{**commands, "capture_output": False})
        try:
            yield f"{driver}://tester@/{{}}?host={folder}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **commands)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """One cluster for all tests of a process."""
    with cluster() as url:
        yield url


@pytest.fixture
def database(server: str) -> str:
    """The URL of an empty database."""
    import sqlalchemy

    name = f"test_{uuid.uuid4().hex[:12]}"
    engine = sqlalchemy.create_engine(server.format("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.format(name)
