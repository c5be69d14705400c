"""One thread for every test: small networks are faster so, and results do not depend on the machine's cores."""

import gc
from collections.abc import Iterator

import pytest
import torch as th

from tests import traced
from tests.helpers import MISSING
from tests.postgres import database, server

__all__ = ["database", "server"]

th.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not th.cuda.is_available():
        pytest.skip("needs a GPU")
    if item.get_closest_marker("traced") and MISSING is not None:
        pytest.skip(f"compiling needs {MISSING}")


@pytest.fixture(autouse=True)
def traced_if_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("traced"):
        traced.install(monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """What a module leaves open is reported there, and not in whichever test the garbage collector runs."""
    yield
    gc.collect()
    gc.freeze()  # what is still here are imports and caches, which every later collection would go through
