"""A corpus as it lies on disk → manifests."""
