"""Saving, loading and copying of models, in SB3's format."""

import contextlib
import inspect
import io
import pathlib
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import numpy as np
import torch as th
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.type_aliases import GymEnv, RolloutReturn
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac.arguments import DEFAULT_TARGET_ENTROPY_SCALE, check_count, check_flag
from sb3_softac.collect import CollectingAlgorithm, StoredUpTo, check_compatible_buffer
from sb3_softac.files import resuming
from sb3_softac.files.atomic import named, writing
from sb3_softac.files.buffers import read_buffer, write_buffer
from sb3_softac.files.exported import is_exported
from sb3_softac.files.foresight import warn_of_buffer, warn_of_code
from sb3_softac.files.reading import ModelFile, built_from, check_optimizers
from sb3_softac.replay import TensorReplayBuffer
from sb3_softac.runtime import Runtime, SetUp
from sb3_softac.update import LearnedTemperature, Temperature

SelfSavedAlgorithm = TypeVar("SelfSavedAlgorithm", bound="SavedAlgorithm")
#: constructor arguments that ``load`` has under the same name, or that cannot be replaced
NOT_REPLACEABLE = {"self", "policy", "env", "device", "_init_setup_model"}


def save_model(path: str | pathlib.Path, content: memoryview) -> None:
    """Write a zip file, as SB3 names it. A file that exists is replaced only once the new one is complete.

    :param path: file name; ``.zip`` is added if it has no suffix, missing folders are made
    :param content: of the file
    """
    with writing(named(path, ".zip")) as file:
        file.write(content)


