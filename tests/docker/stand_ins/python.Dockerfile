# A stand-in for python:3.11-slim-bookworm. build.py makes the base from Debian's packages.
ARG BASE
FROM ${BASE}
ENV DEBIAN_FRONTEND=noninteractive PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3.11 python3.11-venv python3-pip \
    && rm -rf /var/cache/apt/* /var/lib/apt/lists/* /usr/share/doc /usr/share/man \
    && ln -s /usr/bin/python3.11 /usr/local/bin/python3.11 \
    && ln -s /usr/bin/python3.11 /usr/local/bin/python
# The certificates and pip's settings of the machine, which may use a mirror of PyPI.
COPY machine/ /
