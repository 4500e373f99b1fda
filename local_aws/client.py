"""Inject faults from tests in Python: `LocalAwsClient(endpoint_url).fail("emr:DescribeCluster", ...)`."""

import json
from collections.abc import Sequence
from http.client import HTTPConnection
from typing import Any, Literal
from urllib.parse import urlsplit

Answer = Literal[
    "ThrottlingException",
    "AccessDeniedException",
    "InternalServerException",
    "ValidationException",
    "SlowDown",
    "AccessDenied",
    "InternalError",
]
EndCode = Literal["VALIDATION_ERROR", "BOOTSTRAP_FAILURE", "INSTANCE_FAILURE"]


class Refused(Exception):
    """The server rejected a request: the rule is not valid, or the cluster or step is unknown or has ended."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class LocalAwsClient:
    """Injects faults into a local_aws server. Each method that adds a rule returns the rule's id.

    `on` is "emr", "emr:Operation" or "s3". `calls` are the numbers of the calls that the rule applies to, counted from
    1 when the rule is added; by default it applies to all calls.

    Raises:
        Refused: the server rejected the request.
        OSError: the server cannot be reached.
    """

    def __init__(self, endpoint_url: str, timeout_seconds: float = 30.0) -> None:
        self._address = urlsplit(endpoint_url).netloc
        self._timeout_seconds = timeout_seconds

    def fail(self, on: str, answer: Answer, calls: Sequence[int] | None = None) -> str:
        """Respond with an error."""
        return self._add({"on": on, "answer": answer}, calls)

    def hang(self, on: str, seconds: float, calls: Sequence[int] | None = None) -> str:
        """Wait, then close the connection without a response; the call is not carried out."""
        return self._add({"on": on, "hang_seconds": seconds}, calls)

    def lose_answer(self, on: str, calls: Sequence[int] | None = None) -> str:
        """Carry out the call, then close the connection without a response."""
        return self._add({"on": on, "lose_answer": True}, calls)

    def slow_down(self, share: float, seed: int = 0) -> str:
        """Respond to a share of the S3 calls with 503 SlowDown; the same seed selects the same calls."""
        return self._add({"on": "s3", "answer": "SlowDown", "share": share, "seed": seed}, None)

    def latency(self, seconds: float, on: str = "s3", share: float = 1.0, seed: int = 0) -> str:
        """Carry out a share of the calls, but delay their responses."""
        return self._add({"on": on, "latency_seconds": seconds, "share": share, "seed": seed}, None)

    def end_cluster(self, code: EndCode, calls: Sequence[int] | None = None) -> str:
        """End clusters created from now on: while starting, while bootstrapping, or when the first step starts."""
        return self._add({"on": "cluster", "end": code}, calls)

    def limit_spot(self, instances: int, calls: Sequence[int] | None = None) -> str:
        """Give each fleet of clusters created from now on at most this many Spot instances."""
        return self._add({"on": "cluster", "spot_instances": instances}, calls)

    def interrupt_spot(self, cluster_id: str, replace_seconds: float = 0) -> tuple[list[str], list[int]]:
        """Interrupt the Spot instances of a cluster now, and kill their executors.

        The instances that replace them are PROVISIONING for `replace_seconds`. Return the ids of the interrupted
        instances, and the pids of the killed executors.
        """
        path = f"clusters/{cluster_id}/interrupt-spot"
        answer = self._request("POST", path, {"replace_seconds": replace_seconds})
        return answer["instances"], answer["executors"]

    def lose_instances(self, cluster_id: str) -> None:
        """Terminate all instances of a cluster now: the cluster ends."""
        self._request("POST", f"clusters/{cluster_id}/lose-instances")

    def kill_step(self, cluster_id: str, step_id: str, signal: int = 9) -> None:
        """Send a signal to all processes of a running step."""
        self._request("POST", f"clusters/{cluster_id}/steps/{step_id}/kill", {"signal": signal})

    def faults(self) -> list[dict[str, Any]]:
        """Return the active rules, oldest first, each with its id and its counts of matched and affected calls."""
        faults: list[dict[str, Any]] = self._request("GET", "faults")["faults"]
        return faults

    def remove(self, fault_id: str) -> None:
        """Remove a rule; calls that it delays continue at once."""
        self._request("DELETE", f"faults/{fault_id}")

    def clear(self) -> None:
        """Remove all rules."""
        self._request("DELETE", "faults")

    def _add(self, rule: dict[str, Any], calls: Sequence[int] | None) -> str:
        body = rule if calls is None else {**rule, "calls": list(calls)}
        fault_id: str = self._request("POST", "faults", body)["id"]
        return fault_id

    def _request(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        connection = HTTPConnection(self._address, timeout=self._timeout_seconds)
        try:
            connection.request(method, f"/_local_aws/{path}", None if body is None else json.dumps(body))
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise Refused(response.status, answer["message"])
        return answer
