# What CI does besides tests: bills of materials, scans, signatures, releases.
TOOLS := build/tools
SYFT ?= $(or $(shell command -v syft),$(TOOLS)/syft)
GRYPE ?= $(or $(shell command -v grype),$(TOOLS)/grype)
COSIGN ?= $(or $(shell command -v cosign),$(TOOLS)/cosign)
WHEELS := build/dist
SBOM := build/sbom
SCAN := build/scan
INDEX_URL ?= $(UV_PUBLISH_URL)

# What services are pushed as; a release pushes candidates, which `make promote` names by their version when they are signed.
PUSHED_AS ?= $(VERSION)
# What `make verify-pushed` saw in the registry, by digest.
PUSHED := build/pushed
# Of buildx's docker-container driver. It is named, as where such a one is in use `docker compose build` sees no local image.
BUILDX_BUILDER ?= slim-handlers
# As root podman and buildah keep logins where cosign, syft and grype do not look by themselves.
ifndef REGISTRY_AUTH_FILE
ifneq ($(wildcard /run/containers/$(shell id -u)/auth.json),)
export REGISTRY_AUTH_FILE := /run/containers/$(shell id -u)/auth.json
endif
endif

# Tools in Go that are not on PATH: each built at the version and from the sources that its go.mod and go.sum pin. One that
# CI kept from another run is older than what was checked out since, and still the same if the pins are.
$(TOOLS)/%: tools/release/go/%/go.mod tools/release/go/%/go.sum
	@mkdir -p $(TOOLS); cat $^ > $@.pins.new; \
	if [ -x $@ ] && cmp -s $@.pins.new $@.pins; then touch $@; exit; fi; \
	command -v go >/dev/null || { echo "make: $* is wanted: put it on PATH, or Go, which builds it" >&2; exit 1; }; \
	echo "→ building $* (once; some minutes)"; \
	module=$$(sed -n 's/^tool \(.*\)\/cmd\/$*$$/\1/p' $<) && \
	version=$$(go list -C tools/release/go/$* -m -f '{{.Version}}' $$module) && \
	go build -C tools/release/go/$* -trimpath -ldflags "-s -w -X main.version=$$version" -o $(CURDIR)/$@ tool && \
	mv $@.pins.new $@.pins

# $(call saved,image,archive): an image in docker's format of archives.
saved = rm -f $(2) && $(if $(filter buildah,$(ENGINE)),buildah push --quiet $(1) docker-archive:$(2):$(1),$(ENGINE) save --output $(2) $(1))
# $(call listed,what syft reads,name of the list), where $$service is what it is a list of
listed = SYFT_CHECK_FOR_APP_UPDATE=false $(SYFT) scan --quiet $(1) --source-name $$service --source-version $(VERSION) \
  --output spdx-json=$(SBOM)/$(2).spdx.json --output syft-json=$(SBOM)/$(2).syft.json && echo "✓ $(SBOM)/$(2).spdx.json"

sbom: $(SYFT) ## list what each image is made of, as SPDX: build/sbom/<service>.spdx.json
	@mkdir -p $(SBOM)
	@for service in $(IMAGES); do \
	  archive=$(SBOM)/$$service.tar; rm -f $(SBOM)/$$service.* $(SBOM)/$$service-*; \
	  $(call saved,$(IMAGE_PREFIX)$$service:$(VERSION),$$archive) && $(call listed,docker-archive:$$archive,$$service) || exit; \
	  rm $$archive; \
	done

GRYPE_DATABASE = $(GRYPE) --quiet db update || $(GRYPE) --quiet db status >/dev/null || { \
  echo "make: no database of vulnerabilities, and none can be fetched: allow it, or load one by grype db import" >&2; exit 1; }
# $(call scanned,what grype reads,name of the result)
scanned = echo "→ $(2)"; GRYPE_CHECK_FOR_APP_UPDATE=false GRYPE_DB_AUTO_UPDATE=false $(GRYPE) --quiet --only-fixed --fail-on high $(1) \
  --output table --output json=$(SCAN)/$(2).json || failed=1

scan: $(GRYPE) ## look for known vulnerabilities in what was listed; fails on a severe one that has a fix: build/scan
	@ls $(IMAGES:%=$(SBOM)/%.syft.json) >/dev/null || { echo "make: first make sbom" >&2; exit 1; }
	@mkdir -p $(SCAN); export GRYPE_CHECK_FOR_APP_UPDATE=false; $(GRYPE_DATABASE); \
	failed=0; for service in $(IMAGES); do \
	  for list in $(SBOM)/$$service.syft.json $$(ls $(SBOM)/$$service-*.syft.json 2>/dev/null); do \
	    name=$$(basename $$list .syft.json); $(call scanned,sbom:$$list,$$name); done; done; exit $$failed

