"""What hook scripts see of an instance: the variables of Ganeti's instance hooks, without the prefix."""

from __future__ import annotations

from collections.abc import Mapping

from ..model import Instance

_MIB = 1 << 20


def instance_environment(instance: Instance, *, running: bool, sizes: Mapping[int, int]) -> dict[str, str]:
    """Variables for `instance`, whose disks are `sizes` bytes large by index; they come out in MiB, rounded up."""
    variables = {
        "INSTANCE_NAME": instance.name,
        "INSTANCE_PRIMARY": instance.node,
        "INSTANCE_SECONDARIES": " ".join(instance.secondaries),
        "INSTANCE_OS_TYPE": instance.os,
        "INSTANCE_STATUS": "up" if running else "down",
        "INSTANCE_ADMIN_STATE": instance.state,
        "INSTANCE_RUNTIME": instance.runtime,
        "INSTANCE_MEMORY": str(instance.memory_mib),
        "INSTANCE_VCPUS": str(instance.vcpus),
        "INSTANCE_TAGS": " ".join(instance.tags),
        "INSTANCE_NIC_COUNT": str(len(instance.nics)),
        "INSTANCE_DISK_COUNT": str(len(instance.disks)),
    }
    for index, nic in enumerate(instance.nics):
        prefix = f"INSTANCE_NIC{index}"
        variables |= {
            f"{prefix}_MAC": nic.mac,
            f"{prefix}_IP": nic.ip,
            f"{prefix}_MODE": nic.mode,
            f"{prefix}_LINK": nic.link,
            f"{prefix}_NETWORK": nic.network,
            f"{prefix}_NAME": nic.name,
        }
    for disk in instance.disks:
        prefix = f"INSTANCE_DISK{disk.index}"
        variables |= {
            f"{prefix}_SIZE": str(-(-sizes[disk.index] // _MIB)),
            f"{prefix}_NAME": disk.name,
            f"{prefix}_UUID": disk.uuid,
            f"{prefix}_STORAGE": disk.storage,
        }
    return variables
