"""biprop: multi-prize lottery tickets, found by pruning and binarising a random network."""

from networks.biprop import models, resnets, tickets
from networks.biprop.layers import SubnetConv2d, SubnetLinear
from networks.biprop.release import from_release
from networks.biprop.surgery import apply, set_keep_fraction, subnet_layers
from networks.biprop.tickets import fold, load_ticket, plain_state_dict, save_ticket

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
