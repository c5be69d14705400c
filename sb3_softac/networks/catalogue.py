"""The encoders that have a name."""

from sb3_softac.networks.encoders import MLP, Encoder
from sb3_softac.networks.hypersphere import FlashSAC, SimbaV2
from sb3_softac.networks.residual import BRO, SimBa

#: encoders by the names that ``policy_kwargs["encoder"]`` takes
ENCODERS: dict[str, type[Encoder]] = {"mlp": MLP, "simba": SimBa, "simba_v2": SimbaV2, "bro": BRO, "flash": FlashSAC}
