# What all services share: Python, the libraries it is linked to, certificates and an account; no shell, no packages.
#
#   docker build -f docker/base.Dockerfile -t slim-handlers/base .
ARG DEBIAN=debian:forky-slim

FROM ${DEBIAN} AS python
ARG PYTHON=python3.15
RUN apt-get update && apt-get install -y --no-install-recommends ${PYTHON} ca-certificates
COPY docker/root_of_base.py docker/compile_modules.py /build/
RUN ${PYTHON} /build/root_of_base.py /root-of-image \
 && ${PYTHON} /build/compile_modules.py --root /root-of-image \
      $(${PYTHON} -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')

FROM scratch
COPY --from=python /root-of-image /
# Pydantic otherwise reads what every installed package declares, in search of plugins, before the first model is made;
# and where time zones are, of which there are none, would be looked up among all that Python was built with.
ENV GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=/etc/ssl/certs/ca-certificates.crt \
    PYDANTIC_DISABLE_PLUGINS=__all__ \
    PYTHONTZPATH=/usr/share/zoneinfo
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["/usr/bin/python3"]
