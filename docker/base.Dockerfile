# What all services share: Python, the libraries it is linked to, certificates, time zones, an account and the packages
# that every handler is built on; no shell, no package manager.
#
#   docker build -f docker/base.Dockerfile --target builder -t slim-handlers/builder .
#   docker build -f docker/base.Dockerfile --target base -t slim-handlers/base .
#   docker build -f docker/base.Dockerfile --target base-ml -t slim-handlers/base-ml .
ARG DEBIAN=debian:forky-slim
ARG IMAGE=base

# Everything is installed and compiled here; services are, too. Nothing of it but chosen files leaves it.
FROM ${DEBIAN} AS builder
ARG PYTHON=python3.15
# The day since which packages are taken as they are: another one has them fetched anew.
ARG ARCHIVE
# Licences come along, so of every package there has to be what it says of its own: slim images have no other documentation,
# and some not even that, so that what was left out once is fetched.
RUN echo "Debian's archive, ${ARCHIVE}" \
 && echo 'path-include=/usr/share/doc/*/copyright' > /etc/dpkg/dpkg.cfg.d/licences \
 && apt-get update \
 && without=$(for package in $(dpkg-query --show --showformat '${Package} '); do \
      [ -e /usr/share/doc/$package/copyright ] || echo $package; done) \
 && if [ -n "$without" ]; then apt-get install -y --no-install-recommends --reinstall $without; fi \
 && apt-get install -y --no-install-recommends ${PYTHON} ${PYTHON}-dev ${PYTHON}-venv \
      binutils ca-certificates cmake g++ gcc libc6-dev ninja-build tzdata
COPY locks/build.txt /build/locks/
# What is compiled knows nothing of the folder, of another name each time, that it was compiled in.
ENV PATH=/venv/bin:$PATH \
    CFLAGS="-g0 -Wno-builtin-macro-redefined -D__FILE__=__FILE_NAME__" \
    CXXFLAGS="-g0 -Wno-builtin-macro-redefined -D__FILE__=__FILE_NAME__" \
    LDFLAGS="-Wl,--build-id=none" \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONNODEBUGRANGES=1
RUN ${PYTHON} -m venv /venv && pip install --require-hashes -r /build/locks/build.txt
COPY locks/base.txt /build/locks/
RUN pip install --no-deps --no-build-isolation --no-compile --require-hashes -r /build/locks/base.txt --target /packages

FROM builder AS layers
ARG SOURCE_DATE_EPOCH=0
COPY docker/compile_modules.py docker/debian_files.py docker/healthcheck.py docker/root_of_base.py docker/root_of_packages.py /build/
RUN python /build/root_of_base.py /layers/system \
 && python /build/root_of_packages.py --base /layers/system /packages /layers/packages

FROM scratch AS base
COPY --from=layers /layers/system /
COPY --from=layers /layers/packages /
# Pydantic otherwise reads what every installed package declares, in search of plugins, before the first model is made;
# and where time zones are would be looked up among all that Python was built with.
# gRPC's remarks are no JSON among the logs. Threads are few, and short: one heap for all saves what each would keep.
ENV GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=/etc/ssl/certs/ca-certificates.crt \
    GRPC_VERBOSITY=ERROR \
    MALLOC_ARENA_MAX=1 \
    PYDANTIC_DISABLE_PLUGINS=__all__ \
    PYTHONTZPATH=/usr/share/zoneinfo
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["/usr/bin/python3"]
ARG DEBIAN
ARG SOURCE
ARG VERSION=dev
ARG REVISION
ARG CREATED
# Of Debian's files (Python, glibc, OpenSSL, Mozilla's certificates, …), of the packages of all handlers, and our own.
LABEL org.opencontainers.image.title=base \
      org.opencontainers.image.description="Python and what every handler is built on, without a shell or a package manager." \
      org.opencontainers.image.source=${SOURCE} \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION} \
      org.opencontainers.image.created=${CREATED} \
      org.opencontainers.image.licenses="Apache-2.0 AND BSD-2-Clause AND BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1 AND ISC AND LGPL-2.1-or-later AND MIT AND MIT-0 AND MPL-2.0 AND PSF-2.0 AND Python-2.0.1 AND Zlib" \
      org.opencontainers.image.base.name=${DEBIAN}

# For services that compute.
FROM layers AS layers-ml
COPY locks/base-ml.txt /build/locks/
RUN pip install --no-deps --no-build-isolation --no-compile --require-hashes -r /build/locks/base-ml.txt --target /packages-ml \
 && cp -a /layers/packages/. /layers/system/ \
 && python /build/root_of_packages.py --base /layers/system /packages-ml /layers/ml

FROM base AS base-ml
COPY --from=layers-ml /layers/ml /
# Requests are computed one beside the other; each with threads of its own would only be in the others' way.
ENV OPENBLAS_NUM_THREADS=1
# With what numpy says of its own; and eSpeak NG's, which local_inference brings, the one service that is built on it.
LABEL org.opencontainers.image.title=base-ml \
      org.opencontainers.image.description="The base of services that compute: the same, and numpy." \
      org.opencontainers.image.licenses="0BSD AND Apache-2.0 AND BSD-2-Clause AND BSD-3-Clause AND CC0-1.0 AND GPL-3.0-or-later AND GPL-3.0-or-later WITH GCC-exception-3.1 AND ISC AND LGPL-2.1-or-later AND MIT AND MIT-0 AND MPL-2.0 AND PSF-2.0 AND Python-2.0.1 AND Zlib"

# buildah and podman give the labels of a command line to the last stage of a file, and to no other target.
FROM ${IMAGE} AS image
