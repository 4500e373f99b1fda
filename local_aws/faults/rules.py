"""Rules that define which calls fail, and how. This module only parses and matches them."""

import itertools
import random
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

EMR_ANSWERS: Final = (
    "ThrottlingException",
    "AccessDeniedException",
    "InternalServerException",
    "ValidationException",
)
S3_ANSWERS: Final = ("SlowDown", "AccessDenied", "InternalError")
# The codes with which a rule can end a cluster, and the cluster state in which each takes effect.
END_STATES: Final = {
    "VALIDATION_ERROR": "STARTING",
    "BOOTSTRAP_FAILURE": "BOOTSTRAPPING",
    "INSTANCE_FAILURE": "RUNNING",
}
_SELECTORS: Final = ("calls", "share", "seed")
_CLUSTER_EFFECTS: Final = ("end", "spot_instances")
_EFFECTS: Final = ("answer", "lose_answer", "hang_seconds", "latency_seconds", *_CLUSTER_EFFECTS)


class InvalidRule(ValueError):
    """A rule that is not valid; the message names the wrong field."""


@dataclass(frozen=True)
class Answer:
    """Respond with this error code; the call is not carried out."""

    code: str


@dataclass(frozen=True)
class LoseAnswer:
    """Carry out the call, then close the connection without a response."""


@dataclass(frozen=True)
class Hang:
    """Wait, then close the connection without a response; the call is not carried out."""

    seconds: float


@dataclass(frozen=True)
class Latency:
    """Carry out the call, but delay the response."""

    seconds: float


@dataclass(frozen=True)
class EndCluster:
    """End a cluster with this code of its StateChangeReason."""

    code: str


@dataclass(frozen=True)
class SpotCapacity:
    """EC2 has only this many Spot instances for each fleet of a cluster."""

    instances: int


Effect = Answer | LoseAnswer | Hang | Latency | EndCluster | SpotCapacity


@dataclass(frozen=True)
class Numbered:
    """Selects the calls with these numbers, counted from 1; every call if there are none."""

    numbers: frozenset[int] = frozenset()

    def selects(self, number: int) -> bool:
        """Return whether the call with this number is selected."""
        return not self.numbers or number in self.numbers


@dataclass(frozen=True)
class Share:
    """Selects a share of the calls; the same seed selects the same calls."""

    share: float
    seed: int = 0

    def selects(self, number: int) -> bool:
        """Return whether the call with this number is selected."""
        return random.Random(f"{self.seed}:{number}").random() < self.share  # noqa: S311


@dataclass(frozen=True)
class Rule:
    """An effect on selected calls. `on` is emr, emr:Operation, s3, or cluster for the start of a cluster."""

    on: str
    selector: Numbered | Share
    effect: Effect

    def applies_to(self, call: str) -> bool:
        """Return whether this rule counts the call.

        >>> [Rule("emr", Numbered(), LoseAnswer()).applies_to(call) for call in ("emr:AddTags", "s3")]
        [True, False]
        """
        return self.on in (call, call.partition(":")[0])


def parse_rule(document: object, operations: Collection[str]) -> Rule:
    """Parse a rule from its JSON object; `operations` are the names of the EMR operations.

    Raises:
        InvalidRule: a field is unknown, missing, or has an invalid value.

    >>> parse_rule({"on": "s3", "share": 0.2, "seed": 1, "answer": "SlowDown"}, [])
    Rule(on='s3', selector=Share(share=0.2, seed=1), effect=Answer(code='SlowDown'))
    """
    if not isinstance(document, Mapping):
        raise InvalidRule(f"a rule must be a JSON object, not {document!r}")
    if unknown := sorted(set(document) - {"on", *_SELECTORS, *_EFFECTS}):
        raise InvalidRule(f"unknown fields {unknown}; use on, {', '.join([*_SELECTORS, *_EFFECTS])}")
    on = document.get("on")
    if not isinstance(on, str) or on not in ("emr", "s3", "cluster", *(f"emr:{name}" for name in operations)):
        names = ", ".join(sorted(operations))
        raise InvalidRule(f"on: {on!r} is invalid; use emr, s3, cluster, or emr:OPERATION with one of {names}")
    return Rule(on, _parse_selector(document), _parse_effect(on, document))


