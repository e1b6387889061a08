"""Whether a plan and the group that it runs in are of one size."""

from precast.plugins.collectives.device.group import DeviceGroup


def check_num_ranks(op: str, num_ranks: int, group: DeviceGroup) -> None:
    """Raise ValueError where they are not: ranks would read what nobody wrote."""
    if group.num_ranks != num_ranks:
        raise ValueError(
            f"the plan's {op} is for {num_ranks} tensor ranks, the group of this process has {group.num_ranks}"
        )
