"""Processes that train one model together (its ranks), and what they tell each other through ``torch.distributed``.

Means of gradients and batch statistics are one operation of PyTorch, :func:`mean_over_ranks`, which compiled steps call as
well as eager ones. All else is numbers and objects of the host. Every rank makes the same calls in the same order, in
compiled steps, too, because all ranks compile the same step with the same compiler, or none does.
"""

import atexit
import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
import torch.distributed as dist

if dist.is_available():
    # Its functions have the default group as a default argument. Imported later, by `torch.library` for instance, they would
    # keep a group that is open then for ever: it could not be left, and its threads may abort a process that ends.
    import torch.distributed.nn.functional

#: what torchrun tells each process, besides what each kind of start has
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class GroupError(RuntimeError):
    """The other ranks can no longer be reached."""


class _Traffic:
    """What is true of this process while it runs."""

    #: whether means are those of this rank alone, for a trial run that no other rank takes part in
    silent = False
    #: how many messages were sent
    n_messages = 0


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # also torch.distributed's own
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise GroupError(
            f"Rank {dist.get_rank() if dist.is_initialized() else '?'} no longer reaches the other ranks: one has failed, was "
            f"killed, or did not answer within the time-out ({reason}). All ranks must start again, for instance from an "
            "exact checkpoint."
        ) from error


@th.library.custom_op("sb3_softac::mean_over_ranks", mutates_args=())
def mean_over_ranks(values: th.Tensor) -> th.Tensor:
    """Mean of ``values`` over all ranks; each must call it with the same shape. Its gradient is the mean of gradients.

    So each rank's loss may depend on the batches of all: the mean of the ranks' gradients is then that of the mean loss.
    """
    mean = values.clone(memory_format=th.contiguous_format)
    if not _Traffic.silent:
        _Traffic.n_messages += 1
        with _explained():
            dist.all_reduce(mean)
        mean.div_(dist.get_world_size())
    return mean


@mean_over_ranks.register_fake
def _(values: th.Tensor) -> th.Tensor:
    return th.empty_like(values, memory_format=th.contiguous_format)


def _backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
    mean: th.Tensor = mean_over_ranks(gradient)
    return mean


mean_over_ranks.register_autograd(_backward)


def is_launched(environment: Any) -> bool:
    """Whether ``environment``, such as ``os.environ``, is that of a process that torchrun has started."""
    return all(name in environment for name in LAUNCHED)


def is_open() -> bool:
    """Whether this process is in a group."""
    return dist.is_available() and dist.is_initialized()


def open_group(local_rank: int, timeout: float | None) -> None:
    """Join the group that the environment variables describe: NCCL for tensors on GPUs, gloo for all others.

    Ranks that share a GPU, which NCCL refuses, have gloo for all of their tensors.

    :param local_rank: number of the GPU, where there are any
    :param timeout: seconds that a rank waits for the others; None for PyTorch's 30 minutes (10 with NCCL)
    """
    atexit.register(close_group)
    backend = None
    if th.cuda.is_available():
        n_gpus = th.cuda.device_count()
        th.cuda.set_device(local_rank % n_gpus)
        here = os.environ.get("LOCAL_WORLD_SIZE")  # not every launcher says how many ranks this machine has
        backend = "gloo" if here is not None and int(here) > n_gpus else None
    waits = None if timeout is None else timedelta(seconds=timeout)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        dist.init_process_group(backend, timeout=waits)
        return
    # torchrun keeps its store when it starts processes again on one machine, with the addresses of those that have died.
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_master = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    stores: Any = dist  # torch does not export their names
    store = stores.TCPStore(host, port, size, is_master=is_master, multi_tenant=True)
    dist.init_process_group(
        backend, store=stores.PrefixStore(f"attempt-{attempt}", store), rank=rank, world_size=size, timeout=waits
    )


