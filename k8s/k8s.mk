# Kubernetes: what is rendered from the declarations, and what is checked of all of it.
k8s-render: $(STAMP) ## render the parts of k8s/ that follow from declarations
	@$(BIN)/python -m tools.k8s render $(ARGS)

k8s-check: $(STAMP) ## build every overlay and composition of k8s/, and check schemas, policies and PromQL; needs CRD_DIR
	@CRD_DIR="$(CRD_DIR)" $(BIN)/python -m tools.k8s check $(ARGS)

# The pinned kustomize, for those who want it by itself: k8s-check makes it when there is no other.
build/tools/kustomize: tools/kustomize/go.mod tools/kustomize/go.sum
	@mkdir -p $(@D)
	@cd tools/kustomize && go build -trimpath -o ../../$@ sigs.k8s.io/kustomize/kustomize/v5

.PHONY: k8s-render k8s-check