class SavedAlgorithm(CollectingAlgorithm):
    """An algorithm whose state is a policy, a temperature, counters and options; its runtime is not part of it."""

    _runtime: Runtime
    policy: Any
    temperature: Temperature
    _automatic_replay_buffer: bool

    @classmethod
    def _option_names(cls) -> list[str]:
        """The constructor arguments, also of a subclass, that ``load`` can replace."""
        algorithms = [base for base in cls.__mro__ if issubclass(base, SavedAlgorithm) and not inspect.isabstract(base)]
        parameters = [p for base in reversed(algorithms) for p in inspect.signature(base.__init__).parameters.values()]
        names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return [name for name in dict.fromkeys(names) if name not in NOT_REPLACEABLE]

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: everything but what belongs to the running process."""
        self._follow_options()  # what was set since the last look is part of the state
        return {**self.__dict__, "_runtime": Runtime()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._runtime.options = self._option_values()
        if isinstance(self.replay_buffer, HerReplayBuffer) and self.replay_buffer.env is None:
            self.replay_buffer.env = self.env  # it is never copied with the buffer
        if isinstance(self.replay_buffer, TensorReplayBuffer):
            self.replay_buffer.device = self.device  # it comes out of a file as arrays

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "temperature", "_runtime"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        networks = {"actor": "actor", "critic": "critic", "value": "value_net"}
        state_dicts = ["policy", *(f"{networks[name]}.optimizer" for name in self.policy.trained_networks())]
        if isinstance(self.temperature, LearnedTemperature):
            state_dicts += ["temperature", "temperature.optimizer"]
        return state_dicts, []

    def set_parameters(
        self,
        load_path_or_dict: str | dict[str, Any],
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """As in SB3, and with the temperature; what is loaded is brought below ``ent_coef_max``.

        :param load_path_or_dict: file name, or what ``get_parameters`` returns
        :param exact_match: refuse anything but the state of every network, optimizer and the temperature
        :param device: PyTorch device
        :raises ValueError: unknown or missing names
        """
        self._follow_options()
        super().set_parameters(load_path_or_dict, exact_match, device)
        self._runtime.engine.reset()
        if isinstance(self.temperature, LearnedTemperature):
            with th.no_grad():
                self.temperature.project(self.temperature.maximum)

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save the model in SB3's format. A file that exists is replaced only once the new one is complete.

        :param path: file name (``.zip`` is added if it has no suffix; missing folders are made) or a binary stream
        :param exclude: names of attributes to leave out
        :param include: names of attributes to keep although they are left out by default
        :raises OSError: it cannot be written; an older file is as it was
        """
        self._follow_options()  # a file must not hold options that its weights do not have
        stream = io.BytesIO()
        super().save(stream, exclude, include)
        warn_of_code(stream, self._runtime.warned)
        if isinstance(path, str | pathlib.Path):
            save_model(path, stream.getbuffer())
        else:
            open_path(path, "w").write(stream.getbuffer())

    @classmethod
    def load(
        cls: type[SelfSavedAlgorithm],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        trusted: bool = False,
        **kwargs: Any,
    ) -> SelfSavedAlgorithm:
        """Load a model as SB3 does, with four differences.

        The random generators are seeded only if ``seed`` is passed; without an environment no replay buffer is allocated
        (``set_env`` does it later); an argument that the constructor does not know is refused; and no code in the file runs
        unless it is ``trusted``.

        :param path: file name or binary stream
        :param env: environment to continue with
        :param device: PyTorch device
        :param custom_objects: replacements for saved attributes
        :param print_system_info: print the versions with which the model was saved
        :param force_reset: reset the environment before training
        :param trusted: run whatever code the file holds, as SB3 does
        :param kwargs: constructor arguments that replace the saved ones
        :raises ValueError: unknown argument, or one that the saved weights have no place for
        :raises UntrustedFileError: the file asks for code that is not on the list of what files may use
        :raises DamagedFileError: the file is incomplete, or no model can be made of it
        """
        check_flag("trusted", trusted)
        if isinstance(path, str | pathlib.Path) and is_exported(pathlib.Path(path)):
            raise ValueError(f"`path` is {str(path)!r}, an exported policy: sb3_softac.export.ExportedPolicy loads it.")
        replaced, set_up = cls._replaced_attributes(kwargs)
        if "replay_buffer_class" in (custom_objects or {}):
            replaced.setdefault("_automatic_replay_buffer", False)
        source: Any = path
        reading: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if not trusted:
            device = get_device(device)  # a wrong one is no damage of the file
            file = ModelFile(path, custom_objects or {})
            source, custom_objects, reading = file.stream, file.objects(cls), built_from(file.name)
        with reading:
            model = super().load(
                source,
                env=env,
                device=device,
                custom_objects=custom_objects,
                print_system_info=print_system_info,
                force_reset=force_reset,
                _runtime=Runtime(set_up),
                **replaced,
            )
            if not trusted:
                check_optimizers(model)
            return model

    @classmethod
    def resume(
        cls: type[SelfSavedAlgorithm],
        folder: str | pathlib.Path,
        env: GymEnv | str,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        **expected: Any,
    ) -> SelfSavedAlgorithm:
        """Go on with a training from its newest whole checkpoint, bit for bit, as if it had not been interrupted.

        ``learn(callback=...)`` of the result goes on to the number of steps that was asked for. Callbacks get their state
        back there, by their class, and keep the settings that they are made with. No code in the files runs.

        :param folder: where ``ExactCheckpointCallback`` has written
        :param env: environment that is built as it was, wrappers included
        :param device: PyTorch device
        :param custom_objects: what the files ask for by name and may not import, or in the place of an attribute
        :param expected: options of the constructor, which must be those of the run
        :return: the model
        :raises ValueError: no checkpoint, another algorithm, environment or option
        :raises UntrustedFileError: the files ask for code that is not on the list of what files may use
        :raises DamagedFileError: no checkpoint is whole, or a newer version has written it
        """
        return cast(SelfSavedAlgorithm, resuming.resume(cls, folder, env, device, custom_objects, expected))

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        """The first one after ``resume`` says so, if the environments fail in the state that the files have put them in.

        :raises ValueError: they do
        """
        resumption = self._runtime.resumption
        try:
            return super().collect_rollouts(*args, **kwargs)
        except Exception as error:
            if resumption is not None and resuming.is_about_state(error):
                raise ValueError(resuming.describe_failure(resumption.checkpoint, error)) from error
            raise

    def _before_rollout(self) -> None:
        self._finish_resumption()
        for call in tuple(self._runtime.between_rollouts):
            call()

    def _finish_resumption(self) -> None:
        if self._runtime.resumption is not None:
            resuming.finish(self)

    @classmethod
    def _replaced_attributes(cls, kwargs: dict[str, Any]) -> tuple[dict[str, Any], SetUp]:
        """What ``load`` puts in the place of saved attributes, and how the model is set up."""
        unknown = sorted(set(kwargs) - set(cls._option_names()))
        if unknown:
            raise ValueError(f"`{unknown[0]}` cannot be replaced at loading: allowed are {', '.join(cls._option_names())}.")
        replaced = dict(kwargs)
        if replaced.get("target_entropy", "auto") != "auto":
            # A number equal to the saved automatic value is still the user's, and no fraction of anything.
            replaced.setdefault("target_entropy_scale", DEFAULT_TARGET_ENTROPY_SCALE)
            replaced["_automatic_target_entropy"] = None
        if "stats_window_size" in replaced:
            replaced["_stats_window_size"] = check_count("stats_window_size", replaced.pop("stats_window_size"), 1)
        if "replay_buffer_kwargs" in replaced:
            replaced["replay_buffer_kwargs"] = dict(replaced["replay_buffer_kwargs"] or {})
        if "replay_buffer_class" in replaced:
            replaced["_automatic_replay_buffer"] = replaced["replay_buffer_class"] is None
        expected = None
        if "policy_kwargs" in replaced:
            # SB3 would compare them with saved ones that hold more, and lists instead of tuples.
            expected = dict(replaced.pop("policy_kwargs") or {})
        return replaced, SetUp(seeds="seed" in kwargs, weights_follow=True, expected_policy_kwargs=expected)

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """Save the replay buffer as a pickle, as SB3 does; a file that exists is replaced only once the new one is complete.

        Behind the pickle, where SB3 does not look, a file has its checksum.

        :param path: file name (``.pkl`` is added if it has no suffix; missing folders are made) or a binary stream
        :raises OSError: it cannot be written; an older file is as it was
        """
        assert self.replay_buffer is not None, "The replay buffer is not defined"
        warn_of_buffer(self.replay_buffer, self._runtime.warned)
        write_buffer(path, self.replay_buffer)

    def load_replay_buffer(
        self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True, *, trusted: bool = False
    ) -> None:
        """Load a replay buffer as SB3 does; the n-step return then follows this model's ``n_steps`` and ``gamma``.

        :param path: pickle file or binary stream
        :param truncate_last_traj: with ``HerReplayBuffer``, end the last trajectory
        :param trusted: run whatever code the file holds, as SB3 does
        :raises ValueError: the buffer is for other environments, this model needs n-step returns that it cannot compute, or
            it has another discount
        :raises UntrustedFileError: the file asks for code that is not on the list of what files may use
        :raises DamagedFileError: the file is incomplete, or holds no replay buffer
        """
        check_flag("trusted", trusted)
        previous = getattr(self, "replay_buffer", None)  # `del model.replay_buffer` frees memory before loading
        self._runtime.block_sampler, self._runtime.stored = None, StoredUpTo(None, None)  # which would hold it
        try:
            if trusted:
                super().load_replay_buffer(path, truncate_last_traj)
            else:
                buffer = read_buffer(path)
                assert self.env is not None or not isinstance(buffer, HerReplayBuffer), (
                    "`HerReplayBuffer` needs `set_env` first"
                )
                with built_from(str(path)):
                    self._take_replay_buffer(buffer, truncate_last_traj)
            assert self.replay_buffer is not None
            check_compatible_buffer(self.replay_buffer, self.observation_space, self.action_space, self.n_envs)
            self._match_returns(self.replay_buffer)
        except ValueError:
            self.replay_buffer = previous
            raise
        if not truncate_last_traj:  # the user says that the episode goes on
            self._runtime.stored = StoredUpTo(self.replay_buffer, self._last_obs)

    def _take_replay_buffer(self, buffer: Any, truncate_last_traj: bool) -> None:
        """What SB3's ``load_replay_buffer`` does once it has unpickled one."""
        if not hasattr(buffer, "handle_timeout_termination"):  # of SB3 before 2.1
            buffer.handle_timeout_termination = False
            buffer.timeouts = np.zeros_like(buffer.dones)
        if isinstance(buffer, HerReplayBuffer):
            buffer.set_env(cast(VecEnv, self.env))
            if truncate_last_traj:
                buffer.truncate_last_trajectory()
        buffer.device = self.device
        self.replay_buffer = buffer

    @abstractmethod
    def _option_values(self) -> tuple[Any, ...]:
        """The values of all options, in order."""

    @abstractmethod
    def _match_returns(self, replay_buffer: Any) -> None:
        """Make the buffer compute this model's n-step returns, or refuse it."""