def close_group() -> None:
    """Leave the group that is open; its connections and threads end, unless somebody else has it."""
    if is_open():
        dist.destroy_process_group()


def own_rank() -> int:
    """Number of this process in its group, 0 if it is in none."""
    return dist.get_rank() if is_open() else 0


class Group:
    """All ranks of ``torch.distributed``'s default group, which must be open."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        # Not the group itself: its connections stay open as long as somebody has it.
        self._world = id(dist.group.WORLD)
        #: whether all ranks know of the failure that ends the present training
        self.told = False
        backends = str(dist.get_backend_config()) if hasattr(dist, "get_backend_config") else str(dist.get_backend())
        has_host = "gloo" in backends or "mpi" in backends
        #: for what is on the host, where the default group is for GPUs alone
        self._host: Any = None if has_host else dist.new_group(backend="gloo")

    def is_present(self) -> bool:
        """Whether the process is still in it."""
        return is_open() and id(dist.group.WORLD) == self._world

    def leave(self) -> None:
        """Close the connections, so that ranks which wait for this one fail instead of waiting on."""
        self._host = None
        close_group()

    # --- inside gradient steps ----------------------------------------------------------------------------------------

    def mean(self, values: th.Tensor) -> th.Tensor:
        """Mean of a tensor over all ranks, with a gradient."""
        result: th.Tensor = mean_over_ranks(values)
        return result

    def average(self, gradients: Sequence[th.Tensor | None]) -> list[th.Tensor | None]:
        """The means of all gradients, by one message, with the strides that they have; None stays None."""
        present = [gradient for gradient in gradients if gradient is not None]
        if not present:
            return list(gradients)
        flat = self.mean(th.cat([gradient.reshape(-1) for gradient in present]))
        parts = iter(zip(present, th.split(flat, [gradient.numel() for gradient in present]), strict=True))
        return [None if gradient is None else _like(*next(parts)) for gradient in gradients]

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Within it means are those of this rank alone: a trial that others need not take part in."""
        _Traffic.silent = True
        try:
            yield
        finally:
            _Traffic.silent = False

    # --- on the host --------------------------------------------------------------------------------------------------

    def gather(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The numbers (n,) of all ranks, (size, n)."""
        own = th.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
        every = [th.empty_like(own) for _ in range(self.size)]
        _Traffic.n_messages += 1
        with _explained():
            dist.all_gather(every, own, group=self._host)
        return np.stack([each.numpy() for each in every])

    def gather_objects(self, value: Any) -> list[Any]:
        """A small object of each rank."""
        every: list[Any] = [None] * self.size
        _Traffic.n_messages += 1
        with _explained():
            dist.all_gather_object(every, value, group=self._host)
        return every

    def all_agree(self, yes: bool) -> bool:
        """Whether every rank says yes."""
        return bool(self.gather(np.array([float(yes)])).min() == 1.0)

    @th.no_grad()
    def broadcast(self, tensors: Sequence[th.Tensor]) -> None:
        """Overwrite tensors with those of rank 0."""
        for tensor in tensors:
            whole = tensor.contiguous()
            _Traffic.n_messages += 1
            with _explained():
                dist.broadcast(whole, src=0, group=self._host if whole.device.type == "cpu" else None)
            if whole is not tensor:
                tensor.copy_(whole)

    def from_first(self, values: th.Tensor) -> th.Tensor:
        """A small tensor as rank 0 has it."""
        whole = values.clone()
        self.broadcast([whole])
        return whole


def _like(gradient: th.Tensor, part: th.Tensor) -> th.Tensor:
    """``part``, (n,), in the shape of ``gradient``, with its strides and type."""
    shaped = part.view(gradient.shape)
    same = shaped.stride() == gradient.stride() and shaped.dtype == gradient.dtype
    return shaped if same else th.empty_like(gradient).copy_(shaped)


def n_messages() -> int:
    """How many messages this process has sent, for tests and measurements."""
    return _Traffic.n_messages
