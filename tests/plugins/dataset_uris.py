"""Dataset URIs that the form, Airflow's API, the nightly run's setting and the plan must all accept, or all refuse."""

# Prefixes in a bucket, because the setting is one.
ACCEPTED = (
    "images/",
    "images/2026 autumn/",
    "lot#3/a?b/50%/",
    "früchte/ミカン/🍏/",
    "...images/.hidden/..a/",
    "a:b/c*d/e\\f/",
    " images/",
    f"{'x' * 900}/",
)
REFUSED = (
    "images",
    "images//",
    "images//2026/",
    "/images/",
    "/",
    "./",
    "../",
    "images/../other/",
    "images/./",
    "images/..",
    "images/\n",
    "images/\nx/",
    "ima\x00ges/",
    "ima\x7fges/",
    "ima\tges/",
    "images/\udce9t\udce9/",  # how Python reads a variable that is not UTF-8
)
# Whole URIs, for everything but the setting.
REFUSED_URIS = (
    *(f"s3://fruits-data/{prefix}" for prefix in REFUSED),
    "",
    "fruits-data/images/",
    "/fruits-data/images/",
    "s3:/fruits-data/images/",
    "s3a://fruits-data/images/",
    "S3://fruits-data/images/",
    " s3://fruits-data/images/",
    "https://fruits-data.s3.amazonaws.com/images/",
    "s3://fruits-data",
    "s3://",
    "s3:///images/",
    "s3://ab/images/",
    f"s3://{'x' * 64}/images/",
    "s3://Fruits/images/",
    "s3://fruits_data/images/",
    "s3://-fruits/images/",
    "s3://fruits-/images/",
    "s3://fruits..data/images/",
    "s3://10.0.0.1/images/",
    "s3://fruits-data\n/images/",
)
ACCEPTED_URIS = (
    *(f"s3://fruits-data/{prefix}" for prefix in ACCEPTED),
    "s3://fruits-data/",
    "s3://my.fruits.2026/images/",
    "s3://10.0.0.1.fruits/images/",
    f"s3://{'x' * 63}/images/",
)
