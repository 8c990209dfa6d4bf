# Kubernetes: what is rendered from the declarations, and what is checked of all of it.
