"""Faults on demand for tests in Python: `LocalAwsClient(endpoint_url).fail("emr:DescribeCluster", ...)`."""

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
    """What the server does not do: a wrong rule, an unknown cluster or step, one that is over."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class LocalAwsClient:
    """Asks a local_aws for faults; each method that adds a rule returns its id.

    `on` is "emr", "emr:Operation" or "s3". `calls` are numbers from 1 on, counted since the rule was added; without
    any, all calls are meant. Every method raises Refused if the server does, and OSError if it cannot be reached.
    """

    def __init__(self, endpoint_url: str, timeout_seconds: float = 30.0) -> None:
        self._address = urlsplit(endpoint_url).netloc
        self._timeout_seconds = timeout_seconds

    def fail(self, on: str, answer: Answer, calls: Sequence[int] | None = None) -> str:
        """Answer with an error."""
        return self._add({"on": on, "answer": answer}, calls)

    def hang(self, on: str, seconds: float, calls: Sequence[int] | None = None) -> str:
        """Do not answer for so long, then close the connection; the call is not carried out."""
        return self._add({"on": on, "hang_seconds": seconds}, calls)

    def lose_answer(self, on: str, calls: Sequence[int] | None = None) -> str:
        """Carry the call out and close the connection without an answer."""
        return self._add({"on": on, "lose_answer": True}, calls)

    def slow_down(self, share: float, seed: int = 0) -> str:
        """Answer a share of the calls of S3 with 503 SlowDown, the same ones for the same seed."""
        return self._add({"on": "s3", "answer": "SlowDown", "share": share, "seed": seed}, None)

    def latency(self, seconds: float, on: str = "s3", share: float = 1.0, seed: int = 0) -> str:
        """Carry a share of the calls out, and answer so much later."""
        return self._add({"on": on, "latency_seconds": seconds, "share": share, "seed": seed}, None)

    def end_cluster(self, code: EndCode, calls: Sequence[int] | None = None) -> str:
        """End a cluster that starts from now on: at its start, in bootstrapping, or when its first step runs."""
        return self._add({"on": "cluster", "end": code}, calls)

    def lose_instances(self, cluster_id: str) -> None:
        """Take a cluster's instances away, now."""
        self._ask("POST", f"clusters/{cluster_id}/lose-instances")

    def kill_step(self, cluster_id: str, step_id: str, signal: int = 9) -> None:
        """Send a signal to the processes of a running step."""
        self._ask("POST", f"clusters/{cluster_id}/steps/{step_id}/kill", {"signal": signal})

    def faults(self) -> list[dict[str, Any]]:
        """The rules in force, oldest first: id, rule, and how many calls each has seen and struck."""
        listed: list[dict[str, Any]] = self._ask("GET", "faults")["faults"]
        return listed

    def remove(self, fault_id: str) -> None:
        """Take back a rule; calls that it holds go on."""
        self._ask("DELETE", f"faults/{fault_id}")

    def clear(self) -> None:
        """Take back all rules."""
        self._ask("DELETE", "faults")

    def _add(self, rule: dict[str, Any], calls: Sequence[int] | None) -> str:
        added: str = self._ask("POST", "faults", rule if calls is None else {**rule, "calls": list(calls)})["id"]
        return added

    def _ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
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
