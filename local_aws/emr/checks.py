"""Validate requests: against botocore's model of the service, and against further rules of EMR."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from botocore.model import ListShape, MapShape, OperationModel, Shape, StructureShape
from botocore.validate import ParamValidator
from moto.core import DEFAULT_ACCOUNT_ID

from local_aws.emr.errors import NoSuchSecurityConfiguration, ValidationFailed
from local_aws.emr.hardware import make_pools
from local_aws.emr.model import ADDITIONAL_SECURITY_GROUPS, SECURITY_GROUPS, Wire
from local_aws.emr.offerings import instance_types, release_labels
from local_aws.emr.service import Emr
from local_aws.policies import find_instance_profile, find_role

MAX_BOOTSTRAP_ACTIONS = 16
MAX_STEPS = 256
MAX_ARGUMENT_CHARACTERS = 10_240
MIN_IDLE_TIMEOUT_SECONDS = 60
MAX_IDLE_TIMEOUT_SECONDS = 7 * 24 * 60 * 60
# https://docs.aws.amazon.com/emr/latest/APIReference/API_SpotProvisioningSpecification.html
MIN_SPOT_TIMEOUT_MINUTES = 5
MAX_SPOT_TIMEOUT_MINUTES = 1440
# https://docs.aws.amazon.com/emr/latest/ManagementGuide/emr-instance-fleet.html
MAX_TYPES = 5
MAX_TYPES_WITH_STRATEGY = 30
# https://docs.aws.amazon.com/emr/latest/ManagementGuide/emr-additional-sec-groups.html
MAX_ADDITIONAL_SECURITY_GROUPS = 4


# The applications of all releases: https://docs.aws.amazon.com/emr/latest/ReleaseGuide/emr-release-components.html
APPLICATIONS = (
    *("AmazonCloudWatchAgent", "Delta", "Flink", "Ganglia", "HBase", "HCatalog", "Hadoop", "Hive", "Hudi", "Hue"),
    *("Iceberg", "JupyterEnterpriseGateway", "JupyterHub", "Livy", "MXNet", "Mahout", "Oozie", "Phoenix", "Pig"),
    *("Presto", "PrestoSQL", "Spark", "Sqoop", "TensorFlow", "Tez", "Trino", "Zeppelin", "ZooKeeper"),
)


def check_cluster(emr: Emr, request: Wire, region: str) -> None:
    """Check a RunJobFlow request against the rules of EMR.

    Raises:
        ValidationFailed: the request breaks a rule.
        NoSuchSecurityConfiguration: the security configuration does not exist.
    """
    check_release_label(request.get("ReleaseLabel"), region)
    _check_instances(request["Instances"], request["ReleaseLabel"], region)
    if len(request.get("BootstrapActions", [])) > MAX_BOOTSTRAP_ACTIONS:
        raise ValidationFailed("The maximum number of bootstrap actions is 16.")
    check_applications(request.get("Applications", []))
    check_roles(request)
    security = request.get("SecurityConfiguration")
    if security is not None and (region, security) not in emr.security_configurations:
        raise NoSuchSecurityConfiguration(security)
    check_concurrency(request)
    check_steps(request.get("Steps", []), request.get("StepConcurrencyLevel", 1))
    check_idle_timeout(request.get("AutoTerminationPolicy", {}))


def check_release_label(label: str | None, region: str) -> None:
    """Check that the region has this release label.

    Raises:
        ValidationFailed: the label is unknown in the region.
    """
    if label not in release_labels(region):
        raise ValidationFailed(f"The supplied release label is invalid: {label}.")


def check_applications(applications: Iterable[Wire]) -> None:
    """Check that the names of the applications are known, in any case. Which release has which is not checked.

    Raises:
        ValidationFailed: a name is unknown.
    """
    known = {name.lower() for name in APPLICATIONS}
    for application in applications:
        if application.get("Name", "").lower() not in known:
            raise ValidationFailed(
                f"Specified application: {application.get('Name')} is invalid. Use one of: {', '.join(APPLICATIONS)}."
            )


def check_instance_types(types: Iterable[str], label: str) -> None:
    """Check that a release supports these instance types.

    Raises:
        ValidationFailed: a type is unsupported; the message names the first one.
    """
    supported = instance_types(label)
    for kind in types:
        # moto's table for emr-5.0.2 is empty.
        if supported and kind not in supported:
            raise ValidationFailed(f"Instance type '{kind}' is not supported by {label}.")


def check_roles(request: Wire) -> None:
    """Check that a request has a service role and an instance profile, and that IAM has both.

    Raises:
        ValidationFailed: one is missing or unknown; the message names every problem.
    """
    profile, role = request.get("JobFlowRole"), request.get("ServiceRole")
    problems = []
    if not profile:
        problems.append("InstanceProfile is required for creating cluster.")
    elif find_instance_profile(profile) is None:
        problems.append(f"Invalid InstanceProfile: {profile}.")
    if not role:
        problems.append("ServiceRole is required for creating cluster.")
    elif find_role(role) is None:
        problems.append(f"EMR service role {role} is invalid.")
    if problems:
        raise ValidationFailed(" ".join(problems))


def check_concurrency(request: Wire) -> None:
    """Check the StepConcurrencyLevel of a request.

    Raises:
        ValidationFailed: the level is out of range.
    """
    level = request.get("StepConcurrencyLevel", 1)
    if not 1 <= level <= MAX_STEPS:
        raise ValidationFailed(f"StepConcurrencyLevel must be between 1 and {MAX_STEPS}, not {level}.")


def check_steps(configs: Sequence[Wire], concurrency: int, active: int = 0) -> None:
    """Check new steps for a cluster that already has this number of active steps.

    Raises:
        ValidationFailed: there are too many steps, the arguments of a step are too long, or its ActionOnFailure is not
            allowed with this concurrency.
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
                f"The arguments of step '{config['Name']}' have {characters} characters in total; "
                f"at most {MAX_ARGUMENT_CHARACTERS} are allowed."
            )
        action = config.get("ActionOnFailure", "CONTINUE")
        if concurrency > 1 and action != "CONTINUE":
            raise ValidationFailed(
                f"ActionOnFailure {action} of step '{config['Name']}' is not valid because StepConcurrencyLevel is "
                f"{concurrency}; above 1, use CONTINUE."
            )


