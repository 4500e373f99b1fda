"""What EMR refuses: requests that do not fit botocore's model of the service, and those that break EMR's own rules."""

from collections.abc import Iterable, Sequence
from typing import Any

from botocore.model import ListShape, MapShape, OperationModel, Shape, StructureShape
from botocore.validate import ParamValidator
from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from moto.iam.models import iam_backends

from local_aws.emr.catalogue import instance_types, release_labels
from local_aws.emr.errors import NoSuchSecurityConfiguration, ValidationFailed
from local_aws.emr.hardware import make_pools
from local_aws.emr.model import Wire
from local_aws.emr.service import Emr

MAX_BOOTSTRAP_ACTIONS = 16
MAX_STEPS = 256
MAX_ARGUMENT_CHARACTERS = 10_240
MIN_IDLE_TIMEOUT_SECONDS = 60
MAX_IDLE_TIMEOUT_SECONDS = 7 * 24 * 60 * 60


def check_cluster(emr: Emr, request: Wire, region: str) -> None:
    """Check a RunJobFlow request by EMR's own rules.

    Raises:
        ValidationFailed: it breaks one.
        NoSuchSecurityConfiguration: it names one that was not made.
    """
    check_release_label(request.get("ReleaseLabel"), region)
    _check_instances(request["Instances"], request["ReleaseLabel"], region)
    if len(request.get("BootstrapActions", [])) > MAX_BOOTSTRAP_ACTIONS:
        raise ValidationFailed("The maximum number of bootstrap actions is 16.")
    check_roles(request)
    security = request.get("SecurityConfiguration")
    if security is not None and (region, security) not in emr.security_configurations:
        raise NoSuchSecurityConfiguration(security)
    check_concurrency(request)
    check_steps(request.get("Steps", []), request.get("StepConcurrencyLevel", 1))
    check_idle_timeout(request.get("AutoTerminationPolicy", {}))


def check_release_label(label: str | None, region: str) -> None:
    """Refuse a release label that the region has not.

    Raises:
        ValidationFailed: it is unknown there.
    """
    if label not in release_labels(region):
        raise ValidationFailed(f"The supplied release label is invalid: {label}.")


def check_instance_types(types: Iterable[str], label: str) -> None:
    """Refuse instance types that a release does not know.

    Raises:
        ValidationFailed: it names the first.
    """
    known = instance_types(label)
    for kind in types:
        # moto's table of emr-5.0.2 is empty.
        if known and kind not in known:
            raise ValidationFailed(f"Instance type '{kind}' is not supported by {label}.")


def check_roles(request: Wire) -> None:
    """Refuse a request without both roles, or with one that IAM has not.

    Raises:
        ValidationFailed: it names what is wrong with either.
    """
    iam = iam_backends[DEFAULT_ACCOUNT_ID]["aws"]
    profile, role = request.get("JobFlowRole"), request.get("ServiceRole")
    faults = []
    # A name, or an ARN that ends with it behind a path.
    if not profile:
        faults.append("InstanceProfile is required for creating cluster.")
    elif profile.rpartition("/")[2] not in {known.name for known in iam.instance_profiles.values()}:
        faults.append(f"Invalid InstanceProfile: {profile}.")
    if not role:
        faults.append("ServiceRole is required for creating cluster.")
    elif role.rpartition("/")[2] not in {known.name for known in iam.roles.values()}:
        faults.append(f"EMR service role {role} is invalid.")
    if faults:
        raise ValidationFailed(" ".join(faults))


def check_concurrency(request: Wire) -> None:
    """Check how many steps shall run at a time.

    Raises:
        ValidationFailed: too few or too many.
    """
    level = request.get("StepConcurrencyLevel", 1)
    if not 1 <= level <= MAX_STEPS:
        raise ValidationFailed(f"StepConcurrencyLevel must be between 1 and {MAX_STEPS}, not {level}.")


