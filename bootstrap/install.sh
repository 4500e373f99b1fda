#!/bin/bash
# Bootstrap action: create the Python environment of the Spark steps on a cluster node. EMR terminates the node if this
# script fails. Then the last line of the standard error says what failed and what to do. docs/runbook.md lists them.
set -euo pipefail

usage() {
    cat <<'END'
usage: install.sh --release URI --prefix FOLDER [--index-url URL]

Create the Python environment of the Spark steps in FOLDER/venv. Only the wheels for this machine's architecture are
downloaded. Every wheel is checked against the hashes in the release's bootstrap/requirements.txt. An environment of the
same requirements that is complete is kept. Any other in this folder is replaced.

  --release URI     the release on S3, with the wheels in its folder wheels/
  --prefix FOLDER   folder in which to create venv/
  --index-url URL   install from this package index instead of from the release's wheels/
  -h, --help        show this help

example:
  install.sh --release s3://BUCKET/releases/VERSION --prefix /opt/orchard
END
}

output=""

# Run a command. If it fails, print its output, and keep it in `output` for `fail`.
attempt() {
    output=$("$@" 2>&1) && return
    local code=$?
    [[ -z $output ]] || printf '%s\n' "$output" >&2
    return "$code"
}

# fail CAUSE ADVICE [CODE]: end the script with one line that says what failed and what to do.
fail() {
    local cause=$1 advice=$2
    if [[ $output == *"No space left on device"* || $output == *"Disk quota exceeded"* ]]; then
        cause="the disk is full: $(free_space)"
        advice="The wheels and the environment need 500 MB. Use nodes with a larger root volume, or free space"
    fi
    echo "install.sh: $cause. $advice" >&2
    exit "${3:-1}"
}

free_space() {
    df -h --output=avail,target -- "$prefix" "${TMPDIR:-/tmp}" 2> /dev/null |
        awk 'NR > 1 {free = $1; $1 = ""; printf "%s%s free on%s", separator, free, $0; separator = ", "}'
}

# download SOURCE TARGET [OPTION...]: copy from the release. Without its options, the AWS CLI tries for five minutes if
# there is no network.
download() {
    attempt aws s3 cp --only-show-errors --cli-connect-timeout 10 --cli-read-timeout 30 "$@" && return
    case $output in
        *"Could not connect to"* | *"imeout on endpoint"* | *"onnection was closed"* | *"SSL validation failed"*)
            fail "S3 cannot be reached to download $1" \
                "Give the subnet a route to S3: an S3 gateway endpoint, or a NAT gateway. Check its security groups" ;;
        *"(403)"* | *AccessDenied* | *"Access Denied"*)
            fail "S3 denies access to $1" \
                "Allow the nodes' role s3:ListBucket, s3:GetObject and, for an encrypted bucket, kms:Decrypt" ;;
        *"(404)"* | *NoSuchKey* | *NoSuchBucket*)
            fail "$1 does not exist" \
                "Upload the release with \`make release\`, and set ORCHARD_RELEASE to the version that it prints" ;;
        *redentials* | *InvalidAccessKeyId* | *ExpiredToken* | *"InvalidToken"*)
            fail "there are no valid AWS credentials to download $1" \
                "Give the nodes a role that can read the release: ORCHARD_INSTANCE_PROFILE" ;;
        *)
            fail "$1 cannot be downloaded: ${output##*$'\n'}" \
                "Clear the failed tasks. If it fails again, look up the error of S3" ;;
    esac
}

# Create the folder of the environment, or take it over. On a node, root owns /opt, and the user may use sudo.
make_folder() {
    { mkdir -p -- "$venv" && [[ -w $venv ]]; } 2> /dev/null && return
    output="there is no sudo"
    command -v sudo > /dev/null || return
    attempt sudo mkdir -p -- "$venv" && attempt sudo chown -R "$(id -u):$(id -g)" -- "$venv" && [[ -w $venv ]]
}

is_installed() {
    cmp -s "$work/requirements.txt" "$venv/requirements.txt" && "$python" -c "$imports"
} 2> /dev/null

explain_pip() {
    if [[ $output =~ "DO NOT MATCH THE HASHES" ]]; then
        [[ $output =~ /([^/[:space:]]+\.whl) ]] || true
        fail "${BASH_REMATCH[1]:-a wheel} does not have the hash in $release/bootstrap/requirements.txt" \
            "The release is damaged: delete its manifest.json, and upload it again with \`make release\`"
    fi
    if [[ -z $index_url ]] && ! compgen -G "$work/wheels/*_$machine.whl" > /dev/null; then
        fail "$release has no wheels for $machine" \
            "Upload a new release with \`make release\`, and set ORCHARD_RELEASE to the version that it prints"
    fi
    if [[ $output =~ "No matching distribution found for "([^[:space:]]+) ]]; then
        local package=${BASH_REMATCH[1]}
        [[ -n $index_url ]] && fail "$shown_index has no wheel of $package for $machine, or cannot be reached" \
            "Check the URL and the route to it, or omit --index-url"
        fail "$release has no wheel of $package for $machine" \
            "Delete its manifest.json, and upload the release again with \`make release\`"
    fi
    fail "pip cannot install $release/bootstrap/requirements.txt: ${output##*$'\n'}" \
        "Upload a new release with \`make release\`, and set ORCHARD_RELEASE to the version that it prints"
}

