"""`oci://`: models in OCI and Docker registries, as artifacts or as files of images."""
