# All images for both architectures, with lists of what is in them and where they come from.
#
#   make bake                            # both architectures, built only
#   make bake PUSH=true                  # and pushed, but for bases that the registry has
#   make bake BAKE_ARGS="tts_module --set *.platform=linux/arm64"
#
# `make bake` sets the variables as `make images` does, so that both build the same layers.

variable "REGISTRY" { default = "localhost" }
variable "OWNER" { default = "slim-handlers" }
variable "IMAGE_PREFIX" { default = "${REGISTRY}/${OWNER}/" }
variable "VERSION" { default = "dev" }
variable "BASE_VERSION" { default = "3.15-dev" }
variable "DEBIAN" { default = "debian:forky-slim" }
variable "ARCHIVE" { default = "" }
variable "SOURCE_DATE_EPOCH" { default = "0" }
variable "SOURCE" { default = "" }
variable "REVISION" { default = "" }
variable "CREATED" { default = "" }
variable "BASE_REVISION" { default = "" }
variable "BASE_CREATED" { default = "" }
variable "PUSH" { default = "false" }
variable "PUSHED_AS" { default = VERSION }
variable "BASE_IMAGE" { default = "${IMAGE_PREFIX}base:${BASE_VERSION}" }
variable "BASE_ML_IMAGE" { default = "${IMAGE_PREFIX}base-ml:${BASE_VERSION}" }
# Those of the two that the registry has: they stay as they are there, and services are built on them.
variable "BASES_THERE" { default = "" }

group "default" {
  targets = concat(
    contains(split(" ", BASES_THERE), BASE_IMAGE) ? [] : ["base"],
    contains(split(" ", BASES_THERE), BASE_ML_IMAGE) ? [] : ["base-ml"],
    ["handlers", "local_inference"],
  )
}

target "image" {
  context    = "."
  platforms  = ["linux/amd64", "linux/arm64"]
  output     = ["type=image,rewrite-timestamp=true,push=${PUSH}"]
  attest     = ["type=sbom", "type=provenance,mode=max"]
  args = {
    SOURCE_DATE_EPOCH = SOURCE_DATE_EPOCH
    SOURCE            = SOURCE
  }
}

target "of-base" {
  inherits   = ["image"]
  dockerfile = "docker/base.Dockerfile"
  args = {
    DEBIAN   = DEBIAN
    ARCHIVE  = ARCHIVE
    VERSION  = BASE_VERSION
    REVISION = BASE_REVISION
    CREATED  = BASE_CREATED
  }
}

# What everything is compiled in; it goes nowhere.
target "builder" {
  inherits = ["of-base"]
  target   = "builder"
  output   = ["type=cacheonly"]
  attest   = ["type=sbom,disabled=true", "type=provenance,disabled=true"]
}

target "base" {
  inherits = ["of-base"]
  target   = "base"
  tags     = [BASE_IMAGE]
}

target "base-ml" {
  inherits = ["of-base"]
  target   = "base-ml"
  tags     = [BASE_ML_IMAGE]
}

target "service" {
  inherits   = ["image"]
  dockerfile = "docker/service.Dockerfile"
  target     = "image"
  args = {
    BUILDER  = "builder"
    VERSION  = VERSION
    REVISION = REVISION
    CREATED  = CREATED
  }
}

target "handlers" {
  name     = handler.name
  inherits = ["service"]
  matrix = {
    handler = [
      { name = "chat_handler", description = "Question in, cited answer out: embed, search, rerank, generate, streamed token by token over NATS." },
      { name = "voice_assistant", description = "A spoken question in, a spoken answer out: speech to text, the shared answering, text to speech." },
      { name = "stt_module", description = "Live speech in, transcripts out: VAD, utterances, a Whisper endpoint; sessions survive the worker." },
      { name = "tts_module", description = "Text in, speech out: Coqui, XTTS or OpenAI-style endpoints, as ordered audio chunks over NATS." },
      { name = "pipeline_bridge", description = "Starts, follows and stops runs on Argo Workflows, Kubeflow Pipelines and KubeRay, over NATS." },
    ]
  }
  contexts = {
    builder    = "target:builder"
    base-image = contains(split(" ", BASES_THERE), BASE_IMAGE) ? "docker-image://${BASE_IMAGE}" : "target:base"
  }
  args = {
    SERVICE     = handler.name
    BASE        = "base-image"
    BASE_NAME   = BASE_IMAGE
    DESCRIPTION = handler.description
  }
  tags = ["${IMAGE_PREFIX}${handler.name}:${PUSHED_AS}"]
}

target "local_inference" {
  inherits = ["service"]
  contexts = {
    builder    = "target:builder"
    base-image = contains(split(" ", BASES_THERE), BASE_ML_IMAGE) ? "docker-image://${BASE_ML_IMAGE}" : "target:base-ml"
  }
  args = {
    SERVICE     = "local_inference"
    BASE        = "base-image"
    BASE_NAME   = BASE_ML_IMAGE
    DESCRIPTION = "Development only: OpenAI-, TEI- and Coqui-shaped endpoints on the CPU, so that everything runs with no GPU."
    HEALTH_PORT = "8900"
    HEALTH_PATH = "/health"
  }
  tags = ["${IMAGE_PREFIX}local_inference:${PUSHED_AS}"]
}