fail_unusable() {
    fail "the environment in $venv is not usable: ${output##*$'\n'}" \
        "Upload a new release with \`make release\`, and set ORCHARD_RELEASE to the version that it prints"
}

release="" prefix="" index_url=""
while (($#)); do
    case "$1" in
        -h | --help) usage && exit ;;
        --release | --prefix | --index-url) ;;
        *) fail "unknown option $1" "See install.sh --help" 2 ;;
    esac
    [[ -n ${2:-} && ${2:-} != --* ]] || fail "option $1 needs a value" "See install.sh --help" 2
    case "$1" in
        --release) release=${2%/} ;;
        --prefix) prefix=${2%/} ;;
        --index-url) index_url=$2 ;;
    esac
    shift 2
done
[[ -n $release && -n $prefix ]] || fail "--release and --prefix are required" "See install.sh --help" 2
[[ $release == s3://?*/?* ]] || fail "--release is $release, not the URI of a release" "See install.sh --help" 2
trap 'echo "install.sh: failed at line $LINENO: $BASH_COMMAND. Please report this as a bug, with the log" >&2' ERR

started=$SECONDS
machine=$(uname -m)
venv=$prefix/venv
python=$venv/bin/python
# Without the user and the password that it may contain.
shown_index=${index_url/:\/\/*@/:\/\/}
# What the steps import.
imports="import ai_edge_litert.interpreter, boto3, numpy, obstore, PIL.Image, pyarrow.parquet"
export AWS_MAX_ATTEMPTS=${AWS_MAX_ATTEMPTS:-5} AWS_RETRY_MODE=${AWS_RETRY_MODE:-standard}
# Messages in English, for `fail` and `download`. The Spark executors run as another user, which reads the environment.
export LC_ALL=C.UTF-8
umask 022

command -v python3.11 > /dev/null ||
    fail "python3.11 is not installed" "Set ORCHARD_RELEASE_LABEL to emr-7.1.0 or a later release of EMR 7"
command -v aws > /dev/null || fail "the AWS CLI is not installed" "Use an image with the command aws, as those of EMR"
attempt mktemp -d ||
    fail "cannot create a folder in ${TMPDIR:-/tmp}: ${output##*: }" "Set TMPDIR to a folder that $(id -un) can write to"
work=$output
trap 'rm -rf "$work"' EXIT

download "$release/bootstrap/requirements.txt" "$work/requirements.txt"
if is_installed; then
    echo "install.sh: $venv is ready: it was complete already"
    exit
fi
make_folder || fail "$(id -un) cannot write to $venv: ${output:-it is read-only}" \
    "Use a --prefix that the user can write to, or a user who may use sudo"
source_options=(--no-index --find-links "$work/wheels")
if [[ -n $index_url ]]; then
    source_options=(--index-url "$index_url")
else
    download "$release/wheels/" "$work/wheels/" --recursive \
        --exclude "*" --include "*-any.whl" --include "*_$machine.whl"
fi
echo "install.sh: downloaded after $((SECONDS - started)) s: $(du -sh "$work" | cut -f1)"

# A run that was interrupted may have left an incomplete environment. requirements.txt is copied last.
{ attempt python3.11 -m venv --clear --without-pip "$venv" && attempt "$python" -I -m ensurepip; } ||
    fail "python3.11 cannot create $venv: ${output##*$'\n'}" "It needs its modules venv and ensurepip. Delete $venv if it exists"
attempt "$python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-compile \
    --require-hashes --only-binary :all: "${source_options[@]}" --requirement "$work/requirements.txt" || explain_pip

# The steps never use a quarter of the installed files: the libraries' tests and headers, Arrow's RPC, and LiteRT's GPU
# engine and compilers. If a step needed one, the imports below or the tests of this script would fail.
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
attempt find "$packages"/{numpy,pyarrow} -type d -name tests -prune -exec rm -rf {} + || fail_unusable
rm -rf "$packages"/pyarrow/{include,src} "$packages"/pyarrow/{libarrow_flight,libarrow_python_flight,_flight}*.so* \
    "$packages"/ai_edge_litert/{libLiteRtWebGpuAccelerator.so,tools,vendors}

# These imports also compile the modules, because the executors' user cannot write the compiled files.
attempt "$python" -c "$imports" || fail_unusable
{ attempt cp "$work/requirements.txt" "$venv/requirements.txt" && attempt chmod -R a+rX "$venv"; } ||
    fail "$venv cannot be completed: ${output##*$'\n'}" "Delete it, and run the script again"
echo "install.sh: $venv is ready after $((SECONDS - started)) s: $(du -sh "$venv" | cut -f1)"
