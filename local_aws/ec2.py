"""Give EC2's default VPC and its subnets the same ids in each server with the same data folder.

moto creates them when EC2 is first used in a region, with random ids. After a restart, changes of them, such as their
tags, could not be restored.
"""

import zlib
from typing import Any

from moto.ec2.models import EC2Backend
from moto.moto_api._internal import mock_random

_create = EC2Backend.__init__


def keep_default_network_ids() -> None:
    """Make the ids depend on the region only."""
    EC2Backend.__init__ = _create_with_ids_of_region


def _create_with_ids_of_region(backend: EC2Backend, region_name: str, account_id: str, *more: Any) -> None:
    state = mock_random.getstate()
    mock_random.seed(zlib.crc32(region_name.encode()))
    try:
        _create(backend, region_name, account_id, *more)
    finally:
        mock_random.setstate(state)
