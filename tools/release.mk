# What CI does besides tests: bills of materials, scans, signatures, releases.
TOOLS := build/tools
SYFT ?= $(or $(shell command -v syft),$(TOOLS)/syft)
GRYPE ?= $(or $(shell command -v grype),$(TOOLS)/grype)
COSIGN ?= $(or $(shell command -v cosign),$(TOOLS)/cosign)
WHEELS := build/dist
SBOM := build/sbom
INDEX_URL ?= $(UV_PUBLISH_URL)

# Tools in Go that are not on PATH: each built at the version and from the sources that its go.mod and go.sum pin.
$(TOOLS)/%: tools/release/go/%/go.mod tools/release/go/%/go.sum
	@command -v go >/dev/null || { echo "make: $* is wanted: put it on PATH, or Go, which builds it" >&2; exit 1; }
	@echo "→ building $* (once; some minutes)"
	@module=$$(sed -n 's/^tool \(.*\)\/cmd\/$*$$/\1/p' $<) && \
	version=$$(go list -C tools/release/go/$* -m -f '{{.Version}}' $$module) && \
	go build -C tools/release/go/$* -trimpath -ldflags "-s -w -X main.version=$$version" -o $(CURDIR)/$@ tool

sbom: $(SYFT) ## list what each image is made of, as SPDX: build/sbom/<service>.spdx.json
	@mkdir -p $(SBOM)
	@for service in $(IMAGES); do \
	  image=$(IMAGE_PREFIX)$$service:$(VERSION) archive=$(SBOM)/$$service.tar; rm -f $$archive; \
	  if [ "$(ENGINE)" = buildah ]; then buildah push --quiet $$image docker-archive:$$archive:$$image; \
	  else $(ENGINE) save --output $$archive $$image; fi && \
	  SYFT_CHECK_FOR_APP_UPDATE=false $(SYFT) scan --quiet docker-archive:$$archive \
	    --source-name $$service --source-version $(VERSION) \
	    --output spdx-json=$(SBOM)/$$service.spdx.json --output syft-json=$(SBOM)/$$service.syft.json || exit; \
	  rm $$archive; echo "✓ $(SBOM)/$$service.spdx.json"; \
	done

scan: $(GRYPE) ## look for known vulnerabilities in what `make sbom` listed; fails on a severe one that has a fix
	@ls $(IMAGES:%=$(SBOM)/%.syft.json) >/dev/null || { echo "make: first make sbom" >&2; exit 1; }
	@export GRYPE_CHECK_FOR_APP_UPDATE=false; \
	$(GRYPE) --quiet db update || $(GRYPE) --quiet db status >/dev/null || { \
	  echo "make: no database of vulnerabilities, and none can be fetched: allow it, or load one by grype db import" >&2; exit 1; }; \
	failed=0; for service in $(IMAGES); do \
	  echo "→ $$service"; GRYPE_DB_AUTO_UPDATE=false $(GRYPE) --quiet --only-fixed --fail-on high sbom:$(SBOM)/$$service.syft.json || failed=1; \
	done; exit $$failed

# The first part of a name is a registry if it has a dot or a colon, or is localhost; else an owner on docker's default one.
registry_of = $(if $(findstring .,$(1))$(findstring :,$(1))$(filter localhost,$(1)),$(1),docker.io)

registry-login: ## log in where IMAGE_PREFIX says, as REGISTRY_USER with REGISTRY_PASSWORD
	@[ -n "$$REGISTRY_USER" ] && [ -n "$$REGISTRY_PASSWORD" ] || { \
	  echo "make: set REGISTRY_USER and REGISTRY_PASSWORD in the environment" >&2; exit 1; }
	@printf %s "$$REGISTRY_PASSWORD" | $(ENGINE) login --username "$$REGISTRY_USER" --password-stdin \
	  $(call registry_of,$(firstword $(subst /, ,$(IMAGE_PREFIX))))

sign: $(COSIGN) ## sign the pushed images and bases, attest the images' SPDX lists, with COSIGN_KEY or, without one, keyless
	@ls $(IMAGES:%=$(SBOM)/%.spdx.json) >/dev/null || { echo "make: first make sbom" >&2; exit 1; }
	@set -- --yes $${COSIGN_KEY:+--key "$$COSIGN_KEY"} $(COSIGN_OPTIONS); \
	for base in $(BASES:%=$(IMAGE_PREFIX)%:$(BASE_VERSION)); do \
	  image=$$($(COSIGN) triangulate --type digest $$base) && $(COSIGN) sign "$$@" $$image || exit; \
	done; \
	for service in $(IMAGES); do \
	  image=$$($(COSIGN) triangulate --type digest $(IMAGE_PREFIX)$$service:$(VERSION)) && \
	  $(COSIGN) sign "$$@" $$image && \
	  $(COSIGN) attest "$$@" --type spdxjson --predicate $(SBOM)/$$service.spdx.json $$image || exit; \
	done

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

publish-release: $(STAMP) ## publish the release of TAG on the forge, with the changelog's section as notes
	@$(BIN)/python -m tools.release publish $(TAG)

propose-base-refresh: $(STAMP) ## push what base-refresh changed as a branch, and open a pull request
	@$(BIN)/python -m tools.release propose-base

crds: $(STAMP) ## fetch the definitions of custom resources that k8s-check validates against: build/crds
	@$(BIN)/python -m tools.release crds build/crds

.PHONY: sbom scan registry-login sign wheels publish-wheels changelog release-check publish-release propose-base-refresh crds
