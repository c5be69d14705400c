"""A compiler that generates no code: PyTorch traces the step to one graph, and runs that by its own kernels.

Most of the time that compiling takes is saved. Tests of what a graph holds, and of when another is built, use it (the mark
``traced``), and so do most cases of tests of numbers; with ``SB3_SOFTAC_GENERATE=1`` code is generated for them, too.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch as th

compile_and_generate = th.compile


def trace(function: Callable[..., Any], *, options: dict[str, Any], **how: Any) -> Callable[..., Any]:
    """Instead of ``torch.compile``."""
    return compile_and_generate(function, backend="eager", options={"guard_filter_fn": options["guard_filter_fn"]}, **how)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ.get("SB3_SOFTAC_GENERATE") != "1":
        monkeypatch.setattr(th, "compile", trace)
