# Images: built with whatever is here, run for real, weighed.
ENGINE ?= $(shell for name in docker buildah podman; do \
  command -v $$name >/dev/null 2>&1 && { [ $$name != docker ] || docker info >/dev/null 2>&1; } && echo $$name && break; done)
BUILDER ?= $(if $(filter buildah,$(ENGINE)),buildah bud --layers,$(ENGINE) build)
IMAGES := chat_handler pipeline_bridge

lock-images: $(VENV)/.python
	@printf 'setuptools\nuv-build>=0.13,<0.15\nwheel\n' | $(COMPILE) --python-version 3.15 - -o locks/build.txt
	@for service in $(IMAGES); do $(COMPILE) --python-version 3.15 --no-emit-package handler-core \
	  --override locks/overrides.txt services/$$service/pyproject.toml -o locks/$$service.txt || exit; done

images: ## build the images, with docker, buildah or podman, whichever is here
	@$(BUILDER) -f docker/base.Dockerfile -t slim-handlers/base .
	@for service in $(IMAGES); do \
	  $(BUILDER) --build-arg SERVICE=$$service -f docker/service.Dockerfile -t slim-handlers/$$service . || exit; done

image-test: $(STAMP) ## run every built image for real, against real servers
	@$(BIN)/pytest tests/images $(ARGS)

image-report: $(STAMP) ## sizes by layer and package, start and memory, beside a naive peer; fails over budget
	@$(BIN)/python tools/image_report.py $(ARGS)

.PHONY: lock-images images image-test image-report
