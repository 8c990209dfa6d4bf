"""What `k8s/` is made of: scaling and permissions as data, their rendering, and the checks of all manifests."""
