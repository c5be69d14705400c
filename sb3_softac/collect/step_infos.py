"""What many environments say of one step: arrays for all, and dicts only where one is asked for."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th

Array = npt.NDArray[Any]


def each(values: Any, change: Callable[[Any], Any]) -> Any:
    """``change`` of an array or tensor, or of each in a dict."""
    return {key: change(part) for key, part in values.items()} if isinstance(values, dict) else change(values)


def rows_at(values: Any, indices: Array) -> Any:
    """A copy of these rows of an array or tensor, or of each in a dict."""
    return each(
        values, lambda part: part[th.from_numpy(indices).to(part.device)] if isinstance(part, th.Tensor) else part[indices]
    )


def is_tensor(values: Any) -> bool:
    """Whether observations are tensors."""
    return isinstance(next(iter(values.values())) if isinstance(values, dict) else values, th.Tensor)


class StepInfos(Sequence[Any]):
    """The infos of one step, as SB3 has them: a dict for each environment, empty where no episode has ended.

    :param dones: whether its episode has ended, of each environment
    :param timeouts: whether it was cut off
    :param final: last observations of the episodes that have ended, stacked in their order; None where the new ones are those
    :param skipped: which environments were only reset; None if none was
    :param raw: infos by name, with masks below ``_name``, as Gymnasium has them
    """

    def __init__(self, dones: Array, timeouts: Array, final: Any, skipped: Array | None, raw: dict[str, Any]) -> None:
        self.ended: Array = np.flatnonzero(dones)
        self.timeouts, self.final, self.skipped = (
            timeouts,
            final,
            np.zeros(len(dones), dtype=bool) if skipped is None else skipped,
        )
        self._raw = raw
        self._dicts: dict[int, dict[str, Any]] = {}
        #: the last observations in them, as they were handed out
        self._given: dict[int, Any] = {}
        #: of the episodes that have ended, in their order: what ``Monitor`` says of each; empty if nobody has counted them
        self.episodes: list[dict[str, float]] = []

    def set_episodes(self, returns: Array, lengths: Array, seconds: float) -> None:
        """Return and length of the episodes that have ended, in their order, and the time since the beginning."""
        now = round(seconds, 6)
        pairs = zip(returns.tolist(), lengths.tolist(), strict=True)
        self.episodes = [{"r": round(total, 6), "l": length, "t": now} for total, length in pairs]

    def __len__(self) -> int:
        return len(self.timeouts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        found = self._dicts.get(index)
        if found is None:
            found = self._dicts[index] = self._make(index)
        return found

    def _make(self, index: int) -> dict[str, Any]:
        info: dict[str, Any] = {"skipped": True} if self.skipped[index] else {}
        place = int(np.searchsorted(self.ended, index))
        if place == len(self.ended) or self.ended[place] != index:
            return info
        info |= _of_one(self._said(), index)
        info["TimeLimit.truncated"] = bool(self.timeouts[index])
        if self.final is not None:
            info["terminal_observation"] = self._given[index] = each(self.final, lambda part: part[place])
        if self.episodes:
            info["episode"] = self.episodes[place]
        return info

    def _said(self) -> dict[str, Any]:
        """What the vector says of those whose episodes have ended."""
        final = self._raw.get("final_info")
        return final if isinstance(final, dict) else self._raw

    def of_ended(self) -> list[dict[str, Any]]:
        """What is logged of those whose episodes have ended: ``episode`` and ``is_success``, in dicts of their own."""
        said = self._said()
        if "is_success" in said or not self.episodes:
            return [self[index] for index in self.ended.tolist()]
        made = self._dicts
        return [
            made.get(index) or {"episode": episode} for index, episode in zip(self.ended.tolist(), self.episodes, strict=True)
        ]

    def settle(self) -> None:
        """Take over what a callback, or a wrapper, has written into the dicts that it asked for."""
        for index, info in self._dicts.items():
            self.timeouts[index] = bool(info.get("TimeLimit.truncated", False))
        if any(self._dicts[index].get("terminal_observation") is not given for index, given in self._given.items()):
            last = [self[index].get("terminal_observation") for index in self.ended.tolist()]
            if all(obs is not None for obs in last):
                self.final = _stacked(last)

    def next_observations(self, new_obs: Any) -> Any:
        """The observations that the transitions end with: the last ones of the episodes that have ended."""
        if self.final is None:
            return new_obs
        if isinstance(new_obs, dict):
            return {key: _with_rows(part, self.ended, self.final[key]) for key, part in new_obs.items()}
        return _with_rows(new_obs, self.ended, self.final)


def _with_rows(values: Any, indices: Array, rows: Any) -> Any:
    if isinstance(values, th.Tensor):
        return values.index_copy(0, th.from_numpy(indices).to(values.device), th.as_tensor(rows).to(values))
    changed = values.copy()
    changed[indices] = rows
    return changed


def _stacked(rows: list[Any]) -> Any:
    if isinstance(rows[0], dict):
        return {key: _stacked([row[key] for row in rows]) for key in rows[0]}
    return th.stack(rows) if isinstance(rows[0], th.Tensor) else np.stack(rows)


def _of_one(raw: dict[str, Any], index: int) -> dict[str, Any]:
    """What the infos of a vector say of one environment."""
    found = {}
    for name, value in raw.items():
        mask = raw.get(f"_{name}")
        if mask is not None and name not in ("final_obs", "final_info") and bool(mask[index]) and not isinstance(value, dict):
            found[name] = value[index]
    return found