RELEASED ?= $(shell git tag --list 'v[0-9]*' --sort=-version:refname | head -n 1)

scan-released: $(GRYPE) ## look for known vulnerabilities in the images of the last release, as they are in the registry
	@[ -n "$(RELEASED)" ] || { echo "nothing is released yet"; exit; }; \
	mkdir -p $(SCAN); export GRYPE_CHECK_FOR_APP_UPDATE=false; $(GRYPE_DATABASE); \
	failed=0; for service in $(IMAGES); do image=$(IMAGE_PREFIX)$$service:$(RELEASED); \
	  platforms=$$($(PYTHON) -m tools.release.registry platforms $$image) || exit; \
	  for platform in $$platforms; do name=$$service-$$(echo $$platform | tr / -); \
	    $(call scanned,registry:$$image --platform $$platform,$$name); done; done; exit $$failed

# The first part of a name is a registry if it has a dot or a colon, or is localhost; else an owner on docker's default one.
registry_of = $(if $(findstring .,$(1))$(findstring :,$(1))$(filter localhost,$(1)),$(1),docker.io)

registry-login: ## log in where IMAGE_PREFIX says, as REGISTRY_USER with REGISTRY_PASSWORD
	@[ -n "$$REGISTRY_USER" ] && [ -n "$$REGISTRY_PASSWORD" ] || { \
	  echo "make: set REGISTRY_USER and REGISTRY_PASSWORD in the environment" >&2; exit 1; }
	@printf %s "$$REGISTRY_PASSWORD" | $(ENGINE) login --username "$$REGISTRY_USER" --password-stdin \
	  $(call registry_of,$(firstword $(subst /, ,$(IMAGE_PREFIX))))

# buildah pulls nothing that it has under the name, unless told to.
PULL = $(ENGINE) pull $(if $(filter buildah,$(ENGINE)),--policy always)

pull-images: engine ## take what was pushed for this machine's architecture as the local images, for tests of just that
	@for name in $(BASES:%=%:$(BASE_VERSION)); do echo "→ $$name"; $(PULL) $(IMAGE_PREFIX)$$name || exit; done
	@for service in $(IMAGES); do image=$(IMAGE_PREFIX)$$service; echo "→ $$service"; \
	  $(PULL) $$image:$(PUSHED_AS) && $(ENGINE) tag $$image:$(PUSHED_AS) $$image:$(VERSION) || exit; done

VERIFIED = $(BIN)/python -m tools.release verify-pushed $(SBOM) \
  $(IMAGES:%=--service $(IMAGE_PREFIX)%:$(PUSHED_AS)) $(BASES:%=--base $(IMAGE_PREFIX)%:$(BASE_VERSION))

verify-pushed: $(STAMP) $(SYFT) ## whether the registry has what was tested and listed; lists each architecture as it is there
	@mkdir -p $(SBOM); rm -f $(PUSHED) $(IMAGES:%=$(SBOM)/%-*); $(VERIFIED) > $(PUSHED).new
	@while read -r kind service platform image; do [ $$kind = platform ] || continue; \
	  name=$$service-$$(echo $$platform | tr / -); \
	  $(call listed,registry:$$image --platform $$platform,$$name) </dev/null || exit; done < $(PUSHED).new
	@mv $(PUSHED).new $(PUSHED); echo "✓ what was pushed is what was tested: $(PUSHED)"

# Keyless has to be asked for: where nobody issues identity tokens, cosign would wait minutes for somebody at a browser.
COSIGN_KEYLESS ?=

signing-key:
	@[ -n "$$COSIGN_KEY" ] || [ "$(COSIGN_KEYLESS)" = true ] || { \
	  echo "make: sign with what? COSIGN_KEY=cosign.key, or COSIGN_KEYLESS=true where jobs get identity tokens: docs/releasing.md" >&2; exit 1; }

signing-check: signing-key $(COSIGN) ## whether there is a key that opens, or keyless was asked for: before a release builds anything
	@[ -z "$$COSIGN_KEY" ] || $(COSIGN) public-key --key "$$COSIGN_KEY" >/dev/null

