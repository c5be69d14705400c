"""Batches for gradient steps, from SB3's replay buffers."""

from sb3_softac.replay.batches import Batch, BlockSampler, sample
from sb3_softac.replay.tensor_buffer import FIELDS, TensorReplayBuffer

__all__ = ["FIELDS", "Batch", "BlockSampler", "TensorReplayBuffer", "sample"]
