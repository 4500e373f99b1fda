#!/bin/bash
# Bootstrap action: create the Python environment of the Spark steps on a cluster node. EMR terminates the node if this
# script fails, so every failure is logged with its cause.
set -euo pipefail

usage() {
    cat <<'END'
usage: install.sh --release URI --prefix FOLDER [--index-url URL]

Create the Python environment of the Spark steps in FOLDER/venv. Only the wheels for this machine's architecture are
downloaded. Every wheel is checked against the hashes in the release's bootstrap/requirements.txt.

  --release URI     the release on S3, with the wheels in its folder wheels/
  --prefix FOLDER   folder in which to create venv/
  --index-url URL   install from this package index instead of from the release's wheels/
  -h, --help        show this help

example:
  install.sh --release s3://BUCKET/releases/VERSION --prefix /opt/orchard
END
}

release="" prefix="" index_url=""
while (($#)); do
    case "$1" in
        -h | --help) usage && exit ;;
        --release) release=${2%/} ;;
        --prefix) prefix=${2%/} ;;
        --index-url) index_url=$2 ;;
        *) echo "install.sh: unknown option $1" >&2 && exit 2 ;;
    esac
    shift 2
done
if [[ -z $release || -z $prefix ]]; then
    echo "install.sh: --release and --prefix are required" >&2
    exit 2
fi
advice=""
trap 'printf "%s\n" "install.sh: failed at line $LINENO: $BASH_COMMAND" ${advice:+"$advice"} >&2' ERR

started=$SECONDS
# On a node, root owns /opt. The Spark executors only read below it.
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
    machine=$(uname -m)
    aws s3 cp --only-show-errors --recursive "$release/wheels/" "$work/wheels/" \
        --exclude "*" --include "*-any.whl" --include "*_$machine.whl"
    if ! compgen -G "$work/wheels/*_$machine.whl" > /dev/null; then
        advice="install.sh: $release has no wheels for $machine. Upload a new release with \`make release\`, and set \
ORCHARD_RELEASE to the version that it prints"
    fi
fi
echo "install.sh: downloaded after $((SECONDS - started)) s: $(du -sh "$work" | cut -f1)"

python3.11 -m venv "$prefix/venv"
"$prefix/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-compile \
    --require-hashes --only-binary :all: "${source_options[@]}" --requirement "$work/requirements.txt"

# The steps never use a quarter of the installed files: the libraries' tests and headers, Arrow's RPC, and LiteRT's GPU
# engine and compilers. If a step needed one, the imports below or the tests of this script would fail.
packages=$("$prefix/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
find "$packages"/{numpy,pyarrow} -type d -name tests -prune -exec rm -rf {} +
rm -rf "$packages"/pyarrow/{include,src} "$packages"/pyarrow/{libarrow_flight,libarrow_python_flight,_flight}*.so* \
    "$packages"/ai_edge_litert/{libLiteRtWebGpuAccelerator.so,tools,vendors}

# These imports also compile the modules, because the executors' user cannot write the compiled files.
"$prefix/venv/bin/python" -c "import ai_edge_litert.interpreter, boto3, numpy, obstore, PIL.Image, pyarrow.parquet"
chmod -R a+rX "$prefix"
echo "install.sh: $prefix/venv is ready after $((SECONDS - started)) s: $(du -sh "$prefix" | cut -f1)"
