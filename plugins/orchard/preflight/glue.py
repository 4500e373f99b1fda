"""Check the Glue database of the tables. Each check returns one sentence per fault."""

import logging
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_glue import GlueClient

log = logging.getLogger(__name__)


def missing_database(glue: "GlueClient", settings: Settings) -> list[str]:
    """Check that the Glue database exists. Create it, as `publish` would, if it does not and Airflow may create it."""
    name = settings.catalog_database
    try:
        glue.get_database(Name=name)
    except ClientError as error:
        if error.response["Error"]["Code"] != "EntityNotFoundException":
            raise
    else:
        log.info("preflight: Glue database %s exists", name)
        return []
    try:
        glue.create_database(DatabaseInput={"Name": name})
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code == "AccessDeniedException":
            return [
                f"Glue database {name!r} does not exist in {glue.meta.region_name}, and Airflow may not create it; run "
                f"`aws glue create-database --region {glue.meta.region_name} --database-input Name={name}`, grant "
                "glue:CreateDatabase to Airflow, or set ORCHARD_CATALOG_DATABASE to one that exists"
            ]
        if code != "AlreadyExistsException":  # the run of another dataset has just created it
            raise
    log.info("preflight: Glue database %s did not exist, and was created", name)
    return []
