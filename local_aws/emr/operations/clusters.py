"""Create, describe, list, terminate and tag clusters."""

from local_aws.emr.checks import check_cluster
from local_aws.emr.model import Cluster, Wire
from local_aws.emr.operations import operation
from local_aws.emr.operations.paging import page
from local_aws.emr.service import Emr


@operation("RunJobFlow")
def run_job_flow(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Create and start a cluster."""
    check_cluster(emr, parameters, region)
    cluster = Cluster(parameters, region)
    emr.start(cluster)
    return {"JobFlowId": cluster.id, "ClusterArn": cluster.arn}


@operation("DescribeCluster")
def describe_cluster(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Describe a cluster."""
    control = emr.control(parameters["ClusterId"])
    with control.changed:
        return {"Cluster": control.cluster.describe()}


@operation("ListClusters")
def list_clusters(emr: Emr, parameters: Wire, region: str) -> Wire:
    """List the clusters of a region, newest first, filtered by state and creation time."""
    states = parameters.get("ClusterStates", [])
    after = parameters.get("CreatedAfter", 0)
    before = parameters.get("CreatedBefore", float("inf"))

    def is_listed(cluster: Wire) -> bool:
        created = cluster["Status"]["Timeline"]["CreationDateTime"].timestamp()
        return after <= created <= before and (not states or cluster["Status"]["State"] in states)

    summaries = []
    for control in reversed(list(emr.controls.values())):
        if control.cluster.region == region:
            with control.changed:
                summaries.append(control.cluster.summary())
    clusters, marker = page(summaries, parameters.get("Marker"), is_listed)
    return {"Clusters": clusters, **marker}


@operation("TerminateJobFlows")
def terminate_job_flows(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Request termination of clusters."""
    for control in [emr.control(cluster_id) for cluster_id in parameters["JobFlowIds"]]:
        control.terminate()
    return {}


@operation("AddTags")
def add_tags(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Add or replace tags of a cluster."""
    control = emr.control(parameters["ResourceId"])
    with control.change():
        control.cluster.tags |= {tag["Key"]: tag.get("Value", "") for tag in parameters["Tags"]}
    return {}


@operation("RemoveTags")
def remove_tags(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Remove tags of a cluster."""
    control = emr.control(parameters["ResourceId"])
    with control.change():
        for key in parameters["TagKeys"]:
            control.cluster.tags.pop(key, None)
    return {}