def check_idle_timeout(policy: Wire) -> None:
    """Check the IdleTimeout of an AutoTerminationPolicy.

    Raises:
        ValidationFailed: the timeout is below a minute or above seven days.
    """
    seconds = policy.get("IdleTimeout", MIN_IDLE_TIMEOUT_SECONDS)
    if not MIN_IDLE_TIMEOUT_SECONDS <= seconds <= MAX_IDLE_TIMEOUT_SECONDS:
        raise ValidationFailed(
            f"IdleTimeout must be between {MIN_IDLE_TIMEOUT_SECONDS} and {MAX_IDLE_TIMEOUT_SECONDS} seconds, "
            f"not {seconds}."
        )


def _check_instances(instances: Wire, label: str, region: str) -> None:
    simple = [key for key in ("MasterInstanceType", "SlaveInstanceType", "InstanceCount") if instances.get(key)]
    choices = [key for key in ("InstanceGroups", "InstanceFleets") if instances.get(key)] + simple[:1]
    if len(choices) > 1:
        raise ValidationFailed(
            "Please configure instances using one and only one of the following: instance groups; instance fleets; or "
            f"master instance type, slave instance type and instance count. The request has {' and '.join(choices)}."
        )
    if choices in ([], simple[:1]):
        if not instances.get("MasterInstanceType"):
            raise ValidationFailed("Instances must have MasterInstanceType, InstanceGroups or InstanceFleets.")
        if instances.get("InstanceCount", 1) < 1:
            raise ValidationFailed(f"InstanceCount must be at least 1, not {instances['InstanceCount']}.")
    pools = make_pools("", instances)
    masters = sum(len(pool.markets) for pool in pools if pool.role == "MASTER")
    if masters not in (1, 3):
        raise ValidationFailed(f"A cluster must have 1 master instance, or 3 for high availability, not {masters}.")
    check_instance_types((kind for pool in pools for kind in pool.types), label)
    _check_fleets([pool.config for pool in pools if pool.is_fleet])
    for subnet in [instances.get("Ec2SubnetId"), *instances.get("Ec2SubnetIds", [])]:
        if subnet and not _subnet_exists(subnet, region):
            raise ValidationFailed(f"The subnet ID '{subnet}' does not exist.")
    _check_security_groups(instances, region)


def _check_security_groups(instances: Wire, region: str) -> None:
    """Check the security groups that a request names: https://docs.aws.amazon.com/emr/latest/ManagementGuide/emr-sg-specify.html.

    Groups of another VPC are no invalid request: the cluster terminates (`local_aws.emr.launch`).
    """
    given = [name for name in SECURITY_GROUPS if instances.get(name)]
    for required in SECURITY_GROUPS[:2]:
        if given and required not in given:
            raise ValidationFailed(f"If you specify {given[0]}, you must also specify {required}.")
    additional = [name for name in ADDITIONAL_SECURITY_GROUPS if instances.get(name)]
    for name in additional:
        if len(instances[name]) > MAX_ADDITIONAL_SECURITY_GROUPS:
            # https://github.com/hashicorp/terraform-provider-aws/issues/27582
            raise ValidationFailed(
                f"Maximum number({MAX_ADDITIONAL_SECURITY_GROUPS}) of security groups exceeded for {name}."
            )
    groups = [instances[name] for name in given] + [group for name in additional for group in instances[name]]
    for group in groups:
        if not _security_group_exists(group, region):
            raise ValidationFailed(f"The security group '{group}' does not exist.")