sign: signing-key $(STAMP) $(COSIGN) ## sign what make verify-pushed saw, attest its SPDX lists, with COSIGN_KEY or COSIGN_KEYLESS=true
	@[ -s $(PUSHED) ] || { echo "make: first make verify-pushed" >&2; exit 1; }
	@$(VERIFIED) > $(PUSHED).new && cmp -s $(PUSHED).new $(PUSHED) || { \
	  echo "make: the registry has other images than make verify-pushed saw: verify and scan again" >&2; exit 1; }
	@set -- --yes $${COSIGN_KEY:+--key "$$COSIGN_KEY"} $(COSIGN_OPTIONS); \
	while read -r kind service platform image; do \
	  if [ $$kind = platform ]; then list=$(SBOM)/$$service-$$(echo $$platform | tr / -).spdx.json; \
	    $(COSIGN) attest "$$@" --type spdxjson --predicate $$list $$image; \
	  else $(COSIGN) sign "$$@" --recursive $$image; fi </dev/null || exit; \
	done < $(PUSHED)

promote: $(STAMP) ## let VERSION be the tag of the candidates that were verified and signed
	@$(BIN)/python -m tools.release promote $(VERSION) $(PUSHED)

wheels: $(STAMP) ## build the wheels of all packages, the same bytes from the same commit: build/dist/
	@rm -rf $(WHEELS)
	@$(BIN)/uv build --quiet --all-packages --wheel --out-dir $(WHEELS)
	@ls $(WHEELS)/*.whl

publish-wheels: $(STAMP) ## upload build/dist/ to the package index at INDEX_URL, as UV_PUBLISH_… say
	@[ -n "$(INDEX_URL)" ] || { echo "make: which index? make publish-wheels INDEX_URL=https://…" >&2; exit 1; }
	@ls $(WHEELS)/*.whl >/dev/null || { echo "make: first make wheels" >&2; exit 1; }
	@[ -n "$$UV_PUBLISH_CHECK_URL" ] || unset UV_PUBLISH_CHECK_URL; \
	$(BIN)/uv publish --trusted-publishing never --publish-url $(INDEX_URL) $(WHEELS)/*.whl

changelog: $(STAMP) ## print what the changelog says of this version, or of the one that TAG names
	@$(BIN)/python -m tools.release changelog $(TAG)

release-check: $(STAMP) ## whether all versions agree, with TAG too if given, and the changelog knows the version
	@$(BIN)/python -m tools.release check $(TAG)

# What `make sbom`, `make verify-pushed` and `make image-report` left.
ASSETS ?= $(wildcard $(SBOM)/*.spdx.json build/images/report.json)

publish-release: $(STAMP) ## publish the release of TAG on the forge, with the changelog's section as notes, and ASSETS
	@$(BIN)/python -m tools.release publish $(TAG) $(ASSETS:%=--asset %)

# The files that the bases have, by digest: layers would differ by who built them, too.
BASE_CONTENTS = for name in $(BASES); do archive=build/$$name.tar; \
  $(call saved,$(IMAGE_PREFIX)$$name:$(BASE_VERSION),$$archive) && digest=$$($(BIN)/python -m tools.release contents $$archive) && \
  rm $$archive && echo "$$name $$digest" || exit; done
BASES_THERE = $(PYTHON) -m tools.release.registry there $(BASES:%=$(IMAGE_PREFIX)%:$(BASE_VERSION))

base-before: engine $(STAMP) ## note what the bases have before make base-refresh: in the registry, or, if not there, built here
	@mkdir -p build; case "$(IMAGE_PREFIX)" in localhost/*) there=;; *) there=$$($(BASES_THERE)) || exit;; esac; \
	if [ "$$there" = "$(BASES:%=$(IMAGE_PREFIX)%:$(BASE_VERSION))" ]; then \
	  for image in $$there; do $(PULL) $$image || exit; done; \
	else make --no-print-directory base-images || exit; fi; \
	$(BASE_CONTENTS) > build/base-before

propose-base-refresh: $(STAMP) ## push what base-refresh changed as a branch, and open a pull request, unless the bases have the same files
	@if [ -s build/base-before ] && { $(BASE_CONTENTS); } > build/base-after && cmp -s build/base-before build/base-after; \
	then echo "Debian has nothing new for the base"; else $(BIN)/python -m tools.release propose-base; fi

crds: $(STAMP) ## fetch the definitions of custom resources that k8s-check validates against: build/crds
	@$(BIN)/python -m tools.release crds build/crds

.PHONY: sbom scan scan-released registry-login pull-images verify-pushed signing-key signing-check sign promote wheels publish-wheels changelog
.PHONY: release-check publish-release base-before propose-base-refresh crds
