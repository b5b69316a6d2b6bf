"""ReXNet: channel dimensions on a line, and the search that found them (Han et al., CVPR 2021, arXiv 2007.00992)."""

from networks.rexnet import space
from networks.rexnet.folded import Folded
from networks.rexnet.models import channel_search_net, rexnet, rexnet_lite, rexnet_plain
from networks.rexnet.release import from_release

__all__ = ["Folded", "channel_search_net", "from_release", "rexnet", "rexnet_lite", "rexnet_plain", "space"]