def _check_fleets(fleets: Sequence[Wire]) -> None:
    roles = [fleet["InstanceFleetType"] for fleet in fleets]
    if len(set(roles)) < len(roles):
        raise ValidationFailed(f"A cluster can have one instance fleet of each type, not {', '.join(roles)}.")
    if "TASK" in roles and "CORE" not in roles:
        raise ValidationFailed("A cluster with task instances must have core instances.")
    for fleet in fleets:
        spot = fleet.get("LaunchSpecifications", {}).get("SpotSpecification")
        minutes = spot["TimeoutDurationMinutes"] if spot else MIN_SPOT_TIMEOUT_MINUTES
        if not MIN_SPOT_TIMEOUT_MINUTES <= minutes <= MAX_SPOT_TIMEOUT_MINUTES:
            raise ValidationFailed(
                f"TimeoutDurationMinutes must be between {MIN_SPOT_TIMEOUT_MINUTES} and {MAX_SPOT_TIMEOUT_MINUTES}, "
                f"not {minutes}."
            )
        types = len(fleet.get("InstanceTypeConfigs", []))
        strategy = any("AllocationStrategy" in item for item in fleet.get("LaunchSpecifications", {}).values())
        most = MAX_TYPES_WITH_STRATEGY if strategy else MAX_TYPES
        if types > most:
            raise ValidationFailed(
                f"An instance fleet {'with' if strategy else 'without'} an allocation strategy can have {most} "
                f"instance types, not {types}."
            )


def _subnet_exists(subnet: str, region: str) -> bool:
    # This import takes a third of the time in which the server starts, and only clusters in a subnet need it.
    from moto.ec2.models import ec2_backends

    return any(subnet in zone for zone in ec2_backends[DEFAULT_ACCOUNT_ID][region].subnets.values())


def _security_group_exists(group: str, region: str) -> bool:
    from moto.ec2.models import ec2_backends  # see above

    return ec2_backends[DEFAULT_ACCOUNT_ID][region].get_security_group_from_id(group) is not None


def check_parameters(model: OperationModel, parameters: Wire) -> None:
    """Check a request against the service model: required members, types, lengths, ranges, patterns, and enums.

    Raises:
        ValidationFailed: the request does not match the model; the message lists every problem.
    """
    shape = model.input_shape
    if shape is None:
        return
    report = ParamValidator().validate(parameters, shape)
    # botocore's validator leaves enums, patterns and the upper limits to the service.
    problems = [report.generate_report()] if report.has_errors() else _invalid_values(shape, parameters, "")
    if problems:
        raise ValidationFailed(f"{len(problems)} validation error(s) in {model.name}: {'; '.join(problems)}")


def _invalid_values(shape: Shape | None, value: Any, name: str) -> list[str]:
    problems = [] if shape is None else _invalid_value(shape, value, name.lstrip("."))
    match shape:
        case StructureShape():
            for key, member in shape.members.items():
                if key in value:
                    problems += _invalid_values(member, value[key], f"{name}.{key}")
        case ListShape():
            for index, item in enumerate(value):
                problems += _invalid_values(shape.member, item, f"{name}[{index}]")
        case MapShape():
            for key, item in value.items():
                problems += _invalid_values(shape.key, key, f"{name} key {key!r}")
                problems += _invalid_values(shape.value, item, f"{name}.{key}")
    return problems


def _invalid_value(shape: Shape, value: Any, name: str) -> list[str]:
    """Return why a value breaks a rule of its shape, without its members."""
    allowed = getattr(shape, "enum", [])
    if allowed and value not in allowed:
        return [f"Value '{value}' at '{name}' must be one of [{', '.join(allowed)}]"]
    most, pattern = shape.metadata.get("max"), shape.metadata.get("pattern")
    if most is not None:
        sized = isinstance(value, str | list | dict)
        if (len(value) if sized else value) > most:
            return [f"Value at '{name}' must have {'a length' if sized else 'a value'} of at most {most}"]
    if pattern is not None and not _regex(pattern).fullmatch(value):
        return [f"Value '{value}' at '{name}' must match {pattern}"]
    return []


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    """Translate a pattern of the model, which is in Java's syntax, to Python's: Java has surrogate pairs."""
    return re.compile(re.sub(r"\\uD800\\u(DC00-\\uDBFF|DBFF-\\uDC00)\\uDFFF", r"\\U00010000-\\U0010FFFF", pattern))
