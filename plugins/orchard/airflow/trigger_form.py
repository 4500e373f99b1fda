"""The params of a run, as Airflow's trigger form and its REST API show and check them.

`orchard.run.params` checks them again, for what a JSON schema cannot express. The form shows the sections in the order
of their first param, and opens the one that Airflow itself names. A value that does not fit is refused with HTTP 400,
and the message contains the failing schema. So each schema begins with what to do, as `help`. JSON Schema ignores that
key, and Airflow cannot read `description` there.
"""

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Param

from orchard.cluster.instances import INSTANCE_TYPES
from orchard.dataset.uri import DATASET_URI_PATTERN
from orchard.run.params import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_PIXELS,
    DEFAULT_TARGET_MINUTES,
    FROZEN,
    LARGEST_MAX_BYTES,
    MAX_COMPONENTS,
    MAX_CORE_INSTANCES,
    MAX_HOLD_MINUTES,
    REFIT,
)
from orchard.settings import Settings

# The section of params without a section, which Airflow's form opens. Only one section is open at a time.
OPEN_SECTION = "Run Parameters"
LIMITS = "What stops the run, and what is rejected"
READ_AGAIN = "What is read again"
CLUSTER = "Cluster and cost"
DATASET_REMEDY = "Use the URI of a folder, such as s3://bucket/images/, without empty parts, . or .."
# The first rule that a URI breaks is in the message. The last one has all of them, but nobody can read it.
DATASET_RULES: Mapping[str, Any] = {
    "type": "string",
    "allOf": [
        {"help": "Begin with s3://, as in s3://bucket/images/", "pattern": "^s3://"},
        {"help": "End in /, as in s3://bucket/images/", "pattern": "/$"},
        {"help": "The name of a bucket has 3 to 63 of a-z, 0-9, . and -", "pattern": "^s3://[a-z0-9.-]{3,63}/"},
        {"help": "Leave out the empty part, . or .., or rename the folder", "pattern": r"^s3://(?!.*/\.{0,2}/)"},
        {"help": DATASET_REMEDY, "pattern": DATASET_URI_PATTERN},
    ],
}


# A whole number, or a number below 1. With `anyOf`, the message would only be that no alternative fits.
SHARE_OR_COUNT: Mapping[str, Any] = {
    "type": "number",
    "exclusiveMinimum": 0,
    "maximum": MAX_COMPONENTS,
    "if": {"minimum": 1},
    "then": {"help": "Use a whole number, or a number below 1", "multipleOf": 1},
}
REQUIRED = object()


def field(
    default: Any, *, title: str, description: str, remedy: str, section: str = OPEN_SECTION, **rules: Any
) -> Param:
    """Return a param with the rules of its JSON schema. `remedy` is what to use instead of a value that breaks them.

    A param whose default is REQUIRED has none: the form demands a value.
    """
    schema = {"help": remedy, **rules, "title": title, "section": section}
    values = {} if default is REQUIRED else {"default": default}
    return Param(**values, description=description, schema=schema)


def dataset_field(settings: Settings, default: Any = REQUIRED, *, title: str, description: str) -> Param:
    """Return the param of a dataset: any folder on S3. The form suggests the datasets of the settings."""
    return field(
        default,
        title=title,
        description=description,
        remedy=DATASET_REMEDY,
        examples=list(settings.dataset_uris),
        **DATASET_RULES,
    )


