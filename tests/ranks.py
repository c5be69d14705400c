"""Several processes on this machine that train together, for tests: gloo over the loopback."""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch as th

#: seconds until a rank counts as hung, on a busy machine, too
PATIENCE = 600.0


def free_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return int(each.getsockname()[1])


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return {name: str(value) for name, value in {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items()}


def _run(worker: Callable[..., Any], variables: dict[str, str], args: tuple[Any, ...], answer: Connection) -> None:
    os.environ.update(variables)
    th.set_num_threads(1)
    try:
        # By value: PyTorch would pass the memory of tensors, which ends with the process.
        answer.send_bytes(pickle.dumps((True, worker(*args))))
    except BaseException as error:
        traceback.print_exc()
        answer.send_bytes(pickle.dumps((False, f"{type(error).__name__}: {error}")))


def run_ranks(worker: Callable[..., Any], size: int, *args: Any) -> list[Any]:
    """What ``worker(*args)`` returns in each of ``size`` processes that see the environment of torchrun.

    :return: (True, result), (False, error as text), or (False, None) for a process that has died
    """
    context, port = multiprocessing.get_context("spawn"), free_port()
    processes, answers = [], []
    for rank in range(size):
        receiver, sender = context.Pipe(duplex=False)
        variables = environment(rank, size, port)
        process = context.Process(target=_run, args=(worker, variables, args, sender), daemon=True)
        process.start()
        sender.close()
        processes.append(process)
        answers.append(receiver)
    results = []
    try:
        for rank, receiver in enumerate(answers):
            assert receiver.poll(PATIENCE), f"rank {rank} has given no answer within {PATIENCE:g} s"
            try:
                results.append(pickle.loads(receiver.recv_bytes()))
            except EOFError:
                results.append((False, None))
    finally:
        for process in processes:
            process.join(5.0)
            process.kill()
    return results
