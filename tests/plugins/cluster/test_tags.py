from orchard.cluster.tags import dataset_tag, run_id_from_tag, run_tag, tag_value


def test_different_datasets_have_different_tags_even_if_a_tag_cannot_contain_the_difference() -> None:
    uris = [f"s3://b/{'x' * 300}/{end}/" for end in ("kiwi", "lemon")] + ["s3://b/lot#1/", "s3://b/lot?1/"]
    tags = [dataset_tag(uri) for uri in uris]
    assert len(set(tags)) == len(uris)
    assert [tag_value(tag) for tag in tags] == tags, "each is a valid tag value"


def test_a_run_id_with_a_tilde_can_be_read_from_its_tag() -> None:
    assert run_id_from_tag("again@2") == "again~2"
    assert run_id_from_tag(run_tag("again~2")) == "again~2"
