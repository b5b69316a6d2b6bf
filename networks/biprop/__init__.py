"""biprop: multi-prize lottery tickets, found by pruning and binarising a random network."""

from networks.biprop import models, resnets, tickets
from networks.biprop.export import fold, plain_state_dict
from networks.biprop.layers import SubnetConv2d, SubnetLinear
from networks.biprop.release import from_release
from networks.biprop.surgery import apply, set_keep_fraction, subnet_layers
from networks.biprop.tickets import load_ticket, save_ticket

__all__ = [
    "SubnetConv2d",
    "SubnetLinear",
    "apply",
    "fold",
    "from_release",
    "load_ticket",
    "models",
    "plain_state_dict",
    "resnets",
    "save_ticket",
    "set_keep_fraction",
    "subnet_layers",
    "tickets",
]