def check_steps(configs: Sequence[Wire], concurrency: int, active: int = 0) -> None:
    """Check new steps of a cluster with so many active ones.

    Raises:
        ValidationFailed: too many steps, too long arguments, or an action on failure that concurrency rules out.
    """
    if active + len(configs) > MAX_STEPS:
        raise ValidationFailed(
            "Maximum number of active steps(State = Running, Pending or Cancel Pending) for cluster exceeded: "
            f"{active + len(configs)} of {MAX_STEPS}."
        )
    for config in configs:
        characters = sum(len(argument) for argument in config["HadoopJarStep"].get("Args", []))
        if characters > MAX_ARGUMENT_CHARACTERS:
            raise ValidationFailed(
                f"The arguments of step '{config['Name']}' have {characters} characters in all; "
                f"at most {MAX_ARGUMENT_CHARACTERS} are allowed."
            )
        action = config.get("ActionOnFailure", "CONTINUE")
        if concurrency > 1 and action != "CONTINUE":
            raise ValidationFailed(
                f"ActionOnFailure {action} of step '{config['Name']}' is not valid when StepConcurrencyLevel is "
                f"greater than 1, and it is {concurrency}; only CONTINUE is."
            )


def check_idle_timeout(policy: Wire) -> None:
    """Check an AutoTerminationPolicy.

    Raises:
        ValidationFailed: less than a minute, or more than seven days.
    """
    seconds = policy.get("IdleTimeout", MIN_IDLE_TIMEOUT_SECONDS)
    if not MIN_IDLE_TIMEOUT_SECONDS <= seconds <= MAX_IDLE_TIMEOUT_SECONDS:
        raise ValidationFailed(
            f"IdleTimeout must be between {MIN_IDLE_TIMEOUT_SECONDS} and {MAX_IDLE_TIMEOUT_SECONDS} seconds, "
            f"not {seconds}."
        )


def _check_instances(instances: Wire, label: str, region: str) -> None:
    simple = [key for key in ("MasterInstanceType", "SlaveInstanceType", "InstanceCount") if instances.get(key)]
    ways = [key for key in ("InstanceGroups", "InstanceFleets") if instances.get(key)] + simple[:1]
    if len(ways) > 1:
        raise ValidationFailed(
            "Please configure instances using one and only one of the following: instance groups; instance fleets; or "
            f"master instance type, slave instance type and instance count. The request has {' and '.join(ways)}."
        )
    if ways in ([], simple[:1]):
        if not instances.get("MasterInstanceType"):
            raise ValidationFailed("Instances has none of MasterInstanceType, InstanceGroups, InstanceFleets.")
        if instances.get("InstanceCount", 1) < 1:
            raise ValidationFailed(f"InstanceCount must be at least 1, not {instances['InstanceCount']}.")
    pools = make_pools("", instances)
    masters = sum(len(pool.markets) for pool in pools if pool.role == "MASTER")
    if masters not in (1, 3):
        raise ValidationFailed(f"A cluster has 1 master instance, or 3 for high availability, not {masters}.")
    check_instance_types((kind for pool in pools for kind in pool.types), label)
    for subnet in [instances.get("Ec2SubnetId"), *instances.get("Ec2SubnetIds", [])]:
        if subnet and not any(subnet in zone for zone in ec2_backends[DEFAULT_ACCOUNT_ID][region].subnets.values()):
            raise ValidationFailed(f"The subnet ID '{subnet}' does not exist.")


def check_parameters(model: OperationModel, parameters: Wire) -> None:
    """Check a request against the service model: required members, types, lengths, and enums.

    Raises:
        ValidationFailed: it does not fit; the message lists every fault.
    """
    shape = model.input_shape
    if shape is None:
        return
    report = ParamValidator().validate(parameters, shape)
    faults = [report.generate_report()] if report.has_errors() else []
    # botocore's validator leaves enums to the service, and that is us.
    faults += [] if report.has_errors() else _wrong_enums(shape, parameters, "")
    if faults:
        raise ValidationFailed(f"{len(faults)} validation error(s) in {model.name}: {'; '.join(faults)}")


def _wrong_enums(shape: Shape | None, value: Any, name: str) -> list[str]:
    match shape:
        case StructureShape():
            known = [(member, value[member]) for member in shape.members if member in value]
            return [fault for key, item in known for fault in _wrong_enums(shape.members[key], item, f"{name}.{key}")]
        case ListShape():
            return [
                fault
                for index, item in enumerate(value)
                for fault in _wrong_enums(shape.member, item, f"{name}[{index}]")
            ]
        case MapShape():
            return [fault for key, item in value.items() for fault in _wrong_enums(shape.value, item, f"{name}.{key}")]
    allowed = getattr(shape, "enum", [])
    if allowed and value not in allowed:
        return [f"Value '{value}' at '{name.lstrip('.')}' must be one of [{', '.join(allowed)}]"]
    return []