def run_params(settings: Settings) -> dict[str, Param]:
    """Return the params of a run by name, with the defaults of the nightly run."""
    return {
        "dataset_uri": dataset_field(
            settings,
            settings.dataset_uri,
            title="Dataset prefix",
            description="Folder of images on S3, with one folder per label. It ends in /, without empty parts, . or .. "
            "Clear the field to see suggestions; any other folder may be used, too.",
        ),
        "n_components": field(
            0.95,
            title="PCA components",
            description=f"As in scikit-learn: a whole number of components, from 1 to {MAX_COMPONENTS} (50), or the "
            "share of variance to keep, below 1 (0.95).",
            remedy=f"Use a whole number of components from 1 to {MAX_COMPONENTS}, or a share of the variance above 0 "
            "and below 1",
            examples=[0.95, 50],
            **SHARE_OR_COUNT,
        ),
        "pca_mode": field(
            REFIT,
            title="PCA mode",
            description="refit: fit the PCA to all images. frozen: use the last basis of the dataset, so that vectors "
            "stay comparable with earlier ones; PCA components is not used.",
            remedy=f"Choose {REFIT} or {FROZEN}",
            type="string",
            enum=[REFIT, FROZEN],
            values_display={
                REFIT: f"{REFIT}: fit the PCA to all images",
                FROZEN: f"{FROZEN}: use the last basis of the dataset",
            },
        ),
        "max_reject_ratio": field(
            0.05,
            title="Tolerated share of broken images",
            description="From 0 to 1. The run fails if a larger share of the objects cannot be read as images.",
            remedy="Use a number from 0 to 1",
            section=LIMITS,
            type="number",
            minimum=0,
            maximum=1,
        ),
        "max_lost_ratio": field(
            0.5,
            title="Tolerated share of lost images",
            description="From 0 to 1. The run fails if the dataset has lost a larger share of the images that are "
            "published.",
            remedy="Use a number from 0 to 1",
            section=LIMITS,
            type="number",
            minimum=0,
            maximum=1,
        ),
        "max_bytes": field(
            DEFAULT_MAX_BYTES,
            title="Largest object, in bytes",
            description=f"At most {LARGEST_MAX_BYTES} (1 GiB). A larger object is rejected without being read.",
            remedy=f"Use a whole number of bytes from 1 to {LARGEST_MAX_BYTES}, such as {DEFAULT_MAX_BYTES} for 64 MiB",
            section=LIMITS,
            type="integer",
            minimum=1,
            maximum=LARGEST_MAX_BYTES,
            examples=[DEFAULT_MAX_BYTES],
        ),
        "max_pixels": field(
            DEFAULT_MAX_PIXELS,
            title="Largest image, in pixels",
            description="An image whose width times height is larger is rejected without being decoded.",
            remedy=f"Use a whole number of pixels from 1, such as {DEFAULT_MAX_PIXELS}",
            section=LIMITS,
            type="integer",
            minimum=1,
            examples=[DEFAULT_MAX_PIXELS],
        ),
        "retry_rejects": field(
            False,
            title="Retry rejects",
            description="Read objects again that an earlier run rejected, although they have not changed.",
            remedy="Use true or false",
            section=READ_AGAIN,
            type="boolean",
        ),
        "full_refresh": field(
            False,
            title="Full refresh",
            description="Read all objects again, although they have not changed. Known contents are not inferred "
            "again.",
            remedy="Use true or false",
            section=READ_AGAIN,
            type="boolean",
        ),
        "instance_type": field(
            "m5.xlarge",
            title="Instance type",
            description="EC2 instance type of the workers. The primary node has the smallest type of the same family.",
            remedy="Choose one of the types that the list names",
            section=CLUSTER,
            type="string",
            enum=list(INSTANCE_TYPES),
            values_display={
                name: f"{name} ({kind.vcpus} vCPU, {kind.memory_gib} GiB, {kind.architecture})"
                for name, kind in INSTANCE_TYPES.items()
            },
        ),
        "core_instances": field(
            None,
            title="Workers",
            description=f"Number of On-Demand core instances, from 1 to {MAX_CORE_INSTANCES}, in addition to the "
            "primary node. Empty: as many workers as the target needs, all but one on Spot.",
            remedy=f"Use a whole number from 1 to {MAX_CORE_INSTANCES}, or null",
            section=CLUSTER,
            type=["null", "integer"],
            minimum=1,
            maximum=MAX_CORE_INSTANCES,
            examples=[2],
        ),
        "target_minutes": field(
            DEFAULT_TARGET_MINUTES,
            title="Target, in minutes",
            description="Above 0. If Workers is empty: the run gets as many workers as it needs to finish within this "
            "time.",
            remedy="Use a number of minutes above 0",
            section=CLUSTER,
            type="number",
            exclusiveMinimum=0,
            examples=[DEFAULT_TARGET_MINUTES],
        ),
        "max_cost_usd": field(
            None,
            title="Cost limit, in USD",
            description="A run whose estimated price is higher is refused before anything exists. Empty: no limit.",
            remedy="Use a number of USD above 0, or null",
            section=CLUSTER,
            type=["null", "number"],
            exclusiveMinimum=0,
            examples=[2.5],
        ),
        "hold_minutes": field(
            0,
            title="Hold, in minutes",
            description=f"From 0 to {MAX_HOLD_MINUTES}. Keep the cluster for so long after the run is published, with "
            "JupyterHub, to look around on it. It costs as much as while it works.",
            remedy=f"Use a whole number of minutes from 0 to {MAX_HOLD_MINUTES}",
            section=CLUSTER,
            type="integer",
            minimum=0,
            maximum=MAX_HOLD_MINUTES,
            examples=[60],
        ),
    }
