# A stand-in for postgres:16-bookworm, with Debian's PostgreSQL 15.
ARG BASE
FROM ${BASE}
ENV DEBIAN_FRONTEND=noninteractive PATH=/usr/lib/postgresql/15/bin:$PATH
RUN apt-get update \
    && apt-get install --yes --no-install-recommends postgresql-15 \
    && rm -rf /var/cache/apt/* /var/lib/apt/lists/* /usr/share/doc /usr/share/man \
    && install -d -o postgres -g postgres -m 700 /var/lib/postgresql/data
COPY postgres.sh /usr/local/bin/
USER postgres
STOPSIGNAL SIGINT
ENTRYPOINT ["sh", "/usr/local/bin/postgres.sh"]
