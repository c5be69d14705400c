"""Gradient steps that are captured without a GPU, and every fast way to run them."""

from typing import Any

import pytest

from tests import graph_standin
from tests.graph_standin import GraphStandIn


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> type[GraphStandIn]:
    """From now on gradient steps on the CPU are captured as they would be on a GPU."""
    graph_standin.install(monkeypatch)
    monkeypatch.setattr(GraphStandIn, "captured", 0)
    return GraphStandIn


@pytest.fixture(params=["captured", pytest.param("compiled", marks=pytest.mark.traced)])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A value of ``compile`` for each fast way."""
    if request.param == "compiled":
        return True
    graph_standin.install(monkeypatch)
    return "auto"
