"""The name prefix and the tags by which Orchard recognises its clusters."""

import hashlib
import re

NAME_PREFIX = "orchard-"
DAG_TAG = "orchard:dag_id"
RUN_TAG = "orchard:run_id"
DEPLOYMENT_TAG = "orchard:deployment"
DATASET_TAG = "orchard:dataset_uri"
OWNER_TAG = "orchard:owner"
# For how many minutes the run keeps the cluster after `publish`: the janitor allows it this much more time.
HOLD_TAG = "orchard:hold-minutes"
# Set when the hold starts, to its end. From then on, the run does not use the cluster.
HELD_TAG = "orchard:held-until"
# The tag by which EMR's managed policies recognise what they may use:
# https://docs.aws.amazon.com/emr/latest/ManagementGuide/emr-managed-iam-policies.html
MANAGED_POLICIES_TAG = "for-use-with-amazon-emr-managed-policies"
# The limit of both a tag value and a cluster name.
MAX_CHARACTERS = 256


def tag_value(text: str) -> str:
    """Return text as a valid tag value: at most 256 letters, digits, spaces and _ . : / = + - @.

    >>> tag_value("manual__2026-11-22T02:00:00+00:00 ~ again")
    'manual__2026-11-22T02:00:00+00:00 _ again'
    """
    return re.sub(r"[^\w .:/=+@-]", "_", text)[:MAX_CHARACTERS]


def run_tag(run_id: str) -> str:
    """Return a run_id as a tag value. The tilde is the only character of Airflow's run_ids that a tag cannot contain.

    >>> run_tag("manual__2026-11-22T02:00:00+00:00~again")
    'manual__2026-11-22T02:00:00+00:00@again'
    """
    return tag_value(run_id.replace("~", "@"))


def run_id_from_tag(value: str) -> str:
    """Return the run_id of a tag value: the inverse of `run_tag`.

    >>> run_id_from_tag("manual__2026-11-22T02:00:00+00:00@again")
    'manual__2026-11-22T02:00:00+00:00~again'
    """
    return value.replace("@", "~")


def dataset_tag(uri: str) -> str:
    """Return a dataset's URI as a tag value. A URI that a tag cannot contain gets a hash, so that values stay unique.

    >>> dataset_tag("s3://bucket/images/"), dataset_tag("s3://bucket/lot#3/")
    ('s3://bucket/images/', 's3://bucket/lot_3/ 4860c698c7e6')
    """
    value = tag_value(uri)
    if value == uri:
        return value
    digest = hashlib.sha256(uri.encode()).hexdigest()[:12]
    return f"{value[: MAX_CHARACTERS - len(digest) - 1]} {digest}"
