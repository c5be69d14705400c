"""Private names of PyTorch: without any of them a training gives the same weights, and one warning says what is slower.

Source of truth: the same training with all names. That other modules use none is read from the code.
"""

import ast
import re
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

import sb3_softac
from sb3_softac import SoftAC
from sb3_softac.engine import matmul, precision, torch_internals
from tests.helpers import assert_close, build, restart_generators

PACKAGE = Path(sb3_softac.__file__).parent
NAMES = (
    "_foreach_lerp_",
    "_foreach_copy_",
    "nn.modules.module._has_any_global_hook",
    "_C._will_engine_execute_node",
    "_C._are_functorch_transforms_active",
    "optim.adam.adam",
    "ops.mkldnn._linear_pointwise",
)
#: looked up where matmuls are to be computed in bfloat16
OF_BFLOAT16 = ("cpu._is_avx512_bf16_supported", "cpu._is_amx_tile_supported", "utils._python_dispatch.TorchDispatchMode")


class Normalised(BaseFeaturesExtractor):
    """With statistics that target networks copy."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        normalised: th.Tensor = self.norm(observations)
        return normalised


@pytest.fixture(autouse=True)
def look_up_again() -> Iterator[None]:
    torch_internals.forget()
    yield
    torch_internals.forget()


def remove(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PyTorch have no such name, for whoever looks it up from now on."""
    parent, _, last = name.rpartition(".")
    if name == "optim.adam.adam":  # PyTorch's own optimizer goes on using it
        monkeypatch.setitem(sys.modules, "torch.optim.adam", types.ModuleType("torch.optim.adam"))
    elif parent.startswith("ops."):  # a namespace would find its operators again
        monkeypatch.setattr(th.ops, parent.removeprefix("ops."), types.SimpleNamespace())
    else:
        target: Any = th
        for part in filter(None, parent.split(".")):
            target = getattr(target, part)
        monkeypatch.delattr(target, last, raising=False)


def train() -> tuple[SoftAC, list[str]]:
    """Layers large enough for oneDNN, and batch normalisation: all names are looked up. Also the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        matmul.ONEDNN_IS_FASTER = torch_internals.onednn_linear() is not None
        model = build(False, policy_kwargs={"net_arch": [128, 128], "features_extractor_class": Normalised})
        restart_generators()
        model.train(4, batch_size=128)
    return model, [str(warning.message) for warning in caught]


@pytest.mark.skipif(not th.backends.mkldnn.is_available(), reason="needs oneDNN")  # type: ignore[no-untyped-call]
@pytest.mark.parametrize("name", NAMES)
def test_without_a_name_training_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "ONEDNN_IS_FASTER", True)
    monkeypatch.setattr(matmul, "LARGE_NETWORK", matmul.LARGE)
    reference, messages = train()
    assert messages == []
    torch_internals.forget()
    with monkeypatch.context() as patch:
        remove(name, patch)
        model, messages = train()
    assert len(messages) == 1
    assert re.fullmatch(rf"PyTorch .* has no torch\.{re.escape(name)}: .*\.", messages[0])
    assert_close(reference, model)


def test_every_name_that_is_looked_up_is_in_this_list() -> None:
    tree = ast.parse((PACKAGE / "engine" / "torch_internals.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    looked_up = [
        str(call.args[0].value)
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "_private" and isinstance(call.args[0], ast.Constant)
    ]
    assert sorted(looked_up) == sorted([*NAMES, *OF_BFLOAT16])


@pytest.mark.parametrize("name", OF_BFLOAT16)
def test_without_the_names_for_bfloat16_it_is_refused_or_as_before(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the two kinds of instructions is enough."""
    monkeypatch.setattr(th.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(th.cpu, "_is_amx_tile_supported", lambda: True)
    assert precision.missing_for("bfloat16", th.device("cpu")) is None
    torch_internals.forget()
    remove(name, monkeypatch)
    with pytest.warns(UserWarning, match=rf"has no torch\.{re.escape(name)}: no matmuls in bfloat16"):
        missing = precision.missing_for("bfloat16", th.device("cpu"))
    assert missing == ("a PyTorch with TorchDispatchMode" if name.startswith("utils") else None)


@pytest.mark.parametrize("missing", ["trace_autograd_ops", "skip_all_guards_unsafe"])
def test_without_the_compilers_options_nothing_is_compiled(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "skip_all_guards_unsafe":
        monkeypatch.delattr(th.compiler, missing, raising=False)
    else:
        monkeypatch.setattr(torch_internals, "_dynamo_config", lambda: None)
    assert not torch_internals.can_trace_gradients()
    with pytest.raises(ValueError, match=r"`compile` is True, but it must be 'auto' or False here: it needs PyTorch 2\.11"):
        build(True)


def test_hooks_that_are_kept_elsewhere_count_as_hooks() -> None:
    """A shortcut must not pass by what it cannot see."""
    module = nn.Linear(2, 2)
    assert not torch_internals.has_hooks([module])
    del module._forward_hooks
    assert torch_internals.has_hooks([module])
    assert torch_internals.hook_dicts(module) is None


#: how a private name looks in the code; parameters, buffers and children of a module are read directly
PRIVATE = re.compile(
    r"\b(?:th|torch|nn|F|optim)(?:\.\w+)*\._(?!_)\w+"  # an attribute below torch
    r"|\btorch(?:\.\w+)*\._\w+"  # a module below torch
    r"|\b_(?:foreach|dynamo|inductor|optimizer_step)\w*"
    r"|\b_(?:forward|backward)(?:_pre)?_hooks\b|\b_has_any_global_hook\b|\boptim\.adam\b"
)


#: what pickles ask for, and never get
NAMES_IN_FILES = {
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.storage._load_from_bytes",
}


def without_docstrings_and_comments(path: Path) -> str:
    return ast.unparse(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_are_used_in_one_module_only(path: Path) -> None:
    found = set(PRIVATE.findall(without_docstrings_and_comments(path)))
    assert bool(found - NAMES_IN_FILES) == (path.name == "torch_internals.py"), found
