"""Reject requests above the rates that EMR allows by default.

Each operation has a token bucket, and so has the account. A request takes a token from both:
https://docs.aws.amazon.com/emr/latest/ManagementGuide/emr-service-limits-what-are.html
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from local_aws.emr.errors import Throttled


@dataclass(frozen=True)
class Quota:
    """A bucket of `burst` tokens, into which `per_second` tokens flow."""

    burst: float
    per_second: float


# The defaults of Service Quotas for EMR (elasticmapreduce).
ACCOUNT: Final = Quota(25, 5)
QUOTAS: Final[Mapping[str, Quota]] = {
    "AddInstanceFleet": Quota(5, 0.5),
    "AddInstanceGroups": Quota(5, 0.2),
    "AddJobFlowSteps": Quota(10, 0.5),
    "AddTags": Quota(5, 0.5),
    "CancelSteps": Quota(10, 0.5),
    "CreateSecurityConfiguration": Quota(5, 0.5),
    "DeleteSecurityConfiguration": Quota(5, 0.5),
    "DescribeCluster": Quota(10, 1),
    "DescribeJobFlows": Quota(20, 0.2),
    "DescribeSecurityConfiguration": Quota(5, 0.5),
    "DescribeStep": Quota(10, 0.5),
    "ListBootstrapActions": Quota(10, 1),
    "ListClusters": Quota(20, 0.5),
    "ListInstanceFleets": Quota(5, 0.5),
    "ListInstanceGroups": Quota(10, 1),
    "ListInstances": Quota(10, 0.5),
    "ListSecurityConfigurations": Quota(5, 0.5),
    "ListSteps": Quota(10, 0.5),
    "ModifyCluster": Quota(10, 0.5),
    "ModifyInstanceFleet": Quota(5, 0.5),
    "ModifyInstanceGroups": Quota(5, 0.5),
    "PutAutoScalingPolicy": Quota(5, 0.5),
    "RemoveAutoScalingPolicy": Quota(5, 0.5),
    "RemoveTags": Quota(5, 0.5),
    "RunJobFlow": Quota(10, 0.5),
    "SetTerminationProtection": Quota(5, 0.2),
    "SetVisibleToAllUsers": Quota(5, 0.2),
    "TerminateJobFlows": Quota(10, 0.5),
}


class Bucket:
    """The tokens that are left of a quota."""

    def __init__(self, quota: Quota, now: float) -> None:
        self._quota, self._tokens, self._filled = quota, quota.burst, now

    def tokens(self, now: float) -> float:
        """Return the number of tokens at a time in seconds."""
        return min(self._quota.burst, self._tokens + (now - self._filled) * self._quota.per_second)

    def take(self, now: float) -> None:
        """Take a token."""
        self._tokens, self._filled = self.tokens(now) - 1, now


class Throttle:
    """The buckets of one region. Operations without a quota of their own count for the account only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._account = Bucket(ACCOUNT, clock())
        self._buckets = {name: Bucket(quota, clock()) for name, quota in QUOTAS.items()}

    def check(self, operation: str) -> None:
        """Take the tokens of a request.

        Raises:
            Throttled: a bucket is empty. No token was taken.
        """
        with self._lock:
            now = self._clock()
            buckets = [self._account, *([self._buckets[operation]] if operation in self._buckets else [])]
            if any(bucket.tokens(now) < 1 for bucket in buckets):
                raise Throttled
            for bucket in buckets:
                bucket.take(now)
