# One service: its packages, byte-compiled and trimmed, and its own code, each as a layer on the shared base.
#
#   docker build -f docker/service.Dockerfile --build-arg SERVICE=chat_handler -t slim-handlers/chat_handler .
ARG DEBIAN=debian:forky-slim
ARG BASE=slim-handlers/base

FROM ${DEBIAN} AS build
ARG PYTHON=python3.15
# What a package without a wheel for this Python needs to be compiled, such as "gcc libc6-dev python3.15-dev".
ARG BUILD_PACKAGES=""
RUN apt-get update \
 && apt-get install -y --no-install-recommends ${PYTHON} ${PYTHON}-venv binutils ca-certificates ${BUILD_PACKAGES}
COPY locks/build.txt /build/locks/
ENV PATH=/venv/bin:$PATH
RUN ${PYTHON} -m venv /venv && pip install --no-cache-dir --require-hashes -r /build/locks/build.txt
ARG SERVICE
COPY locks/${SERVICE}.txt /build/locks/
RUN pip install --no-cache-dir --no-deps --no-build-isolation --no-compile \
      --require-hashes -r /build/locks/${SERVICE}.txt --target /packages
COPY libs /build/libs
COPY services/${SERVICE} /build/services/${SERVICE}
RUN pip install --no-cache-dir --no-deps --no-build-isolation --no-compile --no-index \
      /build/libs/handler_core /build/services/${SERVICE} --target /own

COPY docker/root_of_service.py docker/compile_modules.py /build/
RUN ${PYTHON} /build/root_of_service.py /packages /layers/packages \
 && ${PYTHON} /build/root_of_service.py --keep-sources /own /layers/own ${SERVICE}

FROM ${BASE}
COPY --from=build /layers/packages /
COPY --from=build /layers/own /
ENTRYPOINT ["/usr/bin/python3", "-P", "/service"]
