#!/bin/bash
# Bootstrap action: make the Python environment of the Spark steps on this node.
#
#   install.sh --release s3://BUCKET/releases/VERSION --prefix /opt/orchard [--index-url URL]
#
# The wheels come from the release's wheels/ folder in S3, each checked against the hashes in requirements.txt; a package
# index is asked only when one is named. The environment is at PREFIX/venv. Any failure ends the node, so say why.
set -euo pipefail

release="" prefix="" index_url=""
while (($#)); do
    case "$1" in
        --release) release=${2%/} ;;
        --prefix) prefix=${2%/} ;;
        --index-url) index_url=$2 ;;
        *) echo "install.sh: unknown option $1" >&2 && exit 2 ;;
    esac
    shift 2
done
if [[ -z $release || -z $prefix ]]; then
    echo "install.sh: --release and --prefix are needed" >&2
    exit 2
fi
trap 'echo "install.sh: failed at line $LINENO: $BASH_COMMAND" >&2' ERR

started=$SECONDS
# /opt belongs to root on a node; the Spark executors only read below it.
if ! mkdir -p "$prefix" 2>/dev/null; then
    sudo mkdir -p "$prefix"
    sudo chown "$(id -u):$(id -g)" "$prefix"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
aws s3 cp --only-show-errors "$release/bootstrap/requirements.txt" "$work/requirements.txt"
source_options=(--no-index --find-links "$work/wheels")
if [[ -n $index_url ]]; then
    source_options=(--index-url "$index_url")
else
    aws s3 cp --only-show-errors --recursive "$release/wheels/" "$work/wheels/"
fi
echo "install.sh: fetched after $((SECONDS - started)) s: $(du -sh "$work" | cut -f1)"

python3.11 -m venv "$prefix/venv"
"$prefix/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-compile \
    --require-hashes --only-binary :all: "${source_options[@]}" --requirement "$work/requirements.txt"

# A quarter of what the wheels unpack is loaded by no step: the libraries' own tests, headers, Arrow's RPC, LiteRT's
# engine for GPUs and its compilers. Were any of it needed, the imports below would fail, and so would our tests.
packages=$("$prefix/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
find "$packages"/{numpy,pyarrow} -type d -name tests -prune -exec rm -rf {} +
rm -rf "$packages"/pyarrow/{include,src} "$packages"/pyarrow/{libarrow_flight,libarrow_python_flight,_flight}*.so* \
    "$packages"/ai_edge_litert/{libLiteRtWebGpuAccelerator.so,tools,vendors}

# These imports also leave compiled modules behind, which the executors' user may not write.
"$prefix/venv/bin/python" -c "import ai_edge_litert.interpreter, boto3, numpy, obstore, PIL.Image, pyarrow.parquet"
chmod -R a+rX "$prefix"
echo "install.sh: $prefix/venv is ready after $((SECONDS - started)) s: $(du -sh "$prefix" | cut -f1)"
