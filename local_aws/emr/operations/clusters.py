"""Clusters: make, show, end, tag."""

from local_aws.emr.checks import check_cluster
from local_aws.emr.model import Cluster, Wire
from local_aws.emr.operations import operation
from local_aws.emr.operations.paging import page
from local_aws.emr.service import Emr


@operation("RunJobFlow")
def run_job_flow(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Make a cluster and let it live."""
    check_cluster(emr, parameters, region)
    cluster = emr.start(Cluster(parameters, region))
    return {"JobFlowId": cluster.id, "ClusterArn": cluster.arn}


@operation("DescribeCluster")
def describe_cluster(emr: Emr, parameters: Wire, region: str) -> Wire:
    """One cluster."""
    life = emr.life(parameters["ClusterId"])
    with life.changed:
        return {"Cluster": life.cluster.describe()}


@operation("ListClusters")
def list_clusters(emr: Emr, parameters: Wire, region: str) -> Wire:
    """The clusters of a region, newest first; by state and time of creation."""
    states = parameters.get("ClusterStates", [])
    after = parameters.get("CreatedAfter", 0)
    before = parameters.get("CreatedBefore", float("inf"))

    def keep(cluster: Wire) -> bool:
        created = cluster["Status"]["Timeline"]["CreationDateTime"].timestamp()
        return after <= created <= before and (not states or cluster["Status"]["State"] in states)

    summaries = []
    for life in reversed(list(emr.lives.values())):
        if life.cluster.region == region:
            with life.changed:
                summaries.append(life.cluster.summary())
    listed, more = page(summaries, parameters.get("Marker"), keep)
    return {"Clusters": listed, **more}


@operation("TerminateJobFlows")
def terminate_job_flows(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Ask for the end of clusters."""
    for life in [emr.life(cluster_id) for cluster_id in parameters["JobFlowIds"]]:
        life.terminate()
    return {}


@operation("AddTags")
def add_tags(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Set tags of a cluster."""
    life = emr.life(parameters["ResourceId"])
    with life.change():
        life.cluster.tags |= {tag["Key"]: tag.get("Value", "") for tag in parameters["Tags"]}
    return {}


@operation("RemoveTags")
def remove_tags(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Remove tags of a cluster."""
    life = emr.life(parameters["ResourceId"])
    with life.change():
        for key in parameters["TagKeys"]:
            life.cluster.tags.pop(key, None)
    return {}
