"""Batches for gradient steps, from SB3's replay buffers."""

from sb3_softac.replay.batches import Batch, BlockSampler, sample

__all__ = ["Batch", "BlockSampler", "sample"]
