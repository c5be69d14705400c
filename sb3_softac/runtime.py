"""What a model needs while it runs: neither saved nor copied, and created where it is needed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import Schedule

from sb3_softac.collect import CapturedActor, DirectActor, Overlapped, PooledStatistics, StoredUpTo
from sb3_softac.engine import AsyncMetrics, Engine, Group
from sb3_softac.replay import Batch, BlockSampler
from sb3_softac.update import Update


@dataclass(frozen=True)
class SetUp:
    """How a model is put together."""

    #: seed the random generators; not at `load`, where training would repeat the random numbers of its beginning
    seeds: bool = True
    #: weights are put in place after the set-up, by `load` or `from_sb3`
    weights_follow: bool = False
    #: policy arguments that were passed to `load`, and must be those of the file
    expected_policy_kwargs: dict[str, Any] | None = None


@dataclass
class Resumption:
    """A training that goes on."""

    checkpoint: Any
    #: the number of steps that was asked for
    total_timesteps: int
    #: what the caller of ``resume`` has for names in the files
    custom_objects: dict[str, Any] = field(default_factory=dict)
    #: of new random generators, or None for those that it had
    seed: int | None = None


@dataclass
class Runtime:
    """Engine, update and everything else that belongs to a process and not to a model."""

    set_up: SetUp = field(default_factory=SetUp)
    engine: Engine = field(default_factory=Engine)
    #: the gradient step of the present networks, temperature and options
    update: Update | None = None
    #: the networks that have been looked at
    networks: tuple[Any, ...] = ()
    #: values of all options when they were last looked at
    options: tuple[Any, ...] = ()
    #: learning rates with a schedule of their own: what the user passed for each, and the schedules by owner
    schedules: tuple[tuple[Any, ...], dict[str, Schedule]] | None = None
    block_sampler: BlockSampler | None = None
    #: what the newest ``train()`` has to report, while it is still on the device: sums by names, and numbers of steps
    unread_metrics: list[tuple[tuple[str, ...], AsyncMetrics, int]] = field(default_factory=list)
    #: what samples actions instead of ``predict``, while ``learn`` runs
    actor: DirectActor | CapturedActor | None = None
    #: the ``noise_repeat`` for which it was made
    noise_repeat: int | None = None
    #: whether a rollout has ended, and SB3 trains next
    between: bool = False
    #: with ``overlap``: the environments, steps of the present rollout, gradient steps that were owed where it began, and
    #: batches that were drawn ahead of a step
    overlapped: Overlapped | None = None
    n_collected: int = 0
    n_owed: int = 0
    drawn: list[Batch] | None = None
    #: where the replay buffer ends
    stored: StoredUpTo = field(default_factory=lambda: StoredUpTo(None, None))
    #: whether logs were written since ``learn`` was called
    dumped: bool = False
    #: what the user has been warned of: attributes of which ``save`` says that loading would refuse them, and metrics
    warned: set[str] = field(default_factory=set)
    #: the callback of the ``learn`` that runs
    callback: BaseCallback | None = None
    #: what is called where a rollout begins
    between_rollouts: list[Callable[[], None]] = field(default_factory=list)
    #: which training its checkpoints belong to, and what of the replay buffer is on the disk
    run: dict[str, Any] | None = None
    buffer_log: Any = None
    newest_checkpoint: Any = None
    #: what is still to be put in place after ``resume``
    resumption: Resumption | None = None
    #: the ranks that train together, None for this process alone; their common statistics; and episodes of which the others do
    #: not know yet
    group: Group | None = None
    statistics: PooledStatistics | None = None
    new_episodes: list[Any] = field(default_factory=list)

    def __reduce__(self) -> tuple[type["Runtime"], tuple[()]]:
        """Copies and pickles get a new one."""
        return Runtime, ()