def _parse_selector(document: Mapping[str, Any]) -> Numbered | Share:
    if "calls" in document:
        calls = document["calls"]
        if "share" in document or "seed" in document:
            raise InvalidRule("calls excludes share and seed; use one or the other")
        if not isinstance(calls, list) or not calls or not all(type(call) is int and call >= 1 for call in calls):
            raise InvalidRule(f"calls: {calls!r} is invalid; use a list of numbers from 1")
        return Numbered(frozenset(calls))
    if "share" in document:
        share, seed = document["share"], document.get("seed", 0)
        if not _is_number(share) or not 0 < share <= 1:
            raise InvalidRule(f"share: {share!r} is invalid; use a number above 0 and at most 1")
        if type(seed) is not int:
            raise InvalidRule(f"seed: {seed!r} is invalid; use an integer")
        return Share(share, seed)
    if "seed" in document:
        raise InvalidRule("seed requires share")
    return Numbered()


def _parse_effect(on: str, document: Mapping[str, Any]) -> Effect:
    effects = [name for name in _EFFECTS if name in document]
    if len(effects) != 1:
        raise InvalidRule(f"a rule must have exactly one of {', '.join(_EFFECTS)}, not {effects}")
    name, value = effects[0], document[effects[0]]
    if (name in _CLUSTER_EFFECTS) != (on == "cluster"):
        raise InvalidRule(
            f"{name} is invalid on {on}; use end and spot_instances on cluster, and the other effects on emr and s3"
        )
    if name == "end":
        return EndCluster(_one_of(name, value, END_STATES))
    if name == "spot_instances":
        if type(value) is not int or value < 0:
            raise InvalidRule(f"spot_instances: {value!r} is invalid; use a number of instances, 0 or more")
        return SpotCapacity(value)
    if name == "answer":
        return Answer(_one_of(name, value, S3_ANSWERS if on == "s3" else EMR_ANSWERS))
    if name == "lose_answer":
        if value is not True:
            raise InvalidRule(f"lose_answer: {value!r} is invalid; use true")
        return LoseAnswer()
    if not _is_number(value) or not 0 < value <= threading.TIMEOUT_MAX:
        raise InvalidRule(f"{name}: {value!r} is invalid; use a number of seconds above 0")
    return Hang(value) if name == "hang_seconds" else Latency(value)


def _one_of(name: str, value: object, allowed: Collection[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise InvalidRule(f"{name}: {value!r} is invalid; use one of {', '.join(allowed)}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(eq=False)
class Fault:
    """An active rule.

    `seen` counts the calls that the rule matches, and `struck` the calls that it affects. `removed` is set when the
    rule is removed.
    """

    id: str
    rule: Rule
    document: object
    seen: int = 0
    struck: int = 0
    removed: threading.Event = field(default_factory=threading.Event)


class Faults:
    """The active rules. Thread-safe; false when there are none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._faults: dict[str, Fault] = {}

    def __bool__(self) -> bool:
        return bool(self._faults)

    def add(self, document: object, operations: Collection[str]) -> str:
        """Add a rule from its JSON object and return its id.

        Raises:
            InvalidRule: the rule is not valid.
        """
        rule = parse_rule(document, operations)
        with self._lock:
            fault = Fault(str(next(self._ids)), rule, document)
            # A new dict each time, so that `__bool__` can read `self._faults` without the lock.
            self._faults = {**self._faults, fault.id: fault}
        return fault.id

    def remove(self, fault_id: str | None = None) -> None:
        """Remove one rule, or all; calls that they delay continue at once.

        Raises:
            KeyError: no rule has this id.
        """
        with self._lock:
            removed = list(self._faults.values()) if fault_id is None else [self._faults[fault_id]]
            self._faults = {key: fault for key, fault in self._faults.items() if fault not in removed}
        for fault in removed:
            fault.removed.set()

    def match(self, call: str) -> list[Fault]:
        """Count a call and return the faults to apply: all matching latencies until the first match of another kind."""
        matching: list[Fault] = []
        decided = False
        with self._lock:
            for fault in self._faults.values():
                if not fault.rule.applies_to(call):
                    continue
                fault.seen += 1
                if not decided and fault.rule.selector.selects(fault.seen):
                    fault.struck += 1
                    matching.append(fault)
                    decided = not isinstance(fault.rule.effect, Latency)
        return matching

    def describe(self) -> list[dict[str, Any]]:
        """Return each rule's JSON object with its id and counts, oldest first."""
        with self._lock:
            return [
                {"id": fault.id, "rule": fault.document, "seen": fault.seen, "struck": fault.struck}
                for fault in self._faults.values()
            ]
