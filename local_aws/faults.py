"""Faults on demand: rules that say which calls go wrong, and how. Nothing here touches a request or a cluster."""

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
# How a cluster can be made to end, and the state in which it then does.
ENDS: Final = {"VALIDATION_ERROR": "STARTING", "BOOTSTRAP_FAILURE": "BOOTSTRAPPING", "INSTANCE_FAILURE": "RUNNING"}
_CHOICES: Final = ("calls", "share", "seed")
_EFFECTS: Final = ("answer", "lose_answer", "hang_seconds", "latency_seconds", "end")


class BadRule(ValueError):
    """A rule that cannot be; the message says what is wrong with it."""


@dataclass(frozen=True)
class Answer:
    """An error for an answer; the call is not carried out."""

    code: str


@dataclass(frozen=True)
class LoseAnswer:
    """The call is carried out, and its connection closed without an answer."""


@dataclass(frozen=True)
class Hang:
    """No answer for so long, then none at all; the call is not carried out."""

    seconds: float


@dataclass(frozen=True)
class Latency:
    """The call is carried out, and answered so much later."""

    seconds: float


@dataclass(frozen=True)
class EndCluster:
    """A cluster ends with this code."""

    code: str


Effect = Answer | LoseAnswer | Hang | Latency | EndCluster


@dataclass(frozen=True)
class Numbered:
    """The calls with these numbers, from 1 on; all without any."""

    numbers: frozenset[int] = frozenset()

    def takes(self, number: int) -> bool:
        """Whether this call is chosen."""
        return not self.numbers or number in self.numbers


@dataclass(frozen=True)
class Share:
    """A share of the calls, the same ones for the same seed."""

    share: float
    seed: int = 0

    def takes(self, number: int) -> bool:
        """Whether this call is chosen."""
        return random.Random(f"{self.seed}:{number}").random() < self.share  # noqa: S311


@dataclass(frozen=True)
class Rule:
    """What happens to which calls. `on` is emr, emr:Operation, s3, or cluster: a start of one."""

    on: str
    choice: Numbered | Share
    effect: Effect

    def is_about(self, call: str) -> bool:
        """Whether a call counts for this rule.

        >>> [Rule("emr", Numbered(), LoseAnswer()).is_about(call) for call in ("emr:AddTags", "s3")]
        [True, False]
        """
        return self.on in (call, call.partition(":")[0])


def parse_rule(wire: object, operations: Collection[str]) -> Rule:
    """The rule in this JSON; `operations` are those that EMR has.

    Raises:
        BadRule: there is none in it.

    >>> parse_rule({"on": "s3", "share": 0.2, "seed": 1, "answer": "SlowDown"}, [])
    Rule(on='s3', choice=Share(share=0.2, seed=1), effect=Answer(code='SlowDown'))
    """
    if not isinstance(wire, Mapping):
        raise BadRule(f"a rule is a JSON object, not {wire!r}")
    if unknown := sorted(set(wire) - {"on", *_CHOICES, *_EFFECTS}):
        raise BadRule(f"unknown fields {unknown}; a rule has on, {', '.join([*_CHOICES, *_EFFECTS])}")
    on = wire.get("on")
    if not isinstance(on, str) or on not in ("emr", "s3", "cluster", *(f"emr:{name}" for name in operations)):
        raise BadRule(f"on: {on!r} is not emr, s3, cluster, or emr: and one of {', '.join(sorted(operations))}")
    return Rule(on, _parse_choice(wire), _parse_effect(on, wire))


def _parse_choice(wire: Mapping[str, Any]) -> Numbered | Share:
    if "calls" in wire:
        calls = wire["calls"]
        if "share" in wire or "seed" in wire:
            raise BadRule("a rule has calls or share and seed, not both")
        if not isinstance(calls, list) or not calls or not all(type(call) is int and call >= 1 for call in calls):
            raise BadRule(f"calls: {calls!r} is not a list of numbers from 1 on")
        return Numbered(frozenset(calls))
    if "share" in wire:
        share, seed = wire["share"], wire.get("seed", 0)
        if not _is_number(share) or not 0 < share <= 1:
            raise BadRule(f"share: {share!r} is not a number above 0 and up to 1")
        if type(seed) is not int:
            raise BadRule(f"seed: {seed!r} is not a whole number")
        return Share(share, seed)
    if "seed" in wire:
        raise BadRule("seed: there is no share that it is for")
    return Numbered()


def _parse_effect(on: str, wire: Mapping[str, Any]) -> Effect:
    given = [name for name in _EFFECTS if name in wire]
    if len(given) != 1:
        raise BadRule(f"a rule has one of {', '.join(_EFFECTS)}, not {given}")
    name, value = given[0], wire[given[0]]
    if (name == "end") != (on == "cluster"):
        raise BadRule(f"{name}: not for {on}; clusters have end, calls the other effects")
    if name == "end":
        return EndCluster(_one_of(name, value, ENDS))
    if name == "answer":
        return Answer(_one_of(name, value, S3_ANSWERS if on == "s3" else EMR_ANSWERS))
    if name == "lose_answer":
        if value is not True:
            raise BadRule(f"lose_answer: {value!r} is not true")
        return LoseAnswer()
    if not _is_number(value) or not 0 < value <= threading.TIMEOUT_MAX:
        raise BadRule(f"{name}: {value!r} is not a number of seconds above 0")
    return Hang(value) if name == "hang_seconds" else Latency(value)


def _one_of(name: str, value: object, known: Collection[str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise BadRule(f"{name}: {value!r} is not one of {', '.join(known)}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(eq=False)
class Fault:
    """A rule in force: how many calls it has seen and how many it struck; `removed` is set when it goes."""

    id: str
    rule: Rule
    wire: object
    seen: int = 0
    struck: int = 0
    removed: threading.Event = field(default_factory=threading.Event)


class Faults:
    """The rules in force, for many threads. False when there are none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._faults: dict[str, Fault] = {}

    def __bool__(self) -> bool:
        return bool(self._faults)

    def add(self, wire: object, operations: Collection[str]) -> str:
        """Put a rule, given as JSON, in force; return its id.

        Raises:
            BadRule: it is none.
        """
        rule = parse_rule(wire, operations)
        with self._lock:
            fault = Fault(str(next(self._ids)), rule, wire)
            # A new dict each time: who reads `self._faults` without the lock sees a whole one.
            self._faults = {**self._faults, fault.id: fault}
        return fault.id

    def remove(self, fault_id: str | None = None) -> None:
        """Take back one rule or all; calls that they hold go on.

        Raises:
            KeyError: there is none with this id.
        """
        with self._lock:
            gone = list(self._faults.values()) if fault_id is None else [self._faults[fault_id]]
            self._faults = {key: fault for key, fault in self._faults.items() if fault not in gone}
        for fault in gone:
            fault.removed.set()

    def strike(self, call: str) -> list[Fault]:
        """Count a call; return the faults that strike it: latencies, and at last the first of the other kinds."""
        striking: list[Fault] = []
        decided = False
        with self._lock:
            for fault in self._faults.values():
                if not fault.rule.is_about(call):
                    continue
                fault.seen += 1
                if not decided and fault.rule.choice.takes(fault.seen):
                    fault.struck += 1
                    striking.append(fault)
                    decided = not isinstance(fault.rule.effect, Latency)
        return striking

    def listed(self) -> list[dict[str, Any]]:
        """Each rule as it was given, with its id and counts, oldest first."""
        with self._lock:
            return [
                {"id": fault.id, "rule": fault.wire, "seen": fault.seen, "struck": fault.struck}
                for fault in self._faults.values()
            ]
