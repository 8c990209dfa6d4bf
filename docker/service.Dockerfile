# One service: the packages it adds to its base, the library of all handlers and its own code, a layer each.
#
#   docker build -f docker/service.Dockerfile --build-arg SERVICE=chat_handler -t slim-handlers/chat_handler .
#
# Layers are the same, to the byte, in all images that have them: a registry stores them once.
ARG BASE=slim-handlers/base
ARG BUILDER=slim-handlers/builder

FROM ${BUILDER} AS library
ARG SOURCE_DATE_EPOCH=0
COPY docker/compile_modules.py docker/debian_files.py docker/root_of_packages.py /build/
COPY libs/handler_core/pyproject.toml /build/libs/handler_core/
COPY libs/handler_core/src /build/libs/handler_core/src
RUN pip install --no-deps --no-build-isolation --no-compile --no-index /build/libs/handler_core --target /library \
 && python /build/root_of_packages.py --keep-sources /library /layers/library

FROM ${BASE} AS base

FROM ${BUILDER} AS packages
COPY --from=base / /base
COPY docker/additions.py /build/
ARG SERVICE
COPY locks/${SERVICE}.txt /build/locks/
RUN python /build/additions.py /base /build/locks/${SERVICE}.txt > /build/additions.txt \
 && if [ -s /build/additions.txt ]; then \
      pip install --no-deps --no-build-isolation --no-compile --require-hashes -r /build/additions.txt --target /added; fi
ARG SOURCE_DATE_EPOCH=0
COPY docker/compile_modules.py docker/debian_files.py docker/root_of_packages.py /build/
RUN python /build/root_of_packages.py --base /base /added /layers/packages

FROM library AS own
ARG SERVICE
ARG SOURCE_DATE_EPOCH=0
COPY services/${SERVICE}/pyproject.toml /build/services/${SERVICE}/
COPY services/${SERVICE}/src /build/services/${SERVICE}/src
RUN pip install --no-deps --no-build-isolation --no-compile --no-index /build/services/${SERVICE} --target /own \
 && python /build/root_of_packages.py --keep-sources --keep-annotations /own /layers/own ${SERVICE}

FROM ${BUILDER} AS tests
COPY locks/test.txt /build/locks/
RUN pip install --no-deps --no-build-isolation --require-hashes -r /build/locks/test.txt
WORKDIR /src
COPY libs/handler_core libs/handler_core
COPY services services
RUN for package in libs/handler_core services/*; do \
      pip install --no-deps --no-build-isolation --no-index --editable $package || exit; done
COPY pyproject.toml .
COPY docs docs
COPY k8s k8s
COPY tests/audio tests/audio
COPY docker/lazy_tests.py /build/

# The unit tests of a service, or of handler_core, on the images' Python with lazy imports: --target test.
FROM tests AS test
ENV HOME=/tmp \
    HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/build
USER 65532:65532
ARG SERVICE
ARG PYTEST_ARGS=""
RUN pytest -p lazy_tests -p no:cacheprovider -q -n 2 */${SERVICE}/tests ${PYTEST_ARGS}

FROM base AS image
COPY --from=packages /layers/packages /
COPY --from=library /layers/library /
COPY --from=own /layers/own /
ENTRYPOINT ["/usr/bin/python3", "-P", "/service"]
STOPSIGNAL SIGTERM
ARG HEALTH_PORT=8080
ARG HEALTH_PATH=/livez
ENV HEALTH_PORT=${HEALTH_PORT} \
    HEALTH_PATH=${HEALTH_PATH}
# Without a shell, `site` and most of a start: some milliseconds.
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s \
  CMD ["/usr/bin/python3", "-I", "-S", "/usr/local/bin/healthcheck.pyc"]
ARG SERVICE
ARG BASE
ARG BASE_NAME=${BASE}
ARG DESCRIPTION
ARG SOURCE
ARG VERSION=dev
ARG REVISION
ARG CREATED
# The licences are those of the base: what a service adds to it is under the same.
LABEL org.opencontainers.image.title=${SERVICE} \
      org.opencontainers.image.description=${DESCRIPTION} \
      org.opencontainers.image.source=${SOURCE} \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION} \
      org.opencontainers.image.created=${CREATED} \
      org.opencontainers.image.base.name=${BASE_NAME}
